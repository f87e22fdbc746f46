"""What 16-bit numbers spare on a CPU, and what they change: nano's answers in bf16 against those in float32.

Held-out made pairs are asked the four questions in batches of 16 by both, alternating; the seconds are those
of the process, not of the clock. Then both are asked in batches of other sizes: does an answer hang on what
it is asked together with? Baseline: float32, in the same run.

    python benchmarks/precision.py --pairs 256

Prints Markdown on stdout; talk goes to stderr.
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
from deltavlm.data.synthetic.cache import TEST_SEED, draw_cache, open_cache  # noqa: E402
from deltavlm.model.interface import ChangeModel, Pixels, Reply  # noqa: E402
from deltavlm.model.predictor import load_model  # noqa: E402
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS  # noqa: E402

BATCH, OTHERS = 16, (1, 3, 7, 32)
Answers = list[list[Reply]]


def asked(model: ChangeModel, before: Pixels, after: Pixels, batch: int) -> tuple[Answers, float]:
    """Replies as [pair][question], and the process's milliseconds a pair."""
    started, replies = time.process_time(), []
    for start in range(0, len(before), batch):
        part = slice(start, start + batch)
        replies += model.answer(model.encode(before[part], after[part]), STANDARD_QUESTIONS)
    return replies, (time.process_time() - started) / len(before) * 1000


def compared(one: Answers, other: Answers) -> dict[str, str]:
    """Equal texts, and how far a yes/no score has moved."""
    pairs = [both for a, b in zip(one, other, strict=True) for both in zip(a, b, strict=True)]
    yes_no = [(a[1], b[1]) for a, b in zip(one, other, strict=True)]
    return {
        "equal answers": f"{sum(a.text == b.text for a, b in pairs)} of {len(pairs)}",
        "another yes or no": str(sum(a.text != b.text for a, b in yes_no)),
        "largest change of a yes/no score": f"{max(abs(a.score - b.score) for a, b in yes_no):.1e}",
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--model", default="nano")
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--pairs", type=int, default=256)
    ask.add_argument("--rounds", type=int, default=3)
    args = ask.parse_args()
    models = {
        dtype: load_model(args.model, device="cpu", dtype=dtype, threads=args.threads)
        for dtype in ("fp32", "bf16")
    }
    print(heading(args.threads, f"torch {torch.__version__}"), end="\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        draw_cache(Path(scratch), args.pairs, seed=TEST_SEED)
        pictures = np.ascontiguousarray(open_cache(Path(scratch))[0].transpose(1, 0, 4, 2, 3))
    spent: dict[str, list[float]] = {dtype: [] for dtype in models}
    said: dict[str, Answers] = {}
    for number in range(args.rounds + 1):
        for dtype, model in models.items():
            said[dtype], took = asked(model, *pictures, BATCH)
            if number:  # the first warms up
                spent[dtype].append(took)
    table, name = Table(), f"{args.model} {models['fp32'].fingerprint[:8]}"
    ratio = np.median(np.divide(spent["fp32"], spent["bf16"]))
    table.row(
        {
            "model": name,
            "pairs": args.pairs,
            "fp32, ms of a core": spread(spent["fp32"]),
            "bf16": spread(spent["bf16"]),
            "ratio": f"**{ratio:.2f}x**",
            **compared(said["bf16"], said["fp32"]),
        }
    )
    print()
    table, few = Table(), min(args.pairs, 48)
    for dtype, model in models.items():
        for batch in OTHERS:
            other, _ = asked(model, *pictures[:, :few], batch)
            against = {f"against batches of {BATCH}": f"{dtype}, {batch}", "pairs": few}
            table.row(against | compared(other, said[dtype][:few]))


if __name__ == "__main__":
    main()
