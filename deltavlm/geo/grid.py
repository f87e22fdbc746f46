"""Chip grid: windows, footprints and 3x3 cells of the chips of a raster; arithmetic, opens no file.

Pixel coordinates are (column, row) from the upper left corner of the raster, in pixels, x right and y down.
Polygons are in ground coordinates and made from corners, so a rotated raster has rotated chips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from shapely.affinity import affine_transform
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.geobox import GeoBox, Window, pixel_polygon

__all__ = ["Chip", "ChipGrid"]


@dataclass(frozen=True, slots=True)
class Chip:
    """Square input of the model. In a raster smaller than it, `window` holds its real pixels and the rest is
    padding."""

    row: int
    col: int
    window: Window
    size: int
    transform: Affine  # of the raster, not of the chip

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
        return Chip(row, col, window, self.size, self.geobox.transform)

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

    def __len__(self) -> int:
        return self.rows * self.cols if self.keep is None else len(self._selected)

    def __iter__(self) -> Iterator[Chip]:
        every = ((row, col) for row in range(self.rows) for col in range(self.cols))
        for row, col in every if self.keep is None else self._selected.tolist():
            yield self[row, col]

    @cached_property
    def _selected(self) -> NDArray[np.intp]:  # (N, 2) rows and columns, in order
        """Chips that share area with `keep`, computed in pixels, where every chip is an upright square."""
        inverse = ~self.geobox.transform
        keep = affine_transform(self.keep, (inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f))
        width, height = self.geobox.width, self.geobox.height
        col_offs = np.array([self._offset(col, width) for col in range(self.cols)])
        row_offs = np.array([self._offset(row, height) for row in range(self.rows)])
        xmin, ymin, xmax, ymax = keep.bounds if not keep.is_empty else (0, 0, -1, -1)
        near_cols = np.flatnonzero((col_offs < xmax) & (col_offs + self.size > xmin))
        near_rows = np.flatnonzero((row_offs < ymax) & (row_offs + self.size > ymin))
        rows, cols = (index.ravel() for index in np.meshgrid(near_rows, near_cols, indexing="ij"))
        ends = np.minimum(col_offs + self.size, width)[cols], np.minimum(row_offs + self.size, height)[rows]
        squares = shapely.box(col_offs[cols], row_offs[rows], *ends)
        shapely.prepare(keep)
        selected = shapely.intersects(keep, squares) & ~shapely.touches(keep, squares)
        return np.stack([rows[selected], cols[selected]], axis=1)
