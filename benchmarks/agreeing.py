"""Speed and scores of answers that are decoded to agree with each other, compared with free answers.

    python benchmarks/agreeing.py --scenes 200 [--pairs FOLDER]

The same weights answer the four questions both ways, alternating, in batches of 16; times are CPU time of the
process. Held-out synthetic scenes are scored by their facts; real pairs (before.* and after.* in folders) are
timed. Contradictions are those between answers (`pipeline.consistency`, without the rules of masks).

Prints Markdown on stdout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.rows import Table, heading, spread  # noqa: E402
from deltavlm.data.synthetic.cache import TEST_SEED, open_cache, render_cache  # noqa: E402
from deltavlm.data.synthetic.facts import facts_of  # noqa: E402
from deltavlm.errors import AnswerParseError  # noqa: E402
from deltavlm.model.interface import ChangeModel, Pixels, Reply  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.model.predictor import Predictor  # noqa: E402
from deltavlm.pipeline.consistency import ChipStatements, find_conflicts  # noqa: E402
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS, score_scenes  # noqa: E402
from deltavlm.tasks import TASKS  # noqa: E402

BATCH = 16
METRICS = ("yes_no_balanced", "count_mae_all", "cell_f1_buildings", "cell_f1_roads", "caption_exact")
Answers = list[list[Reply]]


def read_pairs(folder: Path, size: int) -> tuple[Pixels, Pixels]:
    """Pairs of a folder, (N, 3, size, size) uint8 each; the top left of larger images."""

    def read(path: Path) -> Pixels:
        return np.asarray(Image.open(path).convert("RGB"))[:size, :size].transpose(2, 0, 1)

    before = sorted(path for path in folder.rglob("before.png"))
    shape = (3, size, size)
    pairs = [(read(path), read(path.with_name("after.png"))) for path in before]
    pairs = [pair for pair in pairs if pair[0].shape == pair[1].shape == shape]
    return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])


def answer_all(model: ChangeModel, before: Pixels, after: Pixels) -> tuple[Answers, float]:
    """Replies as [pair][question], and milliseconds of CPU time per pair."""
    started, replies = time.process_time(), []
    for start in range(0, len(before), BATCH):
        batch = slice(start, start + BATCH)
        replies += model.answer(model.encode(before[batch], after[batch]), STANDARD_QUESTIONS)
    return replies, (time.process_time() - started) / len(before) * 1000


def contradicts(replies: Sequence[Reply]) -> bool:
    """True if the answers about a pair break a rule."""
    values = {}
    for question, reply in zip(STANDARD_QUESTIONS, replies, strict=True):
        try:
            values[question.name] = TASKS[question.name].parse(reply.text)  # type: ignore[index]
        except AnswerParseError:
            values[question.name] = None
    statements = ChipStatements(
        changed=values["change"],
        caption=values["caption"],
        counts=values["count"],
        cells=values["location"],
    )
    return bool(find_conflicts(statements))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = load_model(args.model, runtime="torch", device="cpu", threads=1)
    assert isinstance(model, Predictor)
    models = {
        name: replace(
            model, config=replace(model.config, decoding=replace(model.config.decoding, consistent=agree))
        )
        for name, agree in (("free", False), ("agreeing", True))
    }
    print(heading(1, f"torch {torch.__version__}"), model.label, sep=", ", end="\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        render_cache(Path(scratch), args.scenes, seed=TEST_SEED)
        images, truth = open_cache(Path(scratch))
        facts = [facts_of(*arrays) for arrays in truth]
        before, after = np.ascontiguousarray(images.transpose(1, 0, 4, 2, 3))
        sets = {"synthetic, held out": (before, after)}
        if args.pairs:
            sets[args.pairs.name] = read_pairs(args.pairs, model.chip_px)
        table = Table()
        scores = {}
        for name, pair in sets.items():
            times: dict[str, list[float]] = {way: [] for way in models}
            answers: dict[str, Answers] = {}
            for number in range(args.rounds + 1):
                for way, each in models.items():
                    answers[way], elapsed = answer_all(each, *pair)
                    if number:  # the first warms up
                        times[way].append(elapsed)
            if name == "synthetic, held out":
                scores = {way: score_scenes(replies, facts) for way, replies in answers.items()}
            both = list(zip(answers["free"], answers["agreeing"], strict=True))
            ratio = float(np.median(np.divide(times["agreeing"], times["free"])))
            table.row(
                {
                    "pairs": f"{name}, {len(both)}",
                    "free, ms of a core": spread(times["free"]),
                    "agreeing": spread(times["agreeing"]),
                    "ratio": f"**{ratio:.2f}x**",
                    "contradict each other, free": sum(contradicts(free) for free, _ in both),
                    "agreeing, contradict": sum(contradicts(agreeing) for _, agreeing in both),
                    "other answers": sum(
                        a.text != b.text
                        for free, agreeing in both
                        for a, b in zip(free, agreeing, strict=True)
                    ),
                }
            )
    print()
    table = Table()
    for metric in METRICS:
        row = {way: f"{scores[way][metric]:.3f}" for way in models}
        table.row({f"{args.scenes} synthetic scenes": metric} | row)


if __name__ == "__main__":
    main()
