"""Facts of a scene (counts, cells, shares), derived from its ground truth; the source of sentences.

Facts come from the arrays alone, so they stay right when a scene is cropped, rotated, or its dates swapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES, CHANGE_CODE, COVER_CLASSES
from deltavlm.tasks.locate import LABELS

Array = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MIN_INSTANCE_SHARE = 0.0004  # of the image, from which a building or road counts (26 px of 256 x 256)
MIN_CELL_SHARE = 0.01  # of a cell, from which it is named
MAIN_CELLS_SHARE = 0.7  # of all change, from which it lies in one row or column of the 3x3 grid
MIN_GROUND_SHARE = 0.004  # of the image, from which changed trees, water or ground are mentioned
MIN_REPLACED_TREES = 0.3  # of new buildings and roads; trees are seldom most of a plot, yet seen to go

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
    ground_cells: dict[str, tuple[str, ...]]  # of the kinds in `ground_shares`
    changed_share: float  # of the image, of any kind

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
        cells[kind] = _named_cells(mask & np.isin(instances, ids)) if len(ids) else ()
    change_shares = np.bincount(change.ravel(), minlength=len(CHANGE_CLASSES)) / area
    ground_shares = {kind: float(change_shares[CHANGE_CODE[kind]]) for kind in CHANGE_CLASSES[5:]}
    ground_shares = {kind: share for kind, share in ground_shares.items() if share >= MIN_GROUND_SHARE}
    replaced_cover = None
    if counts["building_built"] + counts["road_built"]:
        new = (change == CHANGE_CODE["building_built"]) | (change == CHANGE_CODE["road_built"])
        cover_shares = np.bincount(cover[new], minlength=len(COVER_CLASSES)) / max(1, new.sum())
        has_trees = cover_shares[COVER_CLASSES.index("trees")] > MIN_REPLACED_TREES
        replaced_cover = "trees" if has_trees else COVER_CLASSES[int(cover_shares.argmax())]
    return Facts(
        counts,
        cells,
        ground_shares,
        replaced_cover,
        main_cells(cell_shares(change > 0)),
        {kind: _named_cells(change == CHANGE_CODE[kind]) for kind in ground_shares},
        float((change > 0).mean()),
    )


def _named_cells(mask: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """Cells that a mask covers enough of; the one with most of it where none is."""
    shares = cell_shares(mask)
    is_named = shares >= min(MIN_CELL_SHARE, shares.max())
    return tuple(label for label, on in zip(LABELS, is_named, strict=True) if on)


def main_cells(shares: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Cells of the row and column that hold at least MAIN_CELLS_SHARE of the change; all rows or columns
    where none does.

    shares: changed share of each cell, (9,).
    """
    mass = shares.reshape(3, 3)
    rows, cols = (mass.sum(axis=axis) / max(mass.sum(), 1e-9) >= MAIN_CELLS_SHARE for axis in (1, 0))
    is_main = (rows if rows.any() else ~rows)[:, None] & (cols if cols.any() else ~cols)[None, :]
    return tuple(label for label, on in zip(LABELS, is_main.ravel(), strict=True) if on)
