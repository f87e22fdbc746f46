"""Scores of a model on real pairs, source by source, with intervals; no training or tuning ever saw them.

The folder has `mask_cells.csv` (pair_id, class, share of the mask, parts, cells), `labels.csv` (labels by
eye), and for every pair a folder SOURCE/NAME with before.png, after.png and mask.png. Pairs of GeoTIFFs in
which, by their label, nothing was built are cut into chips; none of them should be called changed.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deltavlm.data.synthetic.facts import MIN_CELL_SHARE, cell_shares
from deltavlm.errors import AnswerParseError
from deltavlm.geo.pair import RasterPair, open_pair
from deltavlm.metrics import binary, sets
from deltavlm.model.interface import ChangeModel, Masks
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS
from deltavlm.tasks import locate
from deltavlm.tasks.locate import LABELS

LEAST_CHANGED = 0.005  # share of the mask from which a real pair counts as changed
SHORT = dict(zip(("TL", "TC", "TR", "ML", "MC", "MR", "BL", "BC", "BR"), LABELS, strict=True))
ROUNDS = 2000  # of the bootstrap
BUILDINGS = ("building_built", "building_removed")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model made of a pair, and what is known of it."""

    source: str
    chance: float  # P(yes)
    buildings: tuple[str, ...]  # cells that the answer names
    ruled: tuple[str, ...]  # cells in which the dense head sees enough of a building
    overlap: dict[str, tuple[int, int, int]]  # of any change, of buildings: pixels of both, said, true
    area: float  # share that the dense head calls changed
    built: float  # the same, houses and roads alone
    plain: float  # mean absolute difference of the pictures
    changed: bool  # by the mask
    cells: tuple[str, ...]  # of the mask
    eye: bool | None  # by eye
    eye_cells: tuple[str, ...] | None  # of new buildings, by eye; None where nobody is sure


