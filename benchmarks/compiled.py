"""Speed of encoding and answering with torch.compile, and the time that compilation takes.

Baseline, in the same run, alternating: the same model without torch.compile. One batch of the sample pair's
chips, four questions. The gain must exceed the time of compilation, which every start of the program spends.

    python benchmarks/compiled.py --threads 1

Prints a dated Markdown row on stdout; messages on stderr. Needs a C++ compiler, and rasterio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.rows import commit, hardware  # noqa: E402
from deltavlm.config import shipped_config  # noqa: E402
from deltavlm.geo.pair import RasterPair, open_pair  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.model.predictor import Predictor  # noqa: E402
from deltavlm.pipeline.answers import question_of  # noqa: E402
from deltavlm.tasks.questions import load_questions  # noqa: E402


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    eager, compiled = (
        load_model(args.model, runtime="torch", device=args.device, threads=args.threads, dtype="fp32")
        for _ in range(2)
    )
    assert isinstance(eager, Predictor)
    assert isinstance(compiled, Predictor)
    compiled.model.vision.compile()
    compiled.model.language.model.compile(dynamic=True)
    questions = [question_of(spec) for spec in load_questions(shipped_config("questions.yaml"))]
    sample = ROOT / "sample_data"
    with open_pair(RasterPair(str(sample / "before.tif"), str(sample / "after.tif"))) as reader:
        chips = [reader.read(chip) for chip in reader.chips(eager.chip_px, eager.chip_px // 2)][: args.batch]
    before, after = (np.stack([getattr(chip, date) for chip in chips]) for date in ("before", "after"))

    warm_encode = seconds(lambda: compiled.encode(before, after))
    encoded = eager.encode(before, after)
    warm_answer = seconds(lambda: compiled.answer(encoded, questions))
    print(f"warm after {warm_encode:.1f} s and {warm_answer:.1f} s", file=sys.stderr)
    compiled_replies, replies = (
        model.answer(model.encode(before, after), questions) for model in (compiled, eager)
    )
    equal = sum(
        a.text == b.text
        for row, other in zip(compiled_replies, replies, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    times: dict[str, list[float]] = {name: [] for name in ("encode", "encode+", "answer", "answer+")}
    for _ in range(args.rounds):
        times["encode"].append(seconds(lambda: eager.encode(before, after)))
        times["encode+"].append(seconds(lambda: compiled.encode(before, after)))
        times["answer"].append(seconds(lambda: eager.answer(encoded, questions)))
        times["answer+"].append(seconds(lambda: compiled.answer(encoded, questions)))
    other = seconds(lambda: compiled.answer(compiled.encode(before[:-3], after[:-3]), questions))
    middle = {name: statistics.median(values) for name, values in times.items()}
    gain = sum(middle[name] - middle[f"{name}+"] for name in ("encode", "answer"))
    cost = warm_encode + warm_answer
    print(
        "| date (UTC) | commit | hardware | torch | model, batch | encoding: speed-up"
        " | answering: speed-up | warm-up s | a last batch of another size, first time, s"
        " | chips until it has paid | equal answers |"
    )
    print("|" + "---|" * 11)
    print(
        f"| {datetime.now(UTC):%Y-%m-%d} | {commit()} | {hardware(args.threads)} | {torch.__version__} "
        f"| {args.model}, {len(chips)} | **{middle['encode'] / middle['encode+']:.2f}** "
        f"| **{middle['answer'] / middle['answer+']:.2f}** | {cost:.0f} | {other:.0f} "
        f"| {f'{len(chips) * cost / gain:,.0f}' if gain > 0 else 'never'} "
        f"| {equal} of {len(chips) * len(questions)} |"
    )


if __name__ == "__main__":
    main()
