"""Scores of two models on the same real pairs, source by source, with the interval of their difference.

    python benchmarks/compare_weights.py FOLDER... --old nano --new runs/nano/model

A folder has pairs SOURCE/NAME with before.png, after.png and mask.png, and a table: pairs.csv (pair_id,
source, changed, cells, captions, mask_components), or mask_cells.csv and labels.csv as `real_scores` reads
them. GeoTIFF pairs in which nothing was built are false alarms, as there. No training, calibration or choice
may have used any of them. Captions are scored by the protocol `strict`; METEOR needs Java.

Intervals: 95 %, percentile bootstrap over the pairs of a source, the same draws for both models. A second
table has the answers by the share of the pixels that changed, of all pairs with a label.
Prints Markdown on stdout, messages on stderr.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.real_scores import (  # noqa: E402
    BOOTSTRAP_ROUNDS,
    BUILDINGS,
    CELL_OF_CODE,
    MIN_CHANGED_SHARE,
    Overlap,
    cells_of_mask,
    f1,
    false_alarms,
    mask_overlap,
    read_image,
)
from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.errors import AnswerParseError  # noqa: E402
from deltavlm.metrics import binary, java, sets, text  # noqa: E402
from deltavlm.model.interface import ChangeModel, Masks  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.model.openvino import usable_cores  # noqa: E402
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS  # noqa: E402
from deltavlm.tasks import count, locate  # noqa: E402
from deltavlm.tasks.caption import denies_change  # noqa: E402

CHANGED_SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.3, 1.0)  # largest of each row, of the pixels of a pair


@dataclass(frozen=True, slots=True)
class Truth:
    """A pair and its labels."""

    folder: Path
    source: str
    changed: bool | None
    cells: tuple[str, ...]  # with buildings of the mask
    buildings: int | None  # parts of the mask
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers of a model to the standard questions about a pair, and its mask against the true one."""

    truth: Truth
    changed_share: float  # of the pixels of the true mask
    p_yes: float
    caption: str
    buildings: int
    cells: tuple[str, ...]
    mask_cells: tuple[str, ...]
    any_change: Overlap
    building_change: Overlap


def read_truths(folder: Path) -> list[Truth]:
    """Pairs of PNG images of a folder, by either kind of table."""
    if (folder / "pairs.csv").is_file():
        with (folder / "pairs.csv").open(encoding="utf-8") as table:
            return [
                Truth(
                    folder / row["pair_id"],
                    row["source"],
                    {"yes": True, "no": False}.get(row["changed"]),
                    tuple(CELL_OF_CODE[code] for code in row["cells"].split()),
                    int(row["mask_components"]) if row["mask_components"] else None,
                    tuple(json.loads(row["captions"])) if row["captions"] else (),
                )
                for row in csv.DictReader(table)
            ]
    with (folder / "mask_cells.csv").open(encoding="utf-8") as table:
        rows = list(csv.reader(table))[1:]
    return [
        Truth(
            folder / name,
            name.split("/")[0],
            float(share) >= MIN_CHANGED_SHARE,
            tuple(CELL_OF_CODE[code] for code in cells.split()),
            None,
            (),
        )
        for name, _, share, _, cells in rows
        if (folder / name / "before.png").is_file()
    ]


