"""Adaptation to a user's own pairs without labels: their chips become tiles of real ground.

Chips in which the model sees least change, whatever their rotation and tone, are taken as unchanged
(pseudo-labels, as in self-training): both dates of these are the ground of scenes, so the user's own seasons,
light and misregistration are what the dense head learns to ignore. Of the others one date is a tile.
N chips of P pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deltavlm.data.synthetic.tiles import AFTER_SUFFIX, GSD_FILE
from deltavlm.errors import InputError
from deltavlm.files import parse_json, read_text, staged_folder, write_atomic
from deltavlm.model.interface import ChangeModel

__all__ = ["MIN_CHIPS", "AdaptChip", "change_scores", "pick_unchanged", "read_summary", "write_ground"]

log = logging.getLogger(__name__)

MIN_CHIPS = 8
BATCH = 16  # chips
DENSEST = 0.05  # share of a chip's mask pixels that its score is the mean of
UNCHANGED_SHARE = 0.5  # of the chips, at most
UNCHANGED_BELOW = 0.5  # score of a chip that is taken as unchanged
OBJECTS = ("building", "road")  # first words of the mask classes that count as change
VIEWS = ((0, False, 1.0), (1, False, 1.15), (2, True, 1.0), (3, True, 0.87))
"""Quarters, mirror and gain of the second date in each view of a chip."""
SUMMARY = "adapt.json"  # in the folder of the tiles, written last


@dataclass(frozen=True, slots=True)
class AdaptChip:
    """Pixels of a chip at both dates, (3, P, P) uint8 RGB, and metres per pixel if known."""

    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]
    gsd_m: float | None


def change_scores(model: ChangeModel, chips: Sequence[AdaptChip]) -> npt.NDArray[np.float64]:
    """Score of each chip, (N,): mean probability of buildings and roads in its densest mask pixels.

    Probabilities are averaged over the views first, so that change which a rotation or a tone makes vanish
    counts less than change that is seen in all of them.

    Raises: InputError for a model without change masks, ModelError.
    """
    scores = []
    for start in range(0, len(chips), BATCH):
        batch = chips[start : start + BATCH]
        dates = [np.stack([chip.before for chip in batch]), np.stack([chip.after for chip in batch])]
        changes = [_view_of_changes(model, dates, *view) for view in VIEWS]
        flat = np.sort(np.mean(changes, axis=0).reshape(len(batch), -1), axis=1)
        scores.append(flat[:, -max(1, round(DENSEST * flat.shape[1])) :].mean(axis=1))
    return np.concatenate(scores)


def _view_of_changes(
    model: ChangeModel, dates: Sequence[npt.NDArray[np.uint8]], quarters: int, mirror: bool, gain: float
) -> npt.NDArray[np.float32]:
    """Probability of buildings and roads (N, rows, cols) in a view of N chips, turned back."""
    turned = [np.rot90(date, quarters, (2, 3)) for date in dates]
    turned = [date[..., ::-1] if mirror else date for date in turned]
    after = np.clip(turned[1] * gain, 0, 255).astype(np.uint8)
    masks = model.masks(model.encode(np.ascontiguousarray(turned[0]), np.ascontiguousarray(after)))
    if masks is None:
        raise InputError(f"{model.name} has no change masks, and only these are adapted; start from another")
    is_object = [name.startswith(OBJECTS) for name in masks.classes]
    change = masks.probabilities[:, is_object].sum(axis=1)
    return np.rot90(change[..., ::-1] if mirror else change, -quarters, (1, 2))


def pick_unchanged(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Chips that are taken as unchanged, (N,): those of the lower half of the scores that are below
    UNCHANGED_BELOW."""
    picked = np.zeros(len(scores), bool)
    picked[np.argsort(scores, kind="stable")[: round(UNCHANGED_SHARE * len(scores))]] = True
    return picked & (scores < UNCHANGED_BELOW)


def write_ground(
    folder: Path, model: ChangeModel, chips: Sequence[AdaptChip], source: str, seed: int
) -> dict[str, str]:
    """Write the tiles of the chips, in a folder for each pixel size; returns what provenance says about them.

    Raises: InputError for less than MIN_CHIPS chips, OutputError.
    """
    if len(chips) < MIN_CHIPS:
        raise InputError(
            f"{source}: {len(chips) or 'no'} full chips of {model.chip_px} px with data at both dates, and "
            f"{MIN_CHIPS} are needed; give more or larger pairs"
        )
    unchanged = pick_unchanged(change_scores(model, chips))
    rng = np.random.default_rng(seed)
    with staged_folder(folder) as scratch:
        for index, (chip, both) in enumerate(zip(chips, unchanged.tolist(), strict=True)):
            size = "" if chip.gsd_m is None else f"{chip.gsd_m:.3g}"
            place = scratch / (f"{size}m" if size else "unknown")
            place.mkdir(exist_ok=True)
            if size:
                (place / GSD_FILE).write_text(f"{size}\n", encoding="utf-8")
            dates = [chip.before, chip.after] if both else [(chip.before, chip.after)[rng.integers(2)]]
            for date, suffix in zip(dates, (".png", AFTER_SUFFIX), strict=False):
                Image.fromarray(date.transpose(1, 2, 0)).save(place / f"{index:05d}{suffix}")
        counts = f"{len(chips)} chips of {Path(source).name}, {int(unchanged.sum())} taken as unchanged"
        summary = {"adapted_from": model.label, "adapted_to": counts}
        write_atomic(scratch / SUMMARY, json.dumps(summary) + "\n")
    log.info("%s", counts)
    return summary


def read_summary(folder: Path) -> dict[str, str]:
    """What `write_ground` returned. Raises: InputError where it has not finished."""
    try:
        summary: dict[str, Any] = parse_json(read_text(folder / SUMMARY))
    except OSError as error:
        raise InputError(f"{folder}: holds no tiles to resume with; leave out `resume=True`") from error
    return {key: str(value) for key, value in summary.items()}