def picture(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """(3, size, size) uint8 RGB; larger pictures are cut at the top left, not resized."""
    return np.asarray(Image.open(path).convert("RGB"))[:size, :size].transpose(2, 0, 1)


def plain_difference(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> float:
    """The baseline that knows nothing: mean absolute difference after matching mean and deviation of the
    bands."""
    a, b = (x.astype(float) for x in (before, after))
    a, b = ((x - x.mean((1, 2), keepdims=True)) / (x.std((1, 2), keepdims=True) + 1e-6) for x in (a, b))
    return float(np.abs(a - b).mean())


def overlap(masks: Masks | None, truth: npt.NDArray[np.bool_], names: Sequence[str]) -> tuple[int, int, int]:
    """Pixels of the picture that are of these classes in both, as said, in truth."""
    if masks is None:
        return 0, 0, int(truth.sum())
    wanted = [masks.classes.index(name) for name in names]
    said = np.isin(masks.labels[0], wanted)
    rows, cols = (
        np.arange(side) * small // side for side, small in zip(truth.shape, said.shape, strict=True)
    )
    said = said[rows[:, None], cols[None, :]]
    return int((said & truth).sum()), int(said.sum()), int(truth.sum())


def looked_at(model: ChangeModel, folder: Path) -> list[Seen]:
    """Every pair that has PNG pictures and a mask."""
    with (folder / "mask_cells.csv").open() as table:
        rows = [row for row in csv.reader(table)][1:]
    with (folder / "labels.csv").open() as table:
        by_eye = {row["pair_id"]: row for row in csv.DictReader(table)}
    found = []
    for name, _, share, _, cells in (row for row in rows if (folder / row[0] / "before.png").exists()):
        before, after = (
            picture(folder / name / f"{date}.png", model.chip_px) for date in ("before", "after")
        )
        encoded = model.encode(before[None], after[None])
        said = model.answer(encoded, STANDARD_QUESTIONS)[0]
        masks, label = model.masks(encoded), by_eye.get(name)
        size = model.chip_px
        truth = np.asarray(Image.open(folder / name / "mask.png").convert("L"))[:size, :size] > 127
        every = masks.classes[1:] if masks else ()
        try:
            located = tuple(locate.parse(said[3].text).buildings)
        except AnswerParseError:  # what cannot be read says nothing
            located = ()
        sure = (
            label is not None and label["buildings_new"] in ("yes", "no") and label["roads_new"] != "unsure"
        )
        eye_cells = (
            tuple(SHORT[cell] for cell in label["grid_cells"].split())
            if label and label["buildings_new"] == "yes"
            else ()
        )
        found.append(
            Seen(
                name.split("/")[0],
                said[1].score,
                located,
                () if masks is None else ruled(masks),
                {"any": overlap(masks, truth, every), "buildings": overlap(masks, truth, BUILDINGS)},
                0.0 if masks is None else float(1 - masks.probabilities[0, 0].mean()),
                0.0 if masks is None else float(masks.probabilities[0, 1:5].sum(axis=0).mean()),
                plain_difference(before, after),
                float(share) >= LEAST_CHANGED,
                tuple(SHORT[cell] for cell in cells.split()),
                None if label is None else label["changed"] == "yes",
                eye_cells if sure else None,
            )
        )
        told = f"{name:44s} {found[-1].changed!s:5} {share} {said[1].score:.2f} {said[0].text}"
        print(told, file=sys.stderr)
    return found


def ruled(masks: Masks) -> tuple[str, ...]:
    """The cells in which the one pair's mask has buildings, built or removed, without any words."""
    wanted = [masks.classes.index(name) for name in BUILDINGS]
    shares = cell_shares(np.isin(masks.labels[0], wanted))
    return tuple(label for label, share in zip(LABELS, shares, strict=True) if share >= MIN_CELL_SHARE)


def f1(parts: Sequence[tuple[int, int, int]]) -> float:
    """F1 of all pixels together; nan where nothing was said or true."""
    both, said, true = np.sum(np.asarray(parts), axis=0)
    return float(2 * both / (said + true)) if said + true else float("nan")


def iou(parts: Sequence[tuple[int, int, int]]) -> float:
    both, said, true = np.sum(np.asarray(parts), axis=0)
    return float(both / (said + true - both)) if said + true - both else float("nan")


def interval(pairs: Sequence[Seen], score: Callable[[Sequence[Seen]], float]) -> list[float]:
    """A score, and where it lies in 95 % of resamples of the pairs (percentile bootstrap)."""
    rng = np.random.default_rng(0)
    drawn = [
        score([pairs[index] for index in rng.integers(len(pairs), size=len(pairs))]) for _ in range(ROUNDS)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return [score(pairs), float(low), float(high)]


def of_source(pairs: Sequence[Seen]) -> dict[str, Any]:
    """Scores of some pairs, each with its interval. Changed: by the mask."""
    return {
        "pairs, changed": [len(pairs), sum(one.changed for one in pairs)],
        "AUC": interval(pairs, lambda some: binary.auc([x.chance for x in some], [x.changed for x in some])),
        "balanced accuracy": interval(
            pairs,
            lambda some: binary.balanced_accuracy([x.chance >= 0.5 for x in some], [x.changed for x in some]),
        ),
        "AUC of the dense head's changed area": binary.auc(
            [x.area for x in pairs], [x.changed for x in pairs]
        ),
        "AUC of its houses and roads": binary.auc([x.built for x in pairs], [x.changed for x in pairs]),
        "AUC of the plain difference": binary.auc([x.plain for x in pairs], [x.changed for x in pairs]),
        "mask F1, any change": interval(pairs, lambda some: f1([x.overlap["any"] for x in some])),
        "mask IoU, any change": iou([x.overlap["any"] for x in pairs]),
        "mask F1, buildings": interval(pairs, lambda some: f1([x.overlap["buildings"] for x in some])),
        "cell F1, buildings, mask": sets.micro_average(
            [x.buildings for x in pairs], [x.cells for x in pairs]
        ).f1,
        "the same by the dense head's own rule": sets.micro_average(
            [x.ruled for x in pairs], [x.cells for x in pairs]
        ).f1,
    }


def by_eye(pairs: Sequence[Seen]) -> dict[str, Any]:
    known = [one for one in pairs if one.eye is not None]
    sure = [one for one in pairs if one.eye_cells is not None]
    truth = [bool(one.eye) for one in known]
    cells = [one.eye_cells or () for one in sure]
    return {
        "pairs, changed": [len(known), sum(truth)],
        "AUC": interval(
            known, lambda some: binary.auc([x.chance for x in some], [bool(x.eye) for x in some])
        ),
        "balanced accuracy": interval(
            known,
            lambda some: binary.balanced_accuracy(
                [x.chance >= 0.5 for x in some], [bool(x.eye) for x in some]
            ),
        ),
        "AUC of the dense head's changed area": binary.auc([x.area for x in known], truth),
        "AUC of its houses and roads": binary.auc([x.built for x in known], truth),
        "AUC of the plain difference": binary.auc([x.plain for x in known], truth),
        "cell F1, buildings": sets.micro_average([one.buildings for one in sure], cells).f1,
        "cell F1, buildings, by the dense head's own rule": sets.micro_average(
            [one.ruled for one in sure], cells
        ).f1,
        "cell F1, buildings, every cell always": sets.micro_average([LABELS for _ in sure], cells).f1,
    }


def false_alarms(model: ChangeModel, folder: Path) -> dict[str, list[float]]:
    """Of pairs of rasters in which nothing was built, the share of chips that are called changed: share,
    chips."""
    with (folder / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))
    found = {}
    for row in rows:
        before, after = (folder / row["pair_id"] / f"{date}.tif" for date in ("before", "after"))
        built = {row["buildings_new"], row["roads_new"]} != {"no"}
        if built or (folder / row["pair_id"] / "before.png").exists() or not before.exists():
            continue
        with open_pair(RasterPair(str(before), str(after))) as reader:
            chips = [reader.read(chip) for chip in reader.chips(model.chip_px)]
        chips = [chip for chip in chips if chip.valid_fraction >= 0.5]
        yes = []
        for start in range(0, len(chips), 16):
            part = chips[start : start + 16]
            encoded = model.encode(np.stack([x.before for x in part]), np.stack([x.after for x in part]))
            yes += [reply[0].score >= 0.5 for reply in model.answer(encoded, STANDARD_QUESTIONS[1:2])]
        found[row["pair_id"]] = [float(np.mean(yes)), len(yes)]
    return found


def real(model: ChangeModel, folder: Path) -> dict[str, dict[str, Any]]:
    """All scores, by source."""
    pairs = looked_at(model, folder)
    sources = dict.fromkeys(one.source for one in pairs)
    return {
        "all, by mask": of_source(pairs),
        "all, by eye": by_eye(pairs),
        **{name: of_source([one for one in pairs if one.source == name]) for name in sources},
        "false alarms": false_alarms(model, folder),
    }