def ask(model: ChangeModel, truths: Sequence[Truth], batch: int = 8) -> list[Answered]:
    """Answers about all pairs."""
    size, answered = model.chip_px, []
    for start in range(0, len(truths), batch):
        group = truths[start : start + batch]
        before, after = (
            np.stack([read_image(truth.folder / f"{date}.png", size) for truth in group])
            for date in ("before", "after")
        )
        encoded = model.encode(before, after)
        masks = model.masks(encoded)
        for index, (truth, replies) in enumerate(
            zip(group, model.answer(encoded, STANDARD_QUESTIONS), strict=True)
        ):
            caption, yes_no, number, location = replies
            mask = masks and Masks(masks.classes, masks.probabilities[index : index + 1])
            true = np.asarray(Image.open(truth.folder / "mask.png").convert("L"))[:size, :size] > 127
            try:
                cells = tuple(locate.parse(location.text).buildings)
            except AnswerParseError:
                cells = ()
            try:
                buildings = count.parse(number.text).buildings
            except AnswerParseError:
                buildings = 0
            answered.append(
                Answered(
                    truth,
                    float(true.mean()),
                    yes_no.score,
                    caption.text,
                    buildings,
                    cells,
                    () if mask is None else cells_of_mask(mask),
                    mask_overlap(mask, true, mask.classes[1:] if mask else ()),
                    mask_overlap(mask, true, BUILDINGS),
                )
            )
        print(f"{start + len(group)} of {len(truths)} pairs", file=sys.stderr)
    return answered


Score = Callable[[Sequence[Answered]], float]


def _labelled(answers: Sequence[Answered]) -> list[Answered]:
    return [answer for answer in answers if answer.truth.changed is not None]


def _yes_no(score: Callable[[list[bool], list[bool]], float]) -> Score:
    def of(answers: Sequence[Answered]) -> float:
        known = _labelled(answers)
        return score([a.p_yes >= 0.5 for a in known], [bool(a.truth.changed) for a in known])

    return of


def _auc(answers: Sequence[Answered]) -> float:
    known = _labelled(answers)
    return binary.auc([a.p_yes for a in known], [bool(a.truth.changed) for a in known])


def _f1_yes(predicted: list[bool], truth: list[bool]) -> float:
    hits = sum(p and t for p, t in zip(predicted, truth, strict=True))
    return 2 * hits / max(1, sum(predicted) + sum(truth))


def _false_alarms(predicted: list[bool], truth: list[bool]) -> float:
    alarms = [p for p, t in zip(predicted, truth, strict=True) if not t]
    return float(np.mean(alarms)) if alarms else float("nan")


def _count_error(answers: Sequence[Answered]) -> float:
    errors = [abs(a.buildings - a.truth.buildings) for a in answers if a.truth.buildings is not None]
    return float(np.mean(errors)) if errors else float("nan")


SCORES: dict[str, Score] = {
    "AUC": _auc,
    "balanced accuracy": _yes_no(binary.balanced_accuracy),
    "F1 of changed": _yes_no(_f1_yes),
    "false alarms": _yes_no(_false_alarms),
    "building cells F1, answers": lambda a: (
        sets.micro_average([one.cells for one in a], [one.truth.cells for one in a]).f1
    ),
    "building cells F1, mask": lambda a: (
        sets.micro_average([one.mask_cells for one in a], [one.truth.cells for one in a]).f1
    ),
    "building count, mean error": _count_error,
    "mask F1, buildings": lambda a: f1([one.building_change for one in a]),
    "mask F1, any change": lambda a: f1([one.any_change for one in a]),
    "caption against yes/no": lambda a: float(
        np.mean([denies_change(one.caption) == (one.p_yes >= 0.5) for one in a])
    ),
}


def caption_scores(answers: Sequence[Answered]) -> dict[str, float]:
    """CIDEr-D and S*m, times 100, of the pairs with captions."""
    captioned = [answer for answer in answers if answer.truth.captions]
    sentences = [*(a.caption for a in captioned), *(s for a in captioned for s in a.truth.captions)]
    tokens = java.ptb_tokenize(sentences)
    candidates, rest = tokens[: len(captioned)], iter(tokens[len(captioned) :])
    references = [[next(rest) for _ in a.truth.captions] for a in captioned]
    statistics = java.meteor_statistics(candidates, references)
    metrics = text.compute_metrics(candidates, references, statistics)
    return {
        "caption CIDEr-D": 100 * metrics["cider"].value(),
        "caption S*m": 100 * metrics["s_m"].value(),
        "caption BLEU-4": 100 * metrics["bleu_4"].value(),
    }


