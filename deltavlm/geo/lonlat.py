"""Polygons in longitude and latitude: edges that bend, poles, the antimeridian, missing places.

A straight edge of a raster is in general not straight in longitude and latitude; an outline round a pole does
not close there; and a corner may lie outside of what the CRS can express.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from deltavlm.errors import OutputError
from deltavlm.geo.crs import are_beyond_edge

if TYPE_CHECKING:
    from rasterio.crs import CRS

__all__ = [
    "cut_at_180",
    "hull_in_lonlat",
    "lonlat_bounds",
    "polygon_of_ring",
    "shapes_to_lonlat",
    "to_lonlat",
]

DECIMALS = 7  # of a degree: a centimetre
TOLERANCE = 1e-3  # of the longest edge: how far a straight edge may lie from where it is on the ground
MAX_ROUNDS = 8  # of the subdivision of edges, into four each time
LATTICE = 32  # cells along a side, in which the part of a polygon is found that has a place
BISECTIONS = 20
TURN = 359.9  # degrees: what is wider reaches 180 degrees from both sides
POLE = 90 - 1e-9  # degrees of latitude from which a longitude means nothing

Points = NDArray[np.float64]  # (N, 2)
Shapes = NDArray[np.object_]  # shapely geometries, or None
ToLonLat = Callable[[BaseGeometry], BaseGeometry]
TransformPoints = Callable[[Points], Points]


def to_lonlat(crs: CRS | pyproj.CRS | None) -> ToLonLat:
    """Function that transforms polygons from `crs` to longitude and latitude by RFC 7946; without a CRS they
    keep their coordinates.

    Edges get points where they bend, and a polygon with a pole in it reaches latitude 90. Of a polygon that
    the CRS cannot place as a whole, the part with a place remains, or an empty polygon.

    Raises:
        OutputError: there is no transformation from `crs` to WGS 84.
    """
    if crs is None:
        return lambda geometry: geometry
    transform = _point_transform(crs)
    if crs.is_geographic:
        return lambda geometry: cut_at_180(shapely.transform(geometry, transform))

    def lonlat(geometry: BaseGeometry) -> BaseGeometry:
        if geometry.geom_type == "Polygon" and not geometry.is_empty and not len(geometry.interiors):
            straight = _straight_ring(shapely.get_coordinates(geometry), transform)
            if straight is not None:
                return cut_at_180(shapely.Polygon(straight))
        placed = [_to_lonlat(polygon, transform) for polygon in shapely.get_parts(geometry)]
        return cut_at_180(placed[0] if len(placed) == 1 else shapely.union_all(placed))

    return lonlat


def shapes_to_lonlat(shapes: Shapes, crs: pyproj.CRS) -> Shapes:
    """Array version of `to_lonlat`, neither rounded nor oriented; None for polygons that become empty.

    Only the few polygons that bend, cross the antimeridian, or have a pole in them take the exact, slow way
    of `to_lonlat`.

    Raises:
        OutputError: as `to_lonlat`.
    """
    transform = _point_transform(crs)
    lonlat: Shapes = shapely.transform(shapes, transform)
    exact = to_lonlat(crs)
    for index in np.flatnonzero(_need_exact(shapes, lonlat, transform, bool(crs.is_geographic))):
        shape = shapes[index]
        cut = None if shape is None or shape.is_empty else exact(shape)
        lonlat[index] = None if cut is None or cut.is_empty else cut
    return lonlat


def _straight_ring(ring: Points, transform: TransformPoints) -> Points | None:
    """Ring in longitude and latitude where its corners alone make it, as of a small chip; else None."""
    count = len(ring)
    lonlat = transform(np.concatenate([ring, (ring[1:] + ring[:-1]) / 2]))
    corners, middles = lonlat[:count], lonlat[count:]
    (west, south), (east, north) = corners.min(axis=0), corners.max(axis=0)
    if not (-180 <= west <= east <= 180 and -90 < south <= north < 90 and east - west < 90):
        return None
    away = np.abs((corners[1:] + corners[:-1]) / 2 - middles).max()
    steps = np.abs(corners[1:] - corners[:-1]).max(axis=0)
    return corners if away <= TOLERANCE * steps.min() else None


def _need_exact(
    shapes: Shapes, lonlat: Shapes, transform: TransformPoints, is_geographic: bool
) -> NDArray[np.bool_]:
    """(shapes,): True where corners alone do not make the polygon in longitude and latitude."""
    west, south, east, north = shapely.bounds(lonlat).T
    with np.errstate(invalid="ignore"):
        need: NDArray[np.bool_] = ~((east - west < 90) & (west >= -180) & (east <= 180))
        need |= ~((south >= -90) & (north <= 90))
    if is_geographic or not len(shapes):
        return need
    corners, index = shapely.get_coordinates(shapes, return_index=True)
    edge = np.flatnonzero(index[:-1] == index[1:])  # and what leads from a ring to the next, which is no harm
    ends = shapely.get_coordinates(lonlat)
    middle, expected = (0.5 * (points[edge] + points[edge + 1]) for points in (corners, ends))
    with np.errstate(invalid="ignore"):
        away = _ground_degrees(expected, transform(middle))
        lengths = np.zeros(len(shapes))
        np.maximum.at(lengths, index[edge], _ground_degrees(ends[edge], ends[edge + 1]))
        need[index[edge[~(away <= TOLERANCE * lengths[index[edge]])]]] = True
    return need


def _point_transform(crs: CRS | pyproj.CRS) -> TransformPoints:
    """Transformation of points from a CRS to longitude and latitude; from a geographic one, longitudes keep
    their count, so that 200 degrees stay 200.

    Raises:
        OutputError: there is none.
    """
    wkt = crs.to_wkt()
    source = pyproj.CRS.from_wkt(wkt)
    try:
        transformer = pyproj.Transformer.from_crs(source, pyproj.CRS.from_epsg(4326), always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise OutputError(
            f"the CRS {source.name!r} does not lead to longitude and latitude, as this format has them; "
            "write .gpkg, .fgb or .parquet"
        ) from error
    unit = np.degrees(source.axis_info[0].unit_conversion_factor) if source.is_geographic else None

    def transform(points: Points) -> Points:
        lonlat = np.stack(transformer.transform(points[:, 0], points[:, 1]), axis=1)
        if unit is not None:
            with np.errstate(invalid="ignore"):
                lonlat[:, 0] += 360 * np.round((points[:, 0] * unit - lonlat[:, 0]) / 360)
        no_place = are_beyond_edge(points, wkt) | ~np.isfinite(lonlat).all(axis=1)
        lonlat[no_place] = np.inf  # PROJ gives half of some points
        return lonlat

    return transform


def _wrap(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences of longitudes, from -180 to 180."""
    return degrees - 360 * np.round(degrees / 360)


