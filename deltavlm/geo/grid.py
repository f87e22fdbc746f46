"""The chips that a raster is cut into: windows, footprints and 3x3 cells. Arithmetic only, nothing is opened.

Pixel coordinates are (column, row) from the upper left corner of the raster, in pixels, x right and y down.
Polygons are in the coordinates that `transform` gives, made from corners: a rotated raster has rotated chips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from shapely.affinity import affine_transform
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

__all__ = ["Chip", "ChipGrid", "Window", "polygon"]


class Window(NamedTuple):
    """A rectangle of whole pixels; `rasterio.windows.Window(*window)` is the same rectangle."""

    col_off: int
    row_off: int
    width: int
    height: int


def polygon(transform: Affine, left: float, top: float, right: float, bottom: float) -> Polygon:
    """The pixel rectangle as a polygon on the ground; its corners start at the upper left one."""
    corners = ((left, top), (left, bottom), (right, bottom), (right, top))
    return Polygon([transform * corner for corner in corners])


@dataclass(frozen=True, slots=True)
class Chip:
    """One square that the model sees. In a raster smaller than the square, `window` is what is real of it."""

    row: int
    col: int
    window: Window
    size: int
    transform: Affine  # of the whole raster

    @property
    def chip_id(self) -> str:
        """Named by pixel offsets, so that the name stays when overlap or area change: r00256_c00512."""
        return f"r{self.window.row_off:05d}_c{self.window.col_off:05d}"

    @property
    def footprint(self) -> Polygon:
        """The ground under the real pixels of the chip."""
        col, row, width, height = self.window
        return polygon(self.transform, col, row, col + width, row + height)

    def cell(self, row: int, col: int) -> Polygon:
        """One of 3x3 cells, (0, 0) at the upper left: thirds of the square the model saw, cut to real pixels.

        A cell that lies wholly in the padding is an empty polygon.
        """
        if not (0 <= row < 3 and 0 <= col < 3):
            raise ValueError(f"cell ({row}, {col}) is not in a 3x3 grid")
        left, right = (min(self.size * edge / 3, self.window.width) for edge in (col, col + 1))
        top, bottom = (min(self.size * edge / 3, self.window.height) for edge in (row, row + 1))
        if left == right or top == bottom:
            return Polygon()
        x, y = self.window.col_off, self.window.row_off
        return polygon(self.transform, x + left, y + top, x + right, y + bottom)


@dataclass(frozen=True)
class ChipGrid:
    """All chips of a raster, row by row. The last row and column shift inwards, so that every chip is full.

    A raster smaller than a chip gives one chip, whose window is the raster. With `keep`, a shape on the
    ground, only chips that share area with it are iterated and counted; their names stay the same.

    >>> [chip.chip_id for chip in ChipGrid(600, 256, Affine.identity(), size=256)]
    ['r00000_c00000', 'r00000_c00256', 'r00000_c00344']
    """

    width: int
    height: int
    transform: Affine
    size: int = 256
    overlap: int = 0
    keep: BaseGeometry | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or self.size < 1:
            raise ValueError(f"no chips of {self.size} px in a raster of {self.width} x {self.height} px")
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"an overlap of {self.overlap} px needs chips larger than {self.size} px")

    @property
    def rows(self) -> int:
        return self._count(self.height)

    @property
    def cols(self) -> int:
        return self._count(self.width)

    def _count(self, length: int) -> int:
        return 1 + max(0, math.ceil((length - self.size) / (self.size - self.overlap)))

    def _offset(self, index: int, length: int) -> int:
        return max(0, min(index * (self.size - self.overlap), length - self.size))

    def __getitem__(self, row_col: tuple[int, int]) -> Chip:
        row, col = row_col
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"chip ({row}, {col}) is not in a grid of {self.rows} x {self.cols}")
        window = Window(
            self._offset(col, self.width),
            self._offset(row, self.height),
            min(self.size, self.width),
            min(self.size, self.height),
        )
        return Chip(row, col, window, self.size, self.transform)

    def touching(self, window: Window) -> Iterator[Chip]:
        """The chips that share pixels with a window, row by row; `keep` does not count."""
        col_off, row_off, width, height = window
        rows = self._touching(row_off, row_off + height, self.height)
        cols = self._touching(col_off, col_off + width, self.width)
        return (self[row, col] for row in rows for col in cols)

    def _touching(self, start: int, stop: int, length: int) -> list[int]:
        stride = self.size - self.overlap
        first, last = max(0, (start - self.size) // stride), self._count(length) - 1
        near = [*range(min(first, last), min(stop // stride, last) + 1)]
        if near[-1] != last:  # which is shifted inwards, and so may begin before its turn
            near.append(last)
        return [index for index in near if start - self.size < self._offset(index, length) < stop]

    def __len__(self) -> int:
        return self.rows * self.cols if self.keep is None else len(self._kept)

    def __iter__(self) -> Iterator[Chip]:
        every = ((row, col) for row in range(self.rows) for col in range(self.cols))
        for row, col in every if self.keep is None else self._kept.tolist():
            yield self[row, col]

    @cached_property
    def _kept(self) -> NDArray[np.intp]:  # (N, 2) rows and columns, in order
        """The chips that share area with `keep`, found in pixels, where every chip is an upright square."""
        inverse = ~self.transform
        keep = affine_transform(self.keep, (inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f))
        lefts = np.array([self._offset(col, self.width) for col in range(self.cols)])
        tops = np.array([self._offset(row, self.height) for row in range(self.rows)])
        left, top, right, bottom = keep.bounds if not keep.is_empty else (0, 0, -1, -1)
        near_cols = np.flatnonzero((lefts < right) & (lefts + self.size > left))
        near_rows = np.flatnonzero((tops < bottom) & (tops + self.size > top))
        rows, cols = (index.ravel() for index in np.meshgrid(near_rows, near_cols, indexing="ij"))
        ends = (
            np.minimum(lefts + self.size, self.width)[cols],
            np.minimum(tops + self.size, self.height)[rows],
        )
        squares = shapely.box(lefts[cols], tops[rows], *ends)
        shapely.prepare(keep)
        kept = shapely.intersects(keep, squares) & ~shapely.touches(keep, squares)
        return np.stack([rows[kept], cols[kept]], axis=1)
