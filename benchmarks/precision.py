"""Speed and answers of nano in bf16 on a CPU, compared with float32.

Both answer the four questions about held-out synthetic pairs in batches of 16, alternating; times are CPU
time of the process. Then both answer in batches of other sizes: does an answer depend on its batch? Baseline:
float32, in the same run.

    python benchmarks/precision.py --pairs 256

Prints Markdown on stdout; messages on stderr.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.rows import Table, heading, spread  # noqa: E402
from deltavlm.data.synthetic.cache import TEST_SEED, open_cache, render_cache  # noqa: E402
from deltavlm.model.interface import ChangeModel, Pixels, Reply  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS  # noqa: E402

BATCH, OTHER_BATCHES = 16, (1, 3, 7, 32)
Answers = list[list[Reply]]


def answer_all(model: ChangeModel, before: Pixels, after: Pixels, batch: int) -> tuple[Answers, float]:
    """Replies as [pair][question], and milliseconds of CPU time per pair."""
    started, replies = time.process_time(), []
    for start in range(0, len(before), batch):
        batch_slice = slice(start, start + batch)
        replies += model.answer(model.encode(before[batch_slice], after[batch_slice]), STANDARD_QUESTIONS)
    return replies, (time.process_time() - started) / len(before) * 1000


def compare(first: Answers, second: Answers) -> dict[str, str]:
    """Number of equal texts, and the largest change of a yes/no score."""
    pairs = [replies for a, b in zip(first, second, strict=True) for replies in zip(a, b, strict=True)]
    yes_no = [(a[1], b[1]) for a, b in zip(first, second, strict=True)]
    return {
        "equal answers": f"{sum(a.text == b.text for a, b in pairs)} of {len(pairs)}",
        "another yes or no": str(sum(a.text != b.text for a, b in yes_no)),
        "largest change of a yes/no score": f"{max(abs(a.score - b.score) for a, b in yes_no):.1e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    models = {
        dtype: load_model(args.model, runtime="torch", device="cpu", dtype=dtype, threads=args.threads)
        for dtype in ("fp32", "bf16")
    }
    print(heading(args.threads, f"torch {torch.__version__}"), end="\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        render_cache(Path(scratch), args.pairs, seed=TEST_SEED)
        images = np.ascontiguousarray(open_cache(Path(scratch))[0].transpose(1, 0, 4, 2, 3))
    times: dict[str, list[float]] = {dtype: [] for dtype in models}
    answers: dict[str, Answers] = {}
    for number in range(args.rounds + 1):
        for dtype, model in models.items():
            answers[dtype], elapsed = answer_all(model, *images, BATCH)
            if number:  # the first warms up
                times[dtype].append(elapsed)
    table, name = Table(), f"{args.model} {models['fp32'].fingerprint[:8]}"
    ratio = np.median(np.divide(times["fp32"], times["bf16"]))
    table.row(
        {
            "model": name,
            "pairs": args.pairs,
            "fp32, ms of a core": spread(times["fp32"]),
            "bf16": spread(times["bf16"]),
            "ratio": f"**{ratio:.2f}x**",
            **compare(answers["bf16"], answers["fp32"]),
        }
    )
    print()
    table, few = Table(), min(args.pairs, 48)
    for dtype, model in models.items():
        for batch in OTHER_BATCHES:
            batch_answers, _ = answer_all(model, *images[:, :few], batch)
            against = {f"against batches of {BATCH}": f"{dtype}, {batch}", "pairs": few}
            table.row(against | compare(batch_answers, answers[dtype][:few]))


if __name__ == "__main__":
    main()