def _ground_degrees(first: Points, second: Points) -> NDArray[np.float64]:
    """Distances between near points on the ground, in degrees of latitude."""
    cosine = np.cos(np.radians((first[:, 1] + second[:, 1]) / 2))
    distances: NDArray[np.float64] = np.hypot(
        _wrap(second[:, 0] - first[:, 0]) * cosine, second[:, 1] - first[:, 1]
    )
    return distances


def _to_lonlat(polygon: BaseGeometry, transform: TransformPoints, *, is_cut: bool = False) -> BaseGeometry:
    """Polygon in longitude and latitude, not cut at 180; empty where it has no place.

    is_cut: it has been cut to the part with a place, so what has none now is as narrow as rounding.
    """
    if polygon.is_empty:
        return shapely.Polygon()
    rings = [np.asarray(ring.coords)[:, :2] for ring in (polygon.exterior, *polygon.interiors)]
    inside = transform(np.array(polygon.representative_point().coords))[0]
    bent = [_bend(ring, inside, transform, is_cut=is_cut) for ring in rings]
    if not is_cut and not all(np.isfinite(ring).all() for ring in bent):
        parts = shapely.get_parts(_placed_part(polygon, transform))
        return shapely.union_all(
            [_to_lonlat(part, transform, is_cut=True) for part in parts if part.area > 0]
        )
    placed = [
        polygon_of_ring(
            lonlat[np.isfinite(lonlat).all(axis=1)], is_ccw=shapely.is_ccw(shapely.LinearRing(ring))
        )
        for lonlat, ring in zip(bent, rings, strict=True)
    ]
    exterior, *holes = placed
    if not holes:
        return exterior
    return cut_at_180(exterior).difference(shapely.union_all([*map(cut_at_180, holes)]))


