"""Facts of a scene (counts, cells, shares), derived from its ground truth; the source of sentences.

Facts come from the arrays alone, so they stay right when a scene is cropped, rotated, or its dates swapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES, CHANGE_CODE, COVER_CLASSES, COVER_CODE
from deltavlm.tasks.locate import LABELS

Array = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MIN_INSTANCE_SHARE = 0.0004  # of the image, from which a building or road counts (26 px of 256 x 256)
MIN_CELL_SHARE = 0.01  # of a cell, from which it is named
MAIN_CELLS_SHARE = 0.7  # of all change, from which it lies in one row or column of the 3x3 grid
MIN_GROUND_SHARE = 0.004  # of the image, from which changed trees, water or ground are mentioned
MIN_REPLACED_TREES = 0.3  # of new buildings and roads; trees are seldom most of a plot, yet seen to go
MIN_REPLACED_SHARE = 0.5  # of new buildings and roads, from which other cover is named
LARGE_BUILDING_SHARE = 0.04  # of the image, the median size from which buildings are no houses
ROADSIDE_REACH = 0.8  # of the side of a building: how far from a road it still stands along it

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
"""Change codes after the dates are swapped: `SWAPPED[change]`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about one pair."""

    counts: dict[str, int]  # of building_built, building_removed, road_built, road_removed
    cells: dict[str, tuple[str, ...]]  # of the same four: labels of the 3x3 cells, row by row
    ground_shares: dict[str, float]  # trees_removed, water_new, ... -> share of the image, if mentioned
    replaced_cover: str | None  # cover before under most of the new buildings and roads
    main_cells: tuple[str, ...]  # cells that hold most of the changed pixels, of any kind
    construction_cells: tuple[str, ...]  # the same of new buildings and roads alone; empty without any
    along: Literal["road", "new road"] | None  # what more than half of the new buildings stand along
    is_large: bool  # new buildings, or removed ones where none is new, are larger than houses

    @property
    def changed(self) -> bool:
        """True when anything is counted or mentioned."""
        return any(self.counts.values()) or bool(self.ground_shares)

    @property
    def building_cells(self) -> tuple[str, ...]:
        """Cells of built or removed buildings."""
        return union_of_labels(self.cells["building_built"], self.cells["building_removed"])

    @property
    def road_cells(self) -> tuple[str, ...]:
        """Cells of built or removed roads."""
        return union_of_labels(self.cells["road_built"], self.cells["road_removed"])


def union_of_labels(*lists: tuple[str, ...]) -> tuple[str, ...]:
    """Labels in any of the lists, row by row."""
    return tuple(label for label in LABELS if any(label in labels for labels in lists))


def cell_shares(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Share of each of the nine cells that the mask covers, row by row, (9,)."""
    rows = np.linspace(0, mask.shape[0], 4).round().astype(int)
    cols = np.linspace(0, mask.shape[1], 4).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(mask.astype(np.float64), rows[:-1], axis=0), cols[:-1], axis=1)
    shares: npt.NDArray[np.float64] = (sums / (np.diff(rows)[:, None] * np.diff(cols)[None, :])).ravel()
    return shares


def facts_of(change: Array, instances: Array, cover: Array) -> Facts:
    """Facts of ground truth arrays, (height, width) each, at any resolution."""
    area = change.size
    counts, cells = {}, {}
    for kind in ("building_built", "building_removed", "road_built", "road_removed"):
        mask = change == CHANGE_CODE[kind]
        sizes = np.bincount(instances[mask], minlength=1)
        ids = np.flatnonzero(sizes >= max(2.0, MIN_INSTANCE_SHARE * area))
        ids = ids[ids > 0]
        counts[kind] = len(ids)
        shares = cell_shares(mask & np.isin(instances, ids)) if len(ids) else np.zeros(9)
        is_named = shares >= MIN_CELL_SHARE
        if len(ids) and not is_named.any():
            is_named[shares.argmax()] = True
        cells[kind] = tuple(label for label, on in zip(LABELS, is_named, strict=True) if on)
    change_shares = np.bincount(change.ravel(), minlength=len(CHANGE_CLASSES)) / area
    ground_shares = {kind: float(change_shares[CHANGE_CODE[kind]]) for kind in CHANGE_CLASSES[5:]}
    ground_shares = {kind: share for kind, share in ground_shares.items() if share >= MIN_GROUND_SHARE}
    new = (change == CHANGE_CODE["building_built"]) | (change == CHANGE_CODE["road_built"])
    has_new = counts["building_built"] + counts["road_built"] > 0
    kind = "building_built" if counts["building_built"] else "building_removed"
    sizes = np.bincount(instances[change == CHANGE_CODE[kind]], minlength=1)[1:]
    sizes = sizes[sizes >= max(2.0, MIN_INSTANCE_SHARE * area)]
    return Facts(
        counts,
        cells,
        ground_shares,
        replaced_cover(cover[new]) if has_new else None,
        main_cells(cell_shares(change > 0)),
        main_cells(cell_shares(new)) if has_new else (),
        _along(change, instances, cover) if counts["building_built"] else None,
        bool(len(sizes)) and float(np.median(sizes)) >= LARGE_BUILDING_SHARE * area,
    )


def replaced_cover(codes: Array) -> str | None:
    """Cover that most of the pixels had, from their codes (N,); None where none had most.

    A road counts as built land. From MIN_REPLACED_TREES on it is trees.
    """
    shares = np.bincount(codes, minlength=len(COVER_CLASSES)) / max(1, len(codes))
    by_name = dict(zip(COVER_CLASSES, shares.tolist(), strict=True))
    by_name["built"] += by_name.pop("road")
    if by_name["trees"] > MIN_REPLACED_TREES:
        return "trees"
    name = max(by_name, key=by_name.__getitem__)
    return name if by_name[name] >= MIN_REPLACED_SHARE else None


def _along(change: Array, instances: Array, cover: Array) -> Literal["road", "new road"] | None:
    """Kind of road that more than half of the new buildings stand along: their boxes, grown by ROADSIDE_REACH
    of their side, meet one."""
    from scipy import ndimage  # slow to import, and only scenes need it

    buildings = np.where(change == CHANGE_CODE["building_built"], instances, 0)
    is_old = cover == COVER_CODE["road"]
    is_any = is_old | (change == CHANGE_CODE["road_built"])
    if not is_any.any():
        return None
    min_size = max(2.0, MIN_INSTANCE_SHARE * change.size)
    old, any_, number = 0, 0, 0
    for index, box in enumerate(ndimage.find_objects(buildings), start=1):
        size = 0 if box is None else int((buildings[box] == index).sum())
        if size < min_size:
            continue
        reach = max(1, round(ROADSIDE_REACH * size**0.5))
        near = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
        number += 1
        old += bool(is_old[near].any())
        any_ += bool(is_any[near].any())
    if 2 * old > number:
        return "road"
    return "new road" if 2 * any_ > number else None


def main_cells(shares: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Cells of the row and column that hold at least MAIN_CELLS_SHARE of the change; all rows or columns
    where none does.

    shares: changed share of each cell, (9,).
    """
    mass = shares.reshape(3, 3)
    rows, cols = (mass.sum(axis=axis) / max(mass.sum(), 1e-9) >= MAIN_CELLS_SHARE for axis in (1, 0))
    is_main = (rows if rows.any() else ~rows)[:, None] & (cols if cols.any() else ~cols)[None, :]
    return tuple(label for label, on in zip(LABELS, is_main.ravel(), strict=True) if on)
