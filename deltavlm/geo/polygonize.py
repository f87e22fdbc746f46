"""Polygons from masks: of one chip, or of a mosaic that arrives block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.geobox import GeoBox, Window, pixel_polygon
from deltavlm.geo.grid import Chip

__all__ = [
    *("Polygonizer", "Region", "fill_holes", "merge_regions", "pixels_within", "polygonize_chip"),
    "simplify_polygons",
]

CLOSING_PX = 1e-3  # more than half the distance, so that parts exactly that far apart join
MIN_TOLERANCE_PX = 0.5  # removes points in the middle of an edge, and no corner of a pixel

Labels = NDArray[np.uint8]  # (rows, cols) class of each pixel; 0 is background


def polygonize_chip(labels: Labels, chip: Chip) -> Iterator[tuple[int, BaseGeometry]]:
    """Connected components of each class other than 0, as (class, polygon in the chip's ground coordinates).

    labels: (rows, cols), any resolution, over the whole square of the chip; what lies in the padding of a
    small raster is cut off. Pixels that share an edge are connected.
    """
    rows, cols = labels.shape
    window = chip.window
    transform = (
        chip.transform
        * Affine.translation(window.col_off, window.row_off)
        * Affine.scale(chip.size / cols, chip.size / rows)
    )
    footprint = chip.footprint
    for geometry, value in shapes(labels, mask=labels > 0, connectivity=4, transform=transform):
        polygon = shape(geometry).intersection(footprint)
        if polygon.area > 0:
            yield int(value), polygon


def pixels_within(area: BaseGeometry, geobox: GeoBox, window: Window) -> NDArray[np.bool_]:
    """(rows, cols): pixels of a window whose center lies in an area, which is in the CRS of the grid."""
    col, row, width, height = window
    part = shapely.intersection(area, pixel_polygon(geobox.transform, col, row, col + width, row + height))
    transform = geobox.transform * Affine.translation(col, row)
    within = np.zeros((height, width), np.uint8)
    if not part.is_empty:
        rasterize([part], out=within, transform=transform)
    return within.astype(bool)


@dataclass(frozen=True, slots=True)
class Region:
    """Connected component of a class in the mosaic; pixels that share an edge are connected."""

    value: int  # class
    polygon: BaseGeometry  # in pixels of the grid
    pixels: int  # area
    mean: float  # of the weights of its pixels
    sums: NDArray[np.float64]  # (planes,) sums over its pixels


@dataclass(slots=True)
class _Component:
    """Connected component within one block; a region is made of one or more of them."""

    value: int
    polygon: BaseGeometry
    pixels: int
    weight: float  # sum over its pixels
    sums: NDArray[np.float64]  # (planes,) the same of each plane
    first: tuple[int, int]  # row and column of its first pixel


@dataclass
class Polygonizer:
    """Streaming polygonizer of a mosaic whose blocks arrive in rows from the upper left.

    All blocks of a row must have the same height. Components that touch across the edge of a block are merged
    by union-find, so regions do not depend on the size of blocks. Memory grows with the number of regions.
    """

    width: int  # of the grid
    _components: list[_Component] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)  # union-find forest over the components
    # components along the edges of blocks, by pixel; -1 is background
    _previous_row: NDArray[np.int64] = field(init=False)  # last row of pixels of the row of blocks above
    _last_row: NDArray[np.int64] = field(init=False)  # the same of the current row of blocks
    _last_col: NDArray[np.int64] | None = None  # last column of pixels of the block to the left

    def __post_init__(self) -> None:
        self._previous_row = np.full(self.width, -1, np.int64)
        self._last_row = self._previous_row.copy()

    def add(
        self,
        window: Window,
        labels: Labels,
        weights: NDArray[np.floating],
        planes: NDArray[np.uint8] | None = None,
    ) -> None:
        """Add the block of a window: (height, width) classes, 0 for background, a weight per pixel, and
        (planes, height, width) values to sum over each region."""
        if window.col_off == 0:
            self._previous_row, self._last_col = self._last_row, None
            self._last_row = np.full(self.width, -1, np.int64)
        components, values = _label_components(labels)
        if planes is None:
            planes = np.zeros((0, *labels.shape), np.uint8)
        indices = self._append(window, components, values, (weights, *planes))
        cols = slice(window.col_off, window.col_off + window.width)
        self._merge(self._previous_row[cols], indices[components[0]])
        if self._last_col is not None:
            self._merge(self._last_col, indices[components[:, 0]])
        self._last_row[cols] = indices[components[-1]]
        self._last_col = indices[components[:, -1]]

    def _append(
        self,
        window: Window,
        components: NDArray[np.int32],
        values: list[int],
        planes: Sequence[NDArray[np.floating | np.uint8]],
    ) -> NDArray[np.int64]:
        """Append the components of a block; returns the index of each by its number, -1 for background.

        planes: the weights, and what is to be summed over each region beside them.
        """
        begin = len(self._components)
        if values:
            inside = np.flatnonzero(components)
            numbers, length = components.ravel()[inside], len(values) + 1
            pixels = np.bincount(numbers, minlength=length)
            sums = np.stack([np.bincount(numbers, plane.ravel()[inside], length) for plane in planes], axis=1)
            firsts = np.full(length, components.size)
            np.minimum.at(firsts, numbers, inside)
            outlines: dict[int, BaseGeometry] = {}
            for geometry, number in shapes(components, mask=components > 0, connectivity=4):
                outlines[int(number)] = shape(geometry)
            polygons = shapely.transform(
                np.array([outlines[number] for number in range(1, len(values) + 1)], dtype=object),
                lambda points: points + np.array([window.col_off, window.row_off]),
            )
            for number, (value, polygon) in enumerate(zip(values, polygons, strict=True), start=1):
                row, col = divmod(int(firsts[number]), components.shape[1])
                first = (window.row_off + row, window.col_off + col)
                weight, *others = sums[number]
                self._components.append(
                    _Component(value, polygon, int(pixels[number]), weight, np.array(others), first)
                )
                self._parents.append(begin + number - 1)
        return np.concatenate([[-1], np.arange(begin, len(self._components))])

    def _merge(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> None:
        """Merge components of the same class that touch across an edge; both arrays run along that edge."""
        touching = (before >= 0) & (after >= 0)
        for first, second in {*zip(before[touching].tolist(), after[touching].tolist(), strict=True)}:
            if self._components[first].value == self._components[second].value:
                roots = sorted((self._root(first), self._root(second)))
                self._parents[roots[1]] = roots[0]

    def _root(self, index: int) -> int:
        while self._parents[index] != index:
            self._parents[index] = self._parents[self._parents[index]]
            index = self._parents[index]
        return index

    def regions(self) -> list[Region]:
        """All regions, in the order of their first pixels: by rows from the upper left."""
        groups: dict[int, list[_Component]] = {}
        for index, component in enumerate(self._components):
            groups.setdefault(self._root(index), []).append(component)
        ordered = []
        for components in groups.values():
            polygon = components[0].polygon
            if len(components) > 1:
                polygon = shapely.union_all([component.polygon for component in components])
            pixels = sum(component.pixels for component in components)
            mean = sum(component.weight for component in components) / pixels
            sums = np.sum([component.sums for component in components], axis=0)
            first = min(component.first for component in components)
            ordered.append((first, Region(components[0].value, polygon, pixels, mean, sums)))
        return [region for _, region in sorted(ordered, key=lambda item: item[0])]


def _label_components(labels: Labels) -> tuple[NDArray[np.int32], list[int]]:
    """Connected components, numbered from 1 (0 is background), and the class of each."""
    from scipy import ndimage  # slow to import, and only polygons need it

    components = np.zeros(labels.shape, np.int32)
    values: list[int] = []
    for value in np.unique(labels[labels > 0]).tolist():
        numbered, count = ndimage.label(labels == value)
        np.copyto(components, numbered + len(values), where=numbered > 0)
        values += [value] * count
    return components, values


def simplify_polygons(polygons: Sequence[BaseGeometry], tolerance_px: float) -> list[BaseGeometry]:
    """Simplify the polygons of pixels as one coverage (Visvalingam and Whyatt 1993: a corner is removed while
    its triangle has an area below the tolerance squared).

    Edges that two polygons share stay shared, none crosses another, and no hole is lost. With a tolerance
    below MIN_TOLERANCE_PX all corners of the pixels stay.
    """
    if not len(polygons):
        return []
    coverage = shapely.normalize(np.array(polygons, dtype=object))  # a ring begins at one of its corners
    tree = shapely.STRtree(coverage)
    first, second = tree.query(coverage, predicate="intersects")
    adjacent = np.unique(first[first != second])
    # two adjacent polygons must have the same vertices along their common edge
    coverage[adjacent] = shapely.transform(shapely.segmentize(coverage[adjacent], 1.0), np.round)
    return [*shapely.coverage_simplify(coverage, max(tolerance_px, MIN_TOLERANCE_PX))]


def merge_regions(
    regions: Sequence[Region], outlines: Sequence[BaseGeometry], distance_px: float
) -> tuple[list[Region], list[BaseGeometry]]:
    """Regions of one class whose outlines are at most `distance_px` apart become one, the gap filled.

    The order is that of the first of each. A merged outline is the closing of its parts: dilated, then
    eroded, by half the distance.
    """
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    if not len(regions):
        return [], []
    values = np.array([region.value for region in regions])
    first, second = shapely.STRtree(outlines).query(outlines, predicate="dwithin", distance=distance_px)
    same = values[first] == values[second]
    links = coo_array((np.ones(same.sum()), (first[same], second[same])), shape=(len(regions),) * 2)
    _, groups = connected_components(links, directed=False)
    merged, shapes_px = [], []
    for group in dict.fromkeys(groups.tolist()):
        members = np.flatnonzero(groups == group).tolist()
        if len(members) == 1:
            merged.append(regions[members[0]])
            shapes_px.append(outlines[members[0]])
            continue
        parts = [regions[member] for member in members]
        pixels = sum(part.pixels for part in parts)
        merged.append(
            Region(
                parts[0].value,
                shapely.union_all([part.polygon for part in parts]),
                pixels,
                sum(part.mean * part.pixels for part in parts) / pixels,
                np.sum([part.sums for part in parts], axis=0),
            )
        )
        union = shapely.union_all([outlines[member] for member in members])
        dilated = union.buffer(distance_px / 2 + CLOSING_PX, join_style="mitre")
        shapes_px.append(dilated.buffer(-distance_px / 2 - CLOSING_PX, join_style="mitre").union(union))
    return merged, shapes_px


def fill_holes(polygon: BaseGeometry, area_px: float) -> BaseGeometry:
    """The polygon without its holes below an area, in square pixels."""

    def without_small_holes(part: shapely.Polygon) -> shapely.Polygon:
        holes = [ring for ring in part.interiors if shapely.Polygon(ring).area >= area_px]
        return shapely.Polygon(part.exterior, holes)

    parts = [without_small_holes(part) for part in shapely.get_parts(polygon)]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