def _bend(ring: Points, inside: Points, transform: TransformPoints, *, is_cut: bool) -> Points:
    """Ring in longitude and latitude, with points on its edges where they bend; infinite where a point of it
    has no place, unless the polygon has been cut already.

    inside: longitude and latitude of a point in the polygon, as the ring may be a spot on the ground.
    """
    lonlat = transform(ring)
    if not np.isfinite(lonlat).all():
        return lonlat
    size = max(_ground_degrees(lonlat[:-1], lonlat[1:]).max(), np.abs(inside[1] - lonlat[:, 1]).max())
    tolerance = max(TOLERANCE * size, 10**-DECIMALS)
    quarters = np.array([0.25, 0.5, 0.75])[:, None]
    for _ in range(MAX_ROUNDS):
        between = ring[:-1, None] + quarters * (ring[1:] - ring[:-1])[:, None]  # (edges, 3, 2)
        found = transform(between.reshape(-1, 2)).reshape(between.shape)
        if not is_cut and not np.isfinite(found).all():
            return np.full_like(lonlat, np.inf)
        start, end = lonlat[:-1].copy(), lonlat[1:].copy()
        for at_pole, other in ((start, end), (end, start)):  # where any longitude is right
            at_pole[:, 0] = np.where(np.abs(at_pole[:, 1]) > POLE, other[:, 0], at_pole[:, 0])
        step = end - start
        step[:, 0] = _wrap(step[:, 0])
        expected = start[:, None] + quarters * step[:, None]
        found = np.where(np.isfinite(found), found, expected)
        away = _ground_degrees(expected.reshape(-1, 2), found.reshape(-1, 2)).reshape(-1, 3).max(axis=1)
        is_long = _ground_degrees(start, end) > tolerance
        bends = (away > tolerance) | (is_long & (np.abs(step[:, 0]) > 90))
        if not bends.any():
            break
        after = np.repeat(np.flatnonzero(bends) + 1, 3)
        ring = np.insert(ring, after, between[bends].reshape(-1, 2), axis=0)
        lonlat = np.insert(lonlat, after, found[bends].reshape(-1, 2), axis=0)
    return lonlat


def polygon_of_ring(lonlat: Points, *, is_ccw: bool) -> BaseGeometry:
    """Polygon of a closed ring of near points in longitude and latitude, which may cross the antimeridian and
    go round a pole: the one to the left of a counter-clockwise ring that goes east is the North Pole.

    It is not cut: its longitudes go on beyond 180.
    """
    lonlat = _leave_poles(lonlat)
    if len(lonlat) < 4:
        return shapely.Polygon()
    steps = _wrap(np.diff(lonlat[:, 0]))
    lonlat[1:, 0] = lonlat[0, 0] + np.cumsum(steps)
    round_deg = lonlat[-1, 0] - lonlat[0, 0]
    if abs(round_deg) > 180:
        pole = 90.0 if (round_deg > 0) == is_ccw else -90.0
        ends = np.array([(lonlat[-1, 0], pole), (lonlat[0, 0], pole)])
        lonlat = np.concatenate([lonlat, ends])
    return shapely.make_valid(shapely.Polygon(lonlat))


def _leave_poles(lonlat: Points) -> Points:
    """Closed ring in which each point at a pole, where any longitude is right, has become two: with the
    longitude of the point before, and of the one after. Empty where all points are at a pole."""
    at_pole = np.abs(lonlat[:, 1]) > POLE
    if not at_pole.any():
        return lonlat.copy()
    if at_pole.all():
        return lonlat[:0]
    first = int(at_pole.argmin())
    ring = [*lonlat[first:-1].tolist(), *lonlat[: first + 1].tolist()]
    points: list[tuple[float, float]] = []
    for index, (lon, lat) in enumerate(ring):
        if abs(lat) > POLE:
            following = next(lon for lon, lat in ring[index:] if abs(lat) <= POLE)
            points += [(points[-1][0], lat), (following, lat)]
        else:
            points.append((lon, lat))
    return np.array(points)


