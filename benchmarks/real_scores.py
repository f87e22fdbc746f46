"""Metrics of a model on real pairs that no training or tuning has used, by source, with intervals.

The folder has `mask_cells.csv` (pair_id, class, share of the mask, parts, cells), `labels.csv` (visual
labels), and for every pair a folder SOURCE/NAME with before.png, after.png and mask.png. Pairs of GeoTIFFs in
which nothing was built according to their label are cut into chips; a chip called changed is a false alarm.
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

MIN_CHANGED_SHARE = 0.005  # share of the mask from which a real pair counts as changed
CELL_OF_CODE = dict(zip(("TL", "TC", "TR", "ML", "MC", "MR", "BL", "BC", "BR"), LABELS, strict=True))
BOOTSTRAP_ROUNDS = 2000
BUILDINGS = ("building_built", "building_removed")

Overlap = tuple[int, int, int]  # pixels: intersection, predicted, true


@dataclass(frozen=True, slots=True)
class PairResult:
    """Answers and masks of a model for one pair, and the ground truth of its mask and visual labels."""

    source: str
    p_yes: float
    answer_cells: tuple[str, ...]  # cells with changed buildings, from the answer
    mask_cells: tuple[str, ...]  # the same, from the predicted mask
    overlap: dict[str, Overlap]  # of the masks of "any" change and of "buildings"
    changed_share: float  # mean probability of change of the mask head
    built_share: float  # the same for houses and roads alone
    difference: float  # mean absolute difference of the images
    changed: bool  # ground truth of the mask
    cells: tuple[str, ...]  # ground truth of the mask
    label_changed: bool | None  # visual label
    label_cells: tuple[str, ...] | None  # visual label of new buildings; None where it is unsure


def read_image(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """(3, size, size) uint8 RGB; larger images are cropped at the top left, not resized."""
    return np.asarray(Image.open(path).convert("RGB"))[:size, :size].transpose(2, 0, 1)


def mean_difference(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> float:
    """Baseline without a model: mean absolute difference of the bands standardized to mean 0, deviation 1."""
    a, b = (image.astype(float) for image in (before, after))
    a, b = (
        (image - image.mean((1, 2), keepdims=True)) / (image.std((1, 2), keepdims=True) + 1e-6)
        for image in (a, b)
    )
    return float(np.abs(a - b).mean())


def mask_overlap(masks: Masks | None, truth: npt.NDArray[np.bool_], names: Sequence[str]) -> Overlap:
    """Overlap of the predicted classes with the true mask, at its resolution."""
    if masks is None:
        return 0, 0, int(truth.sum())
    predicted = np.isin(masks.labels[0], [masks.classes.index(name) for name in names])
    rows, cols = (
        np.arange(side) * small // side for side, small in zip(truth.shape, predicted.shape, strict=True)
    )
    predicted = predicted[rows[:, None], cols[None, :]]
    return int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum())


def evaluate_pairs(model: ChangeModel, folder: Path) -> list[PairResult]:
    """Results of every pair that has PNG images and a mask."""
    with (folder / "mask_cells.csv").open() as table:
        rows = [row for row in csv.reader(table)][1:]
    with (folder / "labels.csv").open() as table:
        labels = {row["pair_id"]: row for row in csv.DictReader(table)}
    results = []
    for name, _, share, _, cells in (row for row in rows if (folder / row[0] / "before.png").exists()):
        before, after = (
            read_image(folder / name / f"{date}.png", model.chip_px) for date in ("before", "after")
        )
        encoded = model.encode(before[None], after[None])
        caption, yes_no, _, location = model.answer(encoded, STANDARD_QUESTIONS)[0]
        masks, label = model.masks(encoded), labels.get(name)
        size = model.chip_px
        truth = np.asarray(Image.open(folder / name / "mask.png").convert("L"))[:size, :size] > 127
        try:
            answer_cells = tuple(locate.parse(location.text).buildings)
        except AnswerParseError:
            answer_cells = ()
        is_sure = (
            label is not None and label["buildings_new"] in ("yes", "no") and label["roads_new"] != "unsure"
        )
        label_cells = (
            tuple(CELL_OF_CODE[code] for code in label["grid_cells"].split())
            if label and label["buildings_new"] == "yes"
            else ()
        )
        results.append(
            PairResult(
                source=name.split("/")[0],
                p_yes=yes_no.score,
                answer_cells=answer_cells,
                mask_cells=() if masks is None else cells_of_mask(masks),
                overlap={
                    "any": mask_overlap(masks, truth, masks.classes[1:] if masks else ()),
                    "buildings": mask_overlap(masks, truth, BUILDINGS),
                },
                changed_share=0.0 if masks is None else float(1 - masks.probabilities[0, 0].mean()),
                built_share=0.0 if masks is None else float(masks.probabilities[0, 1:5].sum(axis=0).mean()),
                difference=mean_difference(before, after),
                changed=float(share) >= MIN_CHANGED_SHARE,
                cells=tuple(CELL_OF_CODE[code] for code in cells.split()),
                label_changed=None if label is None else label["changed"] == "yes",
                label_cells=label_cells if is_sure else None,
            )
        )
        line = f"{name:44s} {results[-1].changed!s:5} {share} {yes_no.score:.2f} {caption.text}"
        print(line, file=sys.stderr)
    return results


def cells_of_mask(masks: Masks) -> tuple[str, ...]:
    """Cells in which the predicted mask of one pair has built or removed buildings."""
    shares = cell_shares(np.isin(masks.labels[0], [masks.classes.index(name) for name in BUILDINGS]))
    return tuple(label for label, share in zip(LABELS, shares, strict=True) if share >= MIN_CELL_SHARE)


def f1(overlaps: Sequence[Overlap]) -> float:
    """Micro-averaged F1 of pixels; NaN where nothing is predicted or true."""
    intersection, predicted, true = np.sum(np.asarray(overlaps), axis=0)
    return float(2 * intersection / (predicted + true)) if predicted + true else float("nan")


def iou(overlaps: Sequence[Overlap]) -> float:
    """Micro-averaged intersection over union of pixels; NaN where nothing is predicted or true."""
    intersection, predicted, true = np.sum(np.asarray(overlaps), axis=0)
    union = predicted + true - intersection
    return float(intersection / union) if union else float("nan")


def with_interval(
    results: Sequence[PairResult], metric: Callable[[Sequence[PairResult]], float]
) -> list[float]:
    """A metric and its 95 % confidence interval (percentile bootstrap over the pairs): [value, low, high]."""
    rng = np.random.default_rng(0)
    samples = [
        metric([results[index] for index in rng.integers(len(results), size=len(results))])
        for _ in range(BOOTSTRAP_ROUNDS)
    ]
    low, high = np.nanpercentile(samples, [2.5, 97.5]) if np.isfinite(samples).any() else (np.nan, np.nan)
    return [metric(results), float(low), float(high)]


def score_against_masks(results: Sequence[PairResult]) -> dict[str, Any]:
    """Metrics with the masks as ground truth."""
    changed = [result.changed for result in results]
    cells = [result.cells for result in results]
    return {
        "pairs, changed": [len(results), sum(changed)],
        "AUC": with_interval(
            results, lambda sample: binary.auc([r.p_yes for r in sample], [r.changed for r in sample])
        ),
        "balanced accuracy": with_interval(
            results,
            lambda sample: binary.balanced_accuracy(
                [r.p_yes >= 0.5 for r in sample], [r.changed for r in sample]
            ),
        ),
        "AUC of the dense head's changed area": binary.auc([r.changed_share for r in results], changed),
        "AUC of its houses and roads": binary.auc([r.built_share for r in results], changed),
        "AUC of the plain difference": binary.auc([r.difference for r in results], changed),
        "mask F1, any change": with_interval(results, lambda sample: f1([r.overlap["any"] for r in sample])),
        "mask IoU, any change": iou([r.overlap["any"] for r in results]),
        "mask F1, buildings": with_interval(
            results, lambda sample: f1([r.overlap["buildings"] for r in sample])
        ),
        "cell F1, buildings, mask": sets.micro_average([r.answer_cells for r in results], cells).f1,
        "the same by the dense head's own rule": sets.micro_average(
            [r.mask_cells for r in results], cells
        ).f1,
    }


def score_against_labels(results: Sequence[PairResult]) -> dict[str, Any]:
    """Metrics with the visual labels as ground truth."""
    labelled = [result for result in results if result.label_changed is not None]
    sure = [result for result in results if result.label_cells is not None]
    changed = [bool(result.label_changed) for result in labelled]
    cells = [result.label_cells or () for result in sure]
    return {
        "pairs, changed": [len(labelled), sum(changed)],
        "AUC": with_interval(
            labelled,
            lambda sample: binary.auc([r.p_yes for r in sample], [bool(r.label_changed) for r in sample]),
        ),
        "balanced accuracy": with_interval(
            labelled,
            lambda sample: binary.balanced_accuracy(
                [r.p_yes >= 0.5 for r in sample], [bool(r.label_changed) for r in sample]
            ),
        ),
        "AUC of the dense head's changed area": binary.auc([r.changed_share for r in labelled], changed),
        "AUC of its houses and roads": binary.auc([r.built_share for r in labelled], changed),
        "AUC of the plain difference": binary.auc([r.difference for r in labelled], changed),
        "cell F1, buildings": sets.micro_average([r.answer_cells for r in sure], cells).f1,
        "cell F1, buildings, by the dense head's own rule": sets.micro_average(
            [r.mask_cells for r in sure], cells
        ).f1,
        "cell F1, buildings, every cell always": sets.micro_average([LABELS for _ in sure], cells).f1,
    }


def false_alarms(model: ChangeModel, folder: Path) -> dict[str, list[float]]:
    """Share of chips called changed in raster pairs in which nothing was built: [share, number of chips]."""
    with (folder / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))
    alarms = {}
    for row in rows:
        before, after = (folder / row["pair_id"] / f"{date}.tif" for date in ("before", "after"))
        is_built = {row["buildings_new"], row["roads_new"]} != {"no"}
        if is_built or (folder / row["pair_id"] / "before.png").exists() or not before.exists():
            continue
        with open_pair(RasterPair(str(before), str(after))) as reader:
            chips = [reader.read(chip) for chip in reader.chips(model.chip_px)]
        chips = [chip for chip in chips if chip.valid_fraction >= 0.5]
        yes = []
        for start in range(0, len(chips), 16):
            batch = chips[start : start + 16]
            encoded = model.encode(
                np.stack([chip.before for chip in batch]), np.stack([chip.after for chip in batch])
            )
            yes += [reply[0].score >= 0.5 for reply in model.answer(encoded, STANDARD_QUESTIONS[1:2])]
        alarms[row["pair_id"]] = [float(np.mean(yes)), len(yes)]
    return alarms


def score_real_pairs(model: ChangeModel, folder: Path) -> dict[str, dict[str, Any]]:
    """All metrics, in total and by source."""
    results = evaluate_pairs(model, folder)
    sources = dict.fromkeys(result.source for result in results)
    return {
        "all, by mask": score_against_masks(results),
        "all, by eye": score_against_labels(results),
        **{
            name: score_against_masks([result for result in results if result.source == name])
            for name in sources
        },
        "false alarms": false_alarms(model, folder),
    }
