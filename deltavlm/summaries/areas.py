"""Division of the ground of chips and polygons among areas, so that all sums over areas add up.

The ground of a chip is divided among the areas that it shares ground with, and so is a polygon of change.
A chip is counted in the area that contains its centroid, so in one at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from deltavlm.errors import InputError
from deltavlm.geo.lonlat import shapes_to_lonlat
from deltavlm.summaries.results import Results, Shapes

__all__ = ["OUTSIDE", "Areas", "Parts", "divide", "require_crs", "single_area"]

OUTSIDE = "outside of all areas"
MIN_SHARE = 1e-6  # of a chip or polygon; what an area has of it below that is rounding

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Parts:
    """Parts of chips, or of polygons, in areas: arrays (parts,), sorted by area."""

    areas: Indices  # -1: outside of all areas
    rows: Indices  # of the chips or polygons
    shares: NDArray[np.float64]  # of their ground

    @classmethod
    def sorted(cls, areas: Indices, rows: Indices, shares: NDArray[np.float64]) -> Parts:
        """Parts in any order."""
        order = np.argsort(areas, kind="stable")
        return cls(areas[order], rows[order], shares[order])

    @classmethod
    def whole(cls, areas: Indices) -> Parts:
        """Each chip or polygon in one area, as a whole."""
        return cls.sorted(areas, np.arange(len(areas)), np.ones(len(areas)))

    def of(self, area: int) -> tuple[Indices, NDArray[np.float64]]:
        """Rows and shares of one area."""
        within = slice(*np.searchsorted(self.areas, [area, area + 1]))
        return self.rows[within], self.shares[within]


@dataclass(frozen=True)
class Areas:
    """Names and polygons of areas, the area of each chip's centre, and the parts of chips and polygons."""

    kind: str  # for people: "area", "pair", "cell of 1000 m in EPSG:32633"
    names: Sequence[str]
    shapes: Shapes  # (areas,): polygons in longitude and latitude, or None
    area_of_chip: Indices  # (chips,): index of the area, -1 for none
    chip_parts: Parts
    polygon_parts: Parts
    empty_count: int = 0  # areas of the file without ground of a chip, which are left out


def single_area(results: Results) -> Areas:
    """One area of all chips, without an outline."""
    of_chips, of_polygons = (
        np.zeros(len(frame), dtype=np.intp) for frame in (results.chips, results.polygons)
    )
    shapes = np.full(1, None, dtype=object)
    return Areas("whole", ["all"], shapes, of_chips, Parts.whole(of_chips), Parts.whole(of_polygons))


def divide(results: Results, kind: str, names: Sequence[str], shapes: Shapes, crs: pyproj.CRS) -> Areas:
    """Areas with the parts of chips and polygons in them, without those that no chip shares ground with.

    Raises:
        InputError: there is no transformation to the CRS of the areas.
    """
    try:
        to_crs = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise InputError(
            f"coordinates cannot be transformed to the CRS of the areas ({error}); save them in another one"
        ) from error
    tree = shapely.STRtree(shapes)
    area_of_chip = _areas_of_centres(results, tree, to_crs)
    chips, polygons = (
        _parts(
            shapely.transform(lonlat, lambda points: np.stack(to_crs.transform(*points.T), axis=1)),
            tree,
            aoi_shares,
        )
        for lonlat, aoi_shares in (
            (results.lonlat, results.numbers("aoi_share")),
            (results.polygons_lonlat, None),
        )
    )
    used = np.union1d(area_of_chip, chips.areas)
    used = used[used >= 0]
    new_index = np.full(len(shapes) + 1, -1, dtype=np.intp)  # the last one is for -1
    new_index[used] = np.arange(len(used))
    return Areas(
        kind,
        [names[index] for index in used],
        shapes_to_lonlat(shapes[used], crs) if len(used) else shapes[used],
        new_index[area_of_chip],
        Parts.sorted(new_index[chips.areas], chips.rows, chips.shares),
        Parts.sorted(new_index[polygons.areas], polygons.rows, polygons.shares),
        empty_count=len(shapes) - len(used),
    )


def _areas_of_centres(results: Results, tree: shapely.STRtree, to_crs: pyproj.Transformer) -> Indices:
    """Area that contains the centre of each chip, -1 for none; on a border the first one."""
    area_of_chip = np.full(len(results.chips), -1, dtype=np.intp)
    has_centre = np.flatnonzero(np.isfinite(results.centres).all(axis=1))
    points = shapely.points(*to_crs.transform(*results.centres[has_centre].T))
    rows, areas = tree.query(points, predicate="intersects")
    area_of_chip[has_centre[rows[::-1]]] = areas[::-1]  # so that the first one is written last
    return area_of_chip


def _parts(shapes: Shapes, tree: shapely.STRtree, aoi_shares: NDArray[np.float64] | None = None) -> Parts:
    """Parts of shapes in the areas of a tree, all in one CRS; a shape without coordinates is outside.

    aoi_shares: share of each shape that lies in the area of interest, NaN for all of it. What counts of a
        chip lies there, and is taken to lie in the areas as far as there is room for it in them.
    """
    shapes = shapes.copy()
    shapes[~np.isfinite(shapely.bounds(shapes)).all(axis=1)] = None
    rows, areas = tree.query(shapes, predicate="intersects")
    whole = shapely.area(shapes)
    common = shapely.intersection(shapes[rows], tree.geometries[areas])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = shapely.area(common) / whole[rows]
    is_part = shares > MIN_SHARE
    rows, areas, shares, common = rows[is_part], areas[is_part], shares[is_part], common[is_part]
    inside: NDArray[np.float64] = np.bincount(rows, shares, len(shapes)).astype(float)
    order = np.argsort(rows, kind="stable")
    several, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
    for row, start, count in zip(several, starts, counts, strict=True):
        if count > 1:  # the areas may overlap
            union = shapely.union_all(common[order[start : start + count]])
            inside[row] = shapely.area(union) / whole[row]
    if aoi_shares is not None:
        whole_part = np.maximum(inside, np.nan_to_num(aoi_shares, nan=1.0))
        whole_part[whole_part <= 0] = 1.0
        shares, inside = shares / whole_part[rows], inside / whole_part
    outside = np.flatnonzero(inside < 1 - MIN_SHARE)
    return Parts.sorted(
        np.concatenate([areas, np.full(len(outside), -1)]),
        np.concatenate([rows, outside]),
        np.concatenate([shares, 1 - inside[outside]]),
    )


def require_crs(results: Results) -> None:
    """Raises: InputError where the chips have no longitude and latitude."""
    if not results.has_crs:
        raise InputError(f"{results.paths[0]}: has no CRS, so its chips lie in no area; leave `by` out")
    if len(results.chips) and shapely.is_missing(results.lonlat).all():
        raise InputError(
            f"{results.paths[0]}: its CRS does not lead to longitude and latitude, so its chips lie in no "
            "area; leave `by` out"
        )