def _placed_part(polygon: BaseGeometry, transform: TransformPoints) -> BaseGeometry:
    """Part of a polygon in its CRS whose points have a longitude and latitude."""
    xmin, ymin, xmax, ymax = polygon.bounds
    nodes = np.stack(
        np.meshgrid(np.linspace(xmin, xmax, LATTICE + 1), np.linspace(ymin, ymax, LATTICE + 1)), 2
    )

    def has_place(points: Points) -> NDArray[np.bool_]:
        placed: NDArray[np.bool_] = np.all(np.isfinite(transform(points.reshape(-1, 2))), axis=1)
        return placed.reshape(points.shape[:-1])

    def last_placed(first: Points, second: Points) -> Points:
        """Last point with a place between points with and without one."""
        for _ in range(BISECTIONS):
            middle = (first + second) / 2
            inside = has_place(middle)[:, None]
            first, second = np.where(inside, middle, first), np.where(inside, second, middle)
        return first

    placed = has_place(nodes)
    corners = np.stack([placed[:-1, :-1], placed[:-1, 1:], placed[1:, 1:], placed[1:, :-1]])
    around = np.stack([nodes[:-1, :-1], nodes[:-1, 1:], nodes[1:, 1:], nodes[1:, :-1]])
    whole = corners.all(axis=0)
    cells = [*shapely.box(*around[0][whole].T, *around[2][whole].T)]
    for row, col in zip(*np.nonzero(corners.any(axis=0) & ~whole), strict=True):
        inside, square = corners[:, row, col], around[:, row, col]
        points = [square[inside]]
        for first, second in ((0, 1), (1, 2), (2, 3), (3, 0)):
            if inside[first] != inside[second]:
                pair = (first, second) if inside[first] else (second, first)
                points.append(last_placed(square[[pair[0]]], square[[pair[1]]]))
        cells.append(shapely.MultiPoint(np.concatenate(points)).convex_hull)
    return shapely.union_all(cells).intersection(polygon)


def cut_at_180(geometry: BaseGeometry) -> BaseGeometry:
    """Polygon in longitude and latitude by RFC 7946: cut at the antimeridian, rounded to seven decimals, with
    counter-clockwise outer rings."""
    if geometry.is_empty:
        return geometry
    if geometry.bounds[1] < -90 or geometry.bounds[3] > 90:
        geometry = geometry.intersection(shapely.box(geometry.bounds[0], -90, geometry.bounds[2], 90))
    geometry = count_from(geometry, -180, 360)
    polygons = [polygon for polygon in shapely.get_parts(geometry) if polygon.area > 0]
    polygons = [
        orient(shapely.transform(polygon, lambda points: np.round(points, DECIMALS))) for polygon in polygons
    ]
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


def count_from(geometry: BaseGeometry, west: float, turn: float) -> BaseGeometry:
    """Polygons with their longitudes counted from `west` to `west + turn`, and cut there."""
    if geometry.is_empty or (west <= geometry.bounds[0] and geometry.bounds[2] <= west + turn):
        return geometry
    xmin, ymin, xmax, ymax = geometry.bounds
    pieces = []
    for number in range(math.floor((xmin - west) / turn), math.ceil((xmax - west) / turn)):
        world = shapely.box(west + turn * number, ymin, west + turn * (number + 1), ymax)
        pieces.append(translate(geometry.intersection(world), -turn * number))
    return shapely.union_all(pieces, grid_size=10**-DECIMALS)


def lonlat_bounds(geometry: BaseGeometry) -> tuple[float, float, float, float]:
    """Bounds (west, south, east, north) of polygons cut at 180 degrees; west > east where they go on beyond
    it, as in RFC 7946."""
    west, south, east, north = shapely.bounds(geometry).tolist()
    if east - west > TURN:
        parts = shapely.bounds(shapely.get_parts(geometry))
        parts = parts[np.argsort(parts[:, 0])]
        reach = np.maximum.accumulate(parts[:-1, 2])
        gaps = parts[1:, 0] - reach
        if len(gaps) and gaps.max() > 0:
            west, east = float(parts[gaps.argmax() + 1, 0]), float(reach[gaps.argmax()])
    return west, south, east, north


def hull_in_lonlat(geometry: BaseGeometry) -> BaseGeometry:
    """Convex hull of polygons cut at 180 degrees, over the antimeridian where they cross it."""
    west, _, east, _ = lonlat_bounds(geometry)
    if west > east:
        parts = [translate(part, 360 if part.bounds[0] < west else 0) for part in shapely.get_parts(geometry)]
        geometry = MultiPolygon(parts)
    return cut_at_180(shapely.convex_hull(geometry))
