"""Chip grid: windows, footprints and 3x3 cells of the chips of a raster; arithmetic, opens no file.

Pixel coordinates are (column, row) from the upper left corner of the raster, in pixels, x right and y down.
Polygons are in ground coordinates and made from corners, so a rotated raster has rotated chips.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from shapely.affinity import affine_transform
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.geobox import GeoBox, Window, pixel_polygon

__all__ = ["Chip", "ChipGrid", "chip_offsets", "ground_shares"]

CHIP_ID = re.compile(r"r(\d{1,9})_c(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Chip:
    """Square input of the model. In a raster smaller than it, `window` holds its real pixels and the rest is
    padding."""

    row: int
    col: int
    window: Window
    size: int
    transform: Affine  # of the raster, not of the chip
    ground_share: float = 1.0  # of its ground that is its own, and inside the area of interest
    aoi_share: float | None = None  # share of its ground inside the area of interest; None without one

    @property
    def chip_id(self) -> str:
        """Name by pixel offsets such as r00256_c00512, independent of overlap and area of interest."""
        return f"r{self.window.row_off:05d}_c{self.window.col_off:05d}"

    @property
    def footprint(self) -> Polygon:
        """Ground polygon of the real pixels of the chip."""
        col, row, width, height = self.window
        return pixel_polygon(self.transform, col, row, col + width, row + height)

    def cell(self, row: int, col: int) -> Polygon:
        """Ground polygon of one of 3x3 cells, (0, 0) at the upper left: a third of the chip's square in each
        direction, cut to real pixels.

        A cell that lies wholly in the padding is an empty polygon.
        """
        if not (0 <= row < 3 and 0 <= col < 3):
            raise ValueError(f"cell ({row}, {col}) is not in a 3x3 grid")
        left, right = (min(self.size * edge / 3, self.window.width) for edge in (col, col + 1))
        top, bottom = (min(self.size * edge / 3, self.window.height) for edge in (row, row + 1))
        if left == right or top == bottom:
            return Polygon()
        x, y = self.window.col_off, self.window.row_off
        return pixel_polygon(self.transform, x + left, y + top, x + right, y + bottom)


@dataclass(frozen=True)
class ChipGrid:
    """All chips of a raster, row by row. The last row and column shift inwards, so that every chip is full.

    A raster smaller than a chip gives one chip, whose window is the raster. With `keep`, a shape on the
    ground, only chips that share area with it are iterated and counted; their names stay the same.

    >>> geobox = GeoBox(600, 256, Affine.identity())
    >>> [chip.chip_id for chip in ChipGrid(geobox, size=256)]
    ['r00000_c00000', 'r00000_c00256', 'r00000_c00344']
    """

    geobox: GeoBox
    size: int = 256
    overlap: int = 0
    keep: BaseGeometry | None = None

    def __post_init__(self) -> None:
        width, height = self.geobox.width, self.geobox.height
        if width < 1 or height < 1 or self.size < 1:
            raise ValueError(f"no chips of {self.size} px in a raster of {width} x {height} px")
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"an overlap of {self.overlap} px needs chips larger than {self.size} px")

    @property
    def rows(self) -> int:
        return self._count(self.geobox.height)

    @property
    def cols(self) -> int:
        return self._count(self.geobox.width)

    def _count(self, length: int) -> int:
        return 1 + max(0, math.ceil((length - self.size) / (self.size - self.overlap)))

    def _offset(self, index: int, length: int) -> int:
        return max(0, min(index * (self.size - self.overlap), length - self.size))

    def __getitem__(self, row_col: tuple[int, int]) -> Chip:
        row, col = row_col
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"chip ({row}, {col}) is not in a grid of {self.rows} x {self.cols}")
        width, height = self.geobox.width, self.geobox.height
        window = Window(
            self._offset(col, width), self._offset(row, height), min(self.size, width), min(self.size, height)
        )
        if self.keep is None:
            rows, cols = self._axis_shares
            return Chip(
                row, col, window, self.size, self.geobox.transform, float(rows[row] * cols[col]), None
            )
        return Chip(
            row, col, window, self.size, self.geobox.transform, *self._shares_in_aoi[:, row, col].tolist()
        )

    def intersecting(self, window: Window) -> Iterator[Chip]:
        """Chips that share pixels with a window, row by row; `keep` is ignored."""
        col_off, row_off, width, height = window
        rows = self._intersecting(row_off, row_off + height, self.geobox.height)
        cols = self._intersecting(col_off, col_off + width, self.geobox.width)
        return (self[row, col] for row in rows for col in cols)

    def _intersecting(self, start: int, stop: int, length: int) -> list[int]:
        stride = self.size - self.overlap
        first, last = max(0, (start - self.size) // stride), self._count(length) - 1
        candidates = [*range(min(first, last), min(stop // stride, last) + 1)]
        if (
            candidates[-1] != last
        ):  # the last one is shifted inwards, and so may begin earlier than its index says
            candidates.append(last)
        return [index for index in candidates if start - self.size < self._offset(index, length) < stop]

    def shares_among(self, present: NDArray[np.bool_], answered: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(rows, cols): `ground_share` where only chips of `present` exist, and ground belongs to those of
        `answered` wherever one of them covers it; both masks are (rows, cols)."""
        shares: NDArray[np.float64] = self._shares(present, answered)[0]
        return shares

    def __len__(self) -> int:
        return self.rows * self.cols if self.keep is None else len(self._selected)

    def __iter__(self) -> Iterator[Chip]:
        every = ((row, col) for row in range(self.rows) for col in range(self.cols))
        for row, col in every if self.keep is None else self._selected.tolist():
            yield self[row, col]

    @cached_property
    def _offsets(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Offsets of the rows and of the columns of chips, in pixels."""
        width, height = self.geobox.width, self.geobox.height
        return (
            np.array([self._offset(row, height) for row in range(self.rows)]),
            np.array([self._offset(col, width) for col in range(self.cols)]),
        )

    @cached_property
    def _axis_shares(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of each row and of each column of chips that is its own; a chip's share is their product."""
        row_offs, col_offs = self._offsets
        return (
            ground_shares(row_offs, np.zeros(1, int), (self.size, 1)).ravel(),
            ground_shares(np.zeros(1, int), col_offs, (1, self.size)).ravel(),
        )

    @cached_property
    def _keep_px(self) -> BaseGeometry:
        """`keep` in pixels, where every chip is an upright rectangle."""
        inverse = ~self.geobox.transform
        return affine_transform(self.keep, (inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f))

    def _rectangles(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.object_]:
        """Windows of chips as polygons in pixels."""
        row_offs, col_offs = self._offsets
        ends = (
            np.minimum(col_offs[cols] + self.size, self.geobox.width),
            np.minimum(row_offs[rows] + self.size, self.geobox.height),
        )
        boxes: NDArray[np.object_] = shapely.box(col_offs[cols], row_offs[rows], *ends)
        return boxes

    @cached_property
    def _selected(self) -> NDArray[np.intp]:  # (N, 2) rows and columns, in order
        """Chips that share area with `keep`."""
        keep = self._keep_px
        row_offs, col_offs = self._offsets
        xmin, ymin, xmax, ymax = keep.bounds if not keep.is_empty else (0, 0, -1, -1)
        near_cols = np.flatnonzero((col_offs < xmax) & (col_offs + self.size > xmin))
        near_rows = np.flatnonzero((row_offs < ymax) & (row_offs + self.size > ymin))
        rows, cols = (index.ravel() for index in np.meshgrid(near_rows, near_cols, indexing="ij"))
        rectangles = self._rectangles(rows, cols)
        shapely.prepare(keep)
        selected = shapely.intersects(keep, rectangles) & ~shapely.touches(keep, rectangles)
        return np.stack([rows[selected], cols[selected]], axis=1)

    @cached_property
    def _shares_in_aoi(self) -> NDArray[np.float64]:  # (2, rows, cols)
        """`ground_share` and `aoi_share` of the chips; 0 for those that are not selected."""
        selected = np.zeros((self.rows, self.cols), bool)
        selected[*self._selected.T] = True
        return self._shares(selected)

    def _shares(
        self, present: NDArray[np.bool_], answered: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:  # (2, rows, cols)
        """`ground_share` and `aoi_share` of chips where only those of `present` exist; 0 for the others."""
        shares = np.zeros((2, self.rows, self.cols))
        if present.any():
            rows, cols = _extent(present.max(axis=1)), _extent(present.max(axis=0))
            size = min(self.size, self.geobox.height), min(self.size, self.geobox.width)
            row_offs, col_offs = self._offsets[0][rows], self._offsets[1][cols]
            near = present[rows, cols]
            first = None if answered is None else answered[rows, cols]
            if self.keep is None:
                shares[:, rows, cols] = ground_shares(row_offs, col_offs, size, near, first), near
            else:
                inside = _shares_inside(self._keep_px, row_offs, col_offs, size, near, first)
                shares[:, rows, cols] = inside
        return shares


def _extent(flags: NDArray[np.bool_]) -> slice:
    """Slice from the first to the last true value."""
    indices = np.flatnonzero(flags)
    return slice(indices[0], indices[-1] + 1)


def chip_offsets(chip_id: object) -> tuple[int, int] | None:
    """Row and column of the upper left pixel of a chip, from its name; None for another name.

    >>> chip_offsets("r00256_c00512")
    (256, 512)
    """
    match = CHIP_ID.fullmatch(str(chip_id))
    return (int(match[1]), int(match[2])) if match else None


def ground_shares(
    row_offs: NDArray[np.integer],
    col_offs: NDArray[np.integer],
    size: tuple[int, int],
    selected: NDArray[np.bool_] | None = None,
    answered: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Share of each chip's ground that is its own: what several chips cover is divided evenly among them.

    The shares times the areas of the chips add up to the area of their union. A chip without an answer owns
    only ground that no answered chip covers.

    Args:
        row_offs, col_offs: increasing offsets of the rows and columns of chips, in pixels.
        size: height and width of every chip, px.
        selected: (rows, cols), chips that exist; None: all. The others have a share of 0.
        answered: (rows, cols), those of them that have an answer; None: all.

    >>> ground_shares(np.array([0]), np.array([0, 256, 344]), (256, 256))
    array([[1.      , 0.671875, 0.671875]])
    """
    if selected is None:
        selected = np.ones((len(row_offs), len(col_offs)), bool)
    rows, cols = _Segments.of(row_offs, size[0]), _Segments.of(col_offs, size[1])
    areas_px = np.outer(np.diff(rows.edges), np.diff(cols.edges))
    return _own_px(areas_px, rows, cols, selected, answered) / (size[0] * size[1])


def _own_px(
    areas_px: NDArray[Any],
    rows: _Segments,
    cols: _Segments,
    selected: NDArray[np.bool_],
    answered: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """(rows, cols): own ground of each chip, of areas (row segments, column segments) that count, in px²."""
    if answered is not None:
        first = selected & answered
        left_px = np.where(_sums_within(first, rows.covering, cols.covering) > 0, 0, areas_px)
        return _own_px(areas_px, rows, cols, first) + _own_px(left_px, rows, cols, selected & ~answered)
    counts = _sums_within(selected, rows.covering, cols.covering)
    own_px = np.divide(areas_px, counts, out=np.zeros(counts.shape), where=counts > 0)
    return np.where(selected, _sums_within(own_px, rows.spans, cols.spans), 0.0)


def _shares_inside(
    area: BaseGeometry,
    row_offs: NDArray[np.integer],
    col_offs: NDArray[np.integer],
    size: tuple[int, int],
    selected: NDArray[np.bool_],
    answered: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:  # (2, rows, cols)
    """Share of each chip that is its own ground inside an area in pixels, and its share inside the area."""
    rows, cols = _Segments.of(row_offs, size[0]), _Segments.of(col_offs, size[1])
    inside_px = np.zeros((len(rows.edges) - 1, len(cols.edges) - 1))
    lefts, rights = cols.edges[:-1], cols.edges[1:]
    for row, (top, bottom) in enumerate(pairwise(rows.edges.tolist())):
        # cut to a row first: an area may have many vertices
        strip = shapely.intersection(area, shapely.box(cols.edges[0], top, cols.edges[-1], bottom))
        if strip.is_empty:
            continue
        boxes = shapely.box(lefts, top, rights, bottom)
        inside_px[row] = (rights - lefts) * (bottom - top)
        shapely.prepare(strip)
        on_border = ~shapely.covers(strip, boxes)
        inside_px[row, on_border] = shapely.area(shapely.intersection(strip, boxes[on_border]))
    whole_px = np.where(selected, _sums_within(inside_px, rows.spans, cols.spans), 0.0)
    return np.stack([_own_px(inside_px, rows, cols, selected, answered), whole_px]) / (size[0] * size[1])


@dataclass(frozen=True, slots=True)
class _Segments:
    """Segments of an axis between the edges of chips; consecutive rows or columns of chips cover each."""

    edges: NDArray[np.integer]  # (segments + 1,) px
    covering: tuple[NDArray[np.intp], NDArray[np.intp]]  # (segments,) range of the chips that cover each
    spans: tuple[NDArray[np.intp], NDArray[np.intp]]  # (chips,) range of the segments of each

    @classmethod
    def of(cls, offsets: NDArray[np.integer], length: int) -> _Segments:
        """Segments of chips of one length, px."""
        edges = np.unique(np.concatenate([offsets, offsets + length]))
        starts, ends = edges[:-1], offsets + length
        covering = np.searchsorted(ends, starts, "right"), np.searchsorted(offsets, starts, "right")
        return cls(edges, covering, (np.searchsorted(edges, offsets), np.searchsorted(edges, ends)))


def _sums_within(
    values: NDArray[Any],
    rows: tuple[NDArray[np.intp], NDArray[np.intp]],
    cols: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> NDArray[Any]:
    """Sums of (rows, cols) values over each pair of a range of rows and a range of columns (from, to)."""
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.result_type(values, np.int64))
    sums[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    along_rows = sums[rows[1]] - sums[rows[0]]
    within: NDArray[Any] = along_rows[:, cols[1]] - along_rows[:, cols[0]]
    return within
