"""The part of the ground that was asked for: a box, or the areas of a file, in the raster's CRS."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.crs import CRS
from shapely.errors import ShapelyError
from shapely.geometry import shape as shape_of
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.geobox import LONLAT, GeoBox, are_off_globe, project
from deltavlm.geo.location import check_exists

__all__ = ["aoi_from_bbox", "aoi_from_file", "aoi_from_shape", "check_bbox"]

EDGE_POINTS = 20  # a straight edge bends when it is projected
READ_BY_GDAL = (b"SQLite format 3\0", b"fgb\x03", b"\0\0\x27\x0a")  # GeoPackage, FlatGeobuf, shapefile
NAME_OF_CRS = re.compile(r"(urn:ogc:def:crs:)?[A-Za-z]+:[\w.]*:?\w+")
UNLIKE_GEOJSON = (ValueError, TypeError, LookupError, AttributeError)
GIVE_POLYGONS = "give polygons, for example as GeoJSON or GeoPackage"


def aoi_from_bbox(box: tuple[float, float, float, float], box_crs: str, grid: GeoBox) -> BaseGeometry:
    """`xmin, ymin, xmax, ymax` in the grid's CRS; in degrees, xmin > xmax crosses the antimeridian.

    Raises:
        ConfigError: the box is empty, or its CRS unknown.
        RasterError: it lies outside the grid.
    """
    crs = check_bbox(box, box_crs)
    xmin, ymin, xmax, ymax = box
    parts = [(xmin, xmax)] if xmin < xmax else [(xmin, 180.0), (-180.0, xmax)]
    shape = shapely.MultiPolygon([shapely.box(left, ymin, right, ymax) for left, right in parts])
    return _on_grid(shape, crs, grid, _box_name(box))


def check_bbox(box: tuple[float, float, float, float], box_crs: str) -> CRS:
    """The CRS of the box, by itself and without a grid.

    Raises:
        ConfigError: the box is empty, or its CRS unknown.
    """
    try:
        crs = CRS.from_user_input(box_crs)
    except ValueError:  # CRSError is one, and "EPSG:word" gives a bare one
        raise ConfigError(f"bbox CRS {box_crs!r} is not known; write for example EPSG:4326") from None
    xmin, ymin, xmax, ymax = box
    if not (ymin < ymax and (xmin < xmax or (xmin > xmax and crs.is_geographic))):
        raise ConfigError(f"{_box_name(box)} is empty: the order is xmin,ymin,xmax,ymax")
    return crs


def _box_name(box: tuple[float, float, float, float]) -> str:
    return f"bbox {','.join(f'{value:g}' for value in box)}"


def aoi_from_file(path: Path, grid: GeoBox) -> BaseGeometry:
    """All areas of a vector file as one shape in the grid's CRS.

    It is GeoJSON, GeoPackage, FlatGeobuf or a shapefile. No other format is opened, for some of them make
    GDAL read other files or ask servers. GeoJSON is read without GDAL, which follows the address of a CRS.

    Raises:
        RasterError: the file is missing, unreadable, without areas or CRS, or lies outside the grid.
    """
    check_exists(str(path))
    try:
        shapes, crs_told = _shapes_of_file(path)
        union = shapely.union_all(shapely.make_valid(shapes))
    except (RuntimeError, ShapelyError, *UNLIKE_GEOJSON, OSError) as error:  # pyogrio's are RuntimeErrors
        words = str(error).partition("\n")[0]
        raise RasterError(f"{path}: no areas can be read from it ({words}); {GIVE_POLYGONS}") from error
    if union.area == 0:
        raise RasterError(f"{path}: holds no areas; {GIVE_POLYGONS}")
    if not crs_told:
        raise RasterError(f"{path}: has no CRS; save it with one")
    try:
        crs = CRS.from_user_input(crs_told)
    except ValueError as error:
        raise RasterError(f"{path}: its CRS is not known ({error}); save it with another one") from error
    return _on_grid(union, crs, grid, str(path))


def _shapes_of_file(path: Path) -> tuple[Sequence[BaseGeometry], str | None]:
    """All shapes of a vector file, and what it says of its CRS."""
    with path.open("rb") as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b"\x1e \t\r\n")
    if head.startswith(b"{"):
        return _shapes_of_geojson(path.read_text(encoding="utf-8-sig"))
    if not head.startswith(READ_BY_GDAL):
        raise ValueError("it is none of GeoJSON, GeoPackage, FlatGeobuf, shapefile")
    import pyogrio

    meta, _, wkb, _ = pyogrio.raw.read(path, columns=[])
    known = [] if wkb is None else [one for one in wkb if one is not None]
    return shapely.from_wkb(known), meta["crs"]


def _shapes_of_geojson(text: str) -> tuple[list[BaseGeometry], str]:
    """The shapes of GeoJSON, in one object or one a line, and their CRS; none told is longitude and latitude.

    Raises: one of UNLIKE_GEOJSON for text that is none.
    """
    try:
        objects = [json.loads(text)]
    except json.JSONDecodeError:
        objects = [json.loads(line.strip("\x1e\r ")) for line in text.split("\n") if line.strip("\x1e\r ")]
    named = [one["crs"]["properties"]["name"] for one in objects if one.get("crs")]
    if any(not NAME_OF_CRS.fullmatch(name) for name in named) or len({*named}) > 1:
        raise ValueError(f"its CRS {named[0]!r} is not one name such as EPSG:32631")
    shapes = [shape_of(one) for whole in objects for one in _geometries(whole)]
    return shapes, named[0] if named else LONLAT.to_wkt()


def _geometries(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if value["type"] == "FeatureCollection":
        for feature in value["features"]:
            yield from _geometries(feature)
    elif value["type"] != "Feature":
        yield value
    elif value["geometry"] is not None:
        yield value["geometry"]


def aoi_from_shape(shape: BaseGeometry, grid: GeoBox) -> BaseGeometry:
    """Areas in longitude and latitude as a shape in the grid's CRS.

    Raises:
        RasterError: they lie outside the grid.
    """
    return _on_grid(shape, LONLAT, grid, "area of interest")


def _on_grid(shape: BaseGeometry, crs: CRS, grid: GeoBox, name: str) -> BaseGeometry:
    """Project what lies near the grid: a country need not be expressible in the CRS of one image."""
    if are_off_globe(np.reshape(shape.bounds, (2, 2)), crs):
        raise RasterError(f"{name}: is no longitude and latitude, so its CRS looks wrong; give the right one")
    ground = shapely.Polygon(grid.to_ground(grid.outline()))
    try:
        with np.errstate(all="ignore"):  # coordinates may be absurd
            near = _projected_near(shape, crs, ground, grid.crs)
            is_seen = np.isfinite(near.bounds).all() and shapely.intersection(near, ground).area > 0
    except shapely.GEOSException:
        is_seen = False
    if not is_seen:
        raise RasterError(
            f"{name}: has no part of the pair in it, which covers {grid.describe_bounds()}; move it there"
        )
    return near


def _projected_near(shape: BaseGeometry, crs: CRS, ground: BaseGeometry, ground_crs: CRS) -> BaseGeometry:
    """What of `shape` lies on the ground or near it, in the CRS of the ground; perhaps empty."""
    seen_from_shape = project(shapely.get_coordinates(ground), ground_crs, crs)
    if np.isfinite(seen_from_shape).all():
        near = shapely.MultiPoint(seen_from_shape).envelope
        left, bottom, right, top = near.bounds
        shape = shapely.intersection(shape, near.buffer(max(right - left, top - bottom) / 10))
    if shape.area:
        left, bottom, right, top = shape.bounds
        shape = shapely.segmentize(shape, max(right - left, top - bottom) / EDGE_POINTS)
        shape = shapely.transform(shape, lambda points: project(points, crs, ground_crs))
    return shapely.make_valid(shape)
