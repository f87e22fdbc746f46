"""A mask that comes block by block, as polygons that know nothing of blocks.

Pixels of one class that share an edge are one region, however many blocks it lies in. Coordinates are pixels
of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy import ndimage
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.grid import Window

__all__ = ["Region", "Regions", "simplified"]

LEAST_PX = 0.5  # no corner of a pixel goes, but points in the middle of an edge do

Labels = NDArray[np.uint8]  # (height, width): 0 is background, as is what `add` is told


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of a class."""

    value: int
    shape: BaseGeometry
    pixels: int
    mean: float  # of the weights that its pixels came with


@dataclass(slots=True)
class _Piece:
    """What of a region lies in one block."""

    value: int
    shape: BaseGeometry
    pixels: int
    weight: float
    first: tuple[int, int]  # row and column of its first pixel


@dataclass
class Regions:
    """Collects regions from blocks, which come in rows from the upper left; all blocks of a row are equally
    high. Memory grows with what is found."""

    width: int  # of the grid
    _pieces: list[_Piece] = field(default_factory=list)
    _same: list[int] = field(default_factory=list)  # a piece -> an earlier one of its region, or itself
    _above: NDArray[np.int64] = field(init=False)  # pieces in the last row of pixels before; -1: none
    _below: NDArray[np.int64] = field(init=False)
    _left: NDArray[np.int64] | None = None  # those in the last column of the block before

    def __post_init__(self) -> None:
        self._above = np.full(self.width, -1, np.int64)
        self._below = self._above.copy()

    def add(self, window: Window, labels: Labels, weights: NDArray[np.floating]) -> None:
        """The block of a window: classes, 0 for none, and a weight for each pixel."""
        if window.col_off == 0:
            self._above, self._left = self._below, None
            self._below = np.full(self.width, -1, np.int64)
        parts, values = _connected(labels)
        numbers = self._take(window, parts, values, weights)
        across = slice(window.col_off, window.col_off + window.width)
        self._join(self._above[across], numbers[parts[0]])
        if self._left is not None:
            self._join(self._left, numbers[parts[:, 0]])
        self._below[across] = numbers[parts[-1]]
        self._left = numbers[parts[:, -1]]

    def _take(
        self, window: Window, parts: NDArray[np.int32], values: list[int], weights: NDArray[np.floating]
    ) -> NDArray[np.int64]:
        """Remember the parts of a block; their numbers, -1 for the background."""
        begin = len(self._pieces)
        if values:
            flat = parts.ravel()
            pixels = np.bincount(flat, minlength=len(values) + 1)
            sums = np.bincount(flat, weights.ravel().astype(float), len(values) + 1)
            firsts = np.full(len(values) + 1, flat.size)
            np.minimum.at(firsts, flat, np.arange(flat.size))
            drawn: dict[int, BaseGeometry] = {}
            for geometry, number in shapes(parts, mask=parts > 0, connectivity=4):
                drawn[int(number)] = shape(geometry)
            moved = shapely.transform(
                np.array([drawn[number] for number in range(1, len(values) + 1)], dtype=object),
                lambda points: points + np.array([window.col_off, window.row_off]),
            )
            for number, (value, polygon) in enumerate(zip(values, moved, strict=True), start=1):
                row, col = divmod(int(firsts[number]), parts.shape[1])
                first = (window.row_off + row, window.col_off + col)
                self._pieces.append(_Piece(value, polygon, int(pixels[number]), float(sums[number]), first))
                self._same.append(begin + number - 1)
        return np.concatenate([[-1], np.arange(begin, len(self._pieces))])

    def _join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Pieces that lie side by side, pixel by pixel, are one region if they are of one class."""
        both = (one >= 0) & (other >= 0)
        for first, second in {*zip(one[both].tolist(), other[both].tolist(), strict=True)}:
            if self._pieces[first].value == self._pieces[second].value:
                roots = sorted((self._root(first), self._root(second)))
                self._same[roots[1]] = roots[0]

    def _root(self, piece: int) -> int:
        while self._same[piece] != piece:
            self._same[piece] = self._same[self._same[piece]]
            piece = self._same[piece]
        return piece

    def found(self) -> list[Region]:
        """All regions, by their first pixel in rows from the upper left."""
        members: dict[int, list[_Piece]] = {}
        for number, piece in enumerate(self._pieces):
            members.setdefault(self._root(number), []).append(piece)
        told = []
        for pieces in members.values():
            polygon = pieces[0].shape
            if len(pieces) > 1:
                polygon = shapely.union_all([piece.shape for piece in pieces])
            pixels = sum(piece.pixels for piece in pieces)
            mean = sum(piece.weight for piece in pieces) / pixels
            first = min(piece.first for piece in pieces)
            told.append((first, Region(pieces[0].value, polygon, pixels, mean)))
        return [region for _, region in sorted(told, key=lambda one: one[0])]


def _connected(labels: Labels) -> tuple[NDArray[np.int32], list[int]]:
    """Numbers from 1 of the connected parts (0 for the background), and the class of each."""
    parts = np.zeros(labels.shape, np.int32)
    values: list[int] = []
    for value in np.unique(labels[labels > 0]).tolist():
        numbered, count = ndimage.label(labels == value)
        np.copyto(parts, numbered + len(values), where=numbered > 0)
        values += [value] * count
    return parts, values


def simplified(shapes: Sequence[BaseGeometry], tolerance_px: float) -> list[BaseGeometry]:
    """Polygons of pixels with fewer corners (Visvalingam and Whyatt: a corner goes while its triangle has
    less than the tolerance squared).

    Edges that two of them share stay shared, none crosses another, and no hole is lost: all are drawn anew
    together. Where the tolerance is below LEAST_PX, all corners of the pixels stay.
    """
    if not len(shapes):
        return []
    polygons = shapely.normalize(np.array(shapes, dtype=object))  # a ring begins at a corner that is one
    tree = shapely.STRtree(polygons)
    one, other = tree.query(polygons, predicate="intersects")
    beside = np.unique(one[one != other])
    # two that lie side by side must have the same corners along their edge
    polygons[beside] = shapely.transform(shapely.segmentize(polygons[beside], 1.0), np.round)
    return [*shapely.coverage_simplify(polygons, max(tolerance_px, LEAST_PX))]
