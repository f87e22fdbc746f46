"""What the truth of a scene says in numbers: counts, cells, shares. Everything that words are made of.

Facts come from the arrays alone, so they stay right when a scene is cut, turned, or its dates are swapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES, CHANGE_CODE, COVER_CLASSES
from deltavlm.tasks.locate import LABELS

Array = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MIN_INSTANCE_SHARE = (
    0.0004  # share of the picture that a building or road must show to be counted (26 px of 256 x 256)
)
MIN_CELL_SHARE = 0.01  # share of a cell that must have changed for the cell to be named
MOST = 0.7  # share of all change from which on it is said to lie in one row or column of the 3x3 grid
MIN_GROUND_SHARE = 0.004  # share of the picture below which changed trees, water or ground go unmentioned

SWAPPED = np.array(
    [
        CHANGE_CODE[
            {
                "building_built": "building_removed",
                "building_removed": "building_built",
                "road_built": "road_removed",
                "road_removed": "road_built",
                "trees_removed": "trees_planted",
                "trees_planted": "trees_removed",
                "water_new": "water_gone",
                "water_gone": "water_new",
                "ground_opened": "ground_closed",
                "ground_closed": "ground_opened",
            }.get(name, name)
        ]
        for name in CHANGE_CLASSES
    ],
    np.uint8,
)
"""What each change is when after becomes before: `SWAPPED[change]`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One pair's truth."""

    counts: dict[str, int]  # building_built, building_removed, road_built, road_removed -> how many
    cells: dict[str, tuple[str, ...]]  # the same four -> labels of the 3x3 cells, row by row
    ground: dict[str, float]  # trees_removed, water_new, ... -> share of the picture, where worth mentioning
    replaced: str | None  # what stood before under most of the new buildings and roads
    where: tuple[str, ...]  # cells that hold most of the changed pixels, of any kind

    @property
    def changed(self) -> bool:
        return any(self.counts.values()) or bool(self.ground)

    @property
    def building_cells(self) -> tuple[str, ...]:
        return merged(self.cells["building_built"], self.cells["building_removed"])

    @property
    def road_cells(self) -> tuple[str, ...]:
        return merged(self.cells["road_built"], self.cells["road_removed"])


def merged(*lists: tuple[str, ...]) -> tuple[str, ...]:
    """Labels of any of the lists, row by row."""
    return tuple(label for label in LABELS if any(label in some for some in lists))


def cell_shares(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Share of each of the nine cells that the mask covers, row by row, (9,)."""
    rows = np.linspace(0, mask.shape[0], 4).round().astype(int)
    cols = np.linspace(0, mask.shape[1], 4).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(mask.astype(np.float64), rows[:-1], axis=0), cols[:-1], axis=1)
    shares: npt.NDArray[np.float64] = (sums / (np.diff(rows)[:, None] * np.diff(cols)[None, :])).ravel()
    return shares


def facts_of(change: Array, instances: Array, cover: Array) -> Facts:
    """Facts of truth arrays, (height, width) each, at any resolution."""
    area = change.size
    counts, cells = {}, {}
    for kind in ("building_built", "building_removed", "road_built", "road_removed"):
        here = change == CHANGE_CODE[kind]
        sizes = np.bincount(instances[here], minlength=1)
        seen = np.flatnonzero(sizes >= max(2.0, MIN_INSTANCE_SHARE * area))
        seen = seen[seen > 0]
        counts[kind] = len(seen)
        shares = cell_shares(here & np.isin(instances, seen)) if len(seen) else np.zeros(9)
        named = shares >= MIN_CELL_SHARE
        if len(seen) and not named.any():
            named[shares.argmax()] = True
        cells[kind] = tuple(label for label, on in zip(LABELS, named, strict=True) if on)
    whole = np.bincount(change.ravel(), minlength=len(CHANGE_CLASSES)) / area
    ground = {
        kind: float(whole[CHANGE_CODE[kind]])
        for kind in CHANGE_CLASSES[5:]
        if whole[CHANGE_CODE[kind]] >= MIN_GROUND_SHARE
    }
    new = (change == CHANGE_CODE["building_built"]) | (change == CHANGE_CODE["road_built"])
    replaced = None
    if counts["building_built"] + counts["road_built"]:
        under = np.bincount(cover[new], minlength=len(COVER_CLASSES)) / max(1, new.sum())
        # Trees are seldom most of a plot, and yet what one sees go.
        replaced = (
            "trees" if under[COVER_CLASSES.index("trees")] > 0.3 else COVER_CLASSES[int(under.argmax())]
        )
    return Facts(counts, cells, ground, replaced, most(cell_shares(change > 0).reshape(3, 3)))


def most(mass: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Cells in which most of a mass (3, 3) lies: those of one row where it holds MOST of it, of one column
    likewise."""
    rows, cols = (mass.sum(axis=axis) / max(mass.sum(), 1e-9) >= MOST for axis in (1, 0))
    held = (rows if rows.any() else ~rows)[:, None] & (cols if cols.any() else ~cols)[None, :]
    return tuple(label for label, on in zip(LABELS, held.ravel(), strict=True) if on)