def paired(score: Score, old: Sequence[Answered], new: Sequence[Answered]) -> tuple[float, float, float]:
    """Difference new - old of a score, and its interval."""
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(BOOTSTRAP_ROUNDS):
        drawn = rng.integers(len(old), size=len(old))
        differences.append(score([new[i] for i in drawn]) - score([old[i] for i in drawn]))
    if not np.isfinite(differences).any():
        return score(new) - score(old), float("nan"), float("nan")
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return score(new) - score(old), float(low), float(high)


def print_source(table: Table, source: str, old: Sequence[Answered], new: Sequence[Answered]) -> None:
    for name, score in SCORES.items():
        values = score(old), score(new)
        if not np.isfinite(values).all():
            continue
        difference, low, high = paired(score, old, new)
        table.row(
            {
                "source": f"{source} ({len(old)})",
                "score": name,
                "old": f"{values[0]:.3f}",
                "new": f"{values[1]:.3f}",
                "new - old": f"{difference:+.3f} ({low:+.3f} to {high:+.3f})",
            }
        )
    if any(answer.truth.captions for answer in old) and shutil.which("java"):
        scores = caption_scores(old), caption_scores(new)
        for name in scores[0]:
            before, after = scores[0][name], scores[1][name]
            table.row(
                {
                    "source": f"{source} ({len(old)})",
                    "score": name,
                    "old": f"{before:.1f}",
                    "new": f"{after:.1f}",
                    "new - old": f"{after - before:+.1f}",
                }
            )


def print_shares(models: dict[str, list[Answered]]) -> None:
    """Answers by the share of the pixels that changed, the unchanged pairs first."""
    table = Table()
    for low, high in pairwise((-1.0, *CHANGED_SHARES)):
        cells: dict[str, object] = {"pixels changed": "none" if high == 0 else f"up to {high:.0%}"}
        for name, answers in models.items():
            scores = [a.p_yes for a in _labelled(answers) if low < a.changed_share <= high]
            cells["pairs"] = len(scores)
            if scores:
                called = np.mean([score >= 0.5 for score in scores])
                cells[f"{name}: mean P(yes)"] = f"{np.mean(scores):.2f}"
                cells[f"{name}: called changed"] = f"{called:.0%}"
        if cells["pairs"]:
            table.row(cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="+", type=Path)
    parser.add_argument("--old", default="nano", help="name of a shipped model, or a checkpoint folder")
    parser.add_argument("--new", required=True, help="name of a shipped model, or a checkpoint folder")
    args = parser.parse_args()
    models = [load_model(name, device="cpu") for name in (args.old, args.new)]
    print(f"{heading(usable_cores())}\n\nold {models[0].fingerprint[:8]}, new {models[1].fingerprint[:8]}\n")
    table = Table()
    answers: dict[str, list[Answered]] = {"old": [], "new": []}
    for folder in args.folder:
        truths = read_truths(folder)
        old, new = (ask(model, truths) for model in models)
        answers["old"] += old
        answers["new"] += new
        for source in dict.fromkeys(truth.source for truth in truths):
            of_source = [index for index, truth in enumerate(truths) if truth.source == source]
            print_source(table, source, [old[i] for i in of_source], [new[i] for i in of_source])
        if (folder / "labels.csv").is_file():
            alarms = [false_alarms(model, folder) for model in models]
            for name, (share, chips) in alarms[0].items():
                after = alarms[1][name][0]
                table.row(
                    {
                        "source": f"{name} ({chips:.0f} chips)",
                        "score": "false alarms",
                        "old": f"{share:.3f}",
                        "new": f"{after:.3f}",
                        "new - old": f"{after - share:+.3f}",
                    }
                )
    print()
    print_shares(answers)


if __name__ == "__main__":
    main()
