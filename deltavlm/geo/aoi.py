"""Area of interest: a bounding box, or the polygons of a vector file, in the CRS of the raster."""

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
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.geobox import LONLAT, GeoBox, are_off_globe, project
from deltavlm.geo.location import check_exists

__all__ = [
    "CRS_NAME",
    "GDAL_SIGNATURES",
    "GEOJSON_ERRORS",
    "aoi_from_bbox",
    "aoi_from_file",
    "aoi_from_shape",
    "check_bbox",
    "parse_geojson",
]

EDGE_POINTS = 20  # along the longer side of an area, as a straight edge bends when it is projected
GDAL_SIGNATURES = (b"SQLite format 3\0", b"fgb\x03", b"\0\0\x27\x0a")  # GeoPackage, FlatGeobuf, shapefile
CRS_NAME = re.compile(r"(urn:ogc:def:crs:)?[A-Za-z]+:[\w.]*:?\w+")
GEOJSON_ERRORS = (ValueError, TypeError, LookupError, AttributeError)  # of text that is not GeoJSON
GIVE_POLYGONS = "give polygons, for example as GeoJSON or GeoPackage"

BBox = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax


def aoi_from_bbox(bbox: BBox, bbox_crs: str, geobox: GeoBox) -> BaseGeometry:
    """Bounding box in the CRS of the grid; in degrees, xmin > xmax crosses the antimeridian.

    Raises:
        ConfigError: the box is empty, or its CRS unknown.
        RasterError: it lies outside the grid.
    """
    crs = check_bbox(bbox, bbox_crs)
    xmin, ymin, xmax, ymax = bbox
    spans = [(xmin, xmax)] if xmin < xmax else [(xmin, 180.0), (-180.0, xmax)]
    boxes = shapely.MultiPolygon([shapely.box(west, ymin, east, ymax) for west, east in spans])
    return _to_grid(boxes, crs, geobox, _bbox_name(bbox))


def check_bbox(bbox: BBox, bbox_crs: str) -> CRS:
    """Validate a bounding box without a grid, and return its CRS.

    Raises:
        ConfigError: the box is empty, or its CRS unknown.
    """
    try:
        crs = CRS.from_user_input(bbox_crs)
    except ValueError:  # CRSError is one, and "EPSG:word" gives a bare one
        raise ConfigError(f"bbox CRS {bbox_crs!r} is not known; write for example EPSG:4326") from None
    xmin, ymin, xmax, ymax = bbox
    if not (ymin < ymax and (xmin < xmax or (xmin > xmax and crs.is_geographic))):
        raise ConfigError(f"{_bbox_name(bbox)} is empty: the order is xmin,ymin,xmax,ymax")
    return crs


def _bbox_name(bbox: BBox) -> str:
    return f"bbox {','.join(f'{value:g}' for value in bbox)}"


def aoi_from_file(path: Path, geobox: GeoBox) -> BaseGeometry:
    """Union of all polygons of a vector file in the CRS of the grid.

    Formats: GeoJSON, GeoPackage, FlatGeobuf and shapefile. No other format is opened, as some of them make
    GDAL read other files or contact servers. GeoJSON is parsed without GDAL, which follows the URL of a CRS.

    Raises:
        RasterError: the file is missing, unreadable, without polygons or CRS, or lies outside the grid.
    """
    check_exists(str(path))
    try:
        shapes, crs_name = _read_shapes(path)
        union = shapely.union_all(shapely.make_valid(shapes))
    except (RuntimeError, ShapelyError, *GEOJSON_ERRORS, OSError) as error:  # pyogrio's are RuntimeErrors
        message = str(error).partition("\n")[0]
        raise RasterError(f"{path}: no areas can be read from it ({message}); {GIVE_POLYGONS}") from error
    if union.area == 0:
        raise RasterError(f"{path}: holds no areas; {GIVE_POLYGONS}")
    if not crs_name:
        raise RasterError(f"{path}: has no CRS; save it with one")
    try:
        crs = CRS.from_user_input(crs_name)
    except ValueError as error:
        raise RasterError(f"{path}: its CRS is not known ({error}); save it with another one") from error
    return _to_grid(union, crs, geobox, str(path))


def _read_shapes(path: Path) -> tuple[Sequence[BaseGeometry], str | None]:
    """All shapes of a vector file, and its CRS."""
    with path.open("rb") as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b"\x1e \t\r\n")
    if head.startswith(b"{"):
        return _read_geojson(path.read_text(encoding="utf-8-sig"))
    if not head.startswith(GDAL_SIGNATURES):
        raise ValueError("it is none of GeoJSON, GeoPackage, FlatGeobuf, shapefile")
    import pyogrio

    meta, _, wkb, _ = pyogrio.raw.read(path, columns=[])
    geometries = [] if wkb is None else [geometry for geometry in wkb if geometry is not None]
    return shapely.from_wkb(geometries), meta["crs"]


def _read_geojson(text: str) -> tuple[list[BaseGeometry], str]:
    """Shapes of GeoJSON, and their CRS: longitude and latitude where it has no other.

    Raises: one of GEOJSON_ERRORS for other text.
    """
    objects, crs_name = parse_geojson(text)
    shapes = [shape(geometry) for value in objects for geometry in _geometries(value)]
    return shapes, crs_name or LONLAT.to_wkt()


def parse_geojson(text: str) -> tuple[list[Any], str | None]:
    """Top-level objects of GeoJSON, which is one object or one a line, and the name of their CRS if any.

    Raises: one of GEOJSON_ERRORS for other text, or a CRS that is not one plain name.
    """
    try:
        objects = [json.loads(text)]
    except json.JSONDecodeError:
        objects = [json.loads(line.strip("\x1e\r ")) for line in text.split("\n") if line.strip("\x1e\r ")]
    names = [value["crs"]["properties"]["name"] for value in objects if value.get("crs")]
    if any(not CRS_NAME.fullmatch(name) for name in names) or len({*names}) > 1:
        raise ValueError(f"its CRS {names[0]!r} is not one name such as EPSG:32631")
    return objects, names[0] if names else None


def _geometries(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Geometries of a GeoJSON object."""
    if value["type"] == "FeatureCollection":
        for feature in value["features"]:
            yield from _geometries(feature)
    elif value["type"] != "Feature":
        yield value
    elif value["geometry"] is not None:
        yield value["geometry"]


def aoi_from_shape(polygons: BaseGeometry, geobox: GeoBox) -> BaseGeometry:
    """Polygons in longitude and latitude as a shape in the CRS of the grid.

    Raises:
        RasterError: they lie outside the grid.
    """
    return _to_grid(polygons, LONLAT, geobox, "area of interest")


def _to_grid(area: BaseGeometry, crs: CRS, geobox: GeoBox, name: str) -> BaseGeometry:
    """Project what lies near the grid: the CRS of one image may be unable to express a whole country."""
    if are_off_globe(np.reshape(area.bounds, (2, 2)), crs):
        raise RasterError(f"{name}: is no longitude and latitude, so its CRS looks wrong; give the right one")
    ground = shapely.Polygon(geobox.to_ground(geobox.outline()))
    try:
        with np.errstate(all="ignore"):  # coordinates may be absurd
            nearby = _project_nearby(area, crs, ground, geobox.crs)
            intersects = np.isfinite(nearby.bounds).all() and shapely.intersection(nearby, ground).area > 0
    except shapely.GEOSException:
        intersects = False
    if not intersects:
        raise RasterError(
            f"{name}: does not overlap the pair, which covers {geobox.describe_bounds()}; move it there"
        )
    return nearby


def _project_nearby(area: BaseGeometry, crs: CRS, ground: BaseGeometry, ground_crs: CRS) -> BaseGeometry:
    """Intersection of `area` with the surroundings of `ground`, in the CRS of `ground`; may be empty."""
    ground_in_crs = project(shapely.get_coordinates(ground), ground_crs, crs)
    if np.isfinite(ground_in_crs).all():
        envelope = shapely.MultiPoint(ground_in_crs).envelope
        xmin, ymin, xmax, ymax = envelope.bounds
        area = shapely.intersection(area, envelope.buffer(max(xmax - xmin, ymax - ymin) / 10))
    if area.area:
        xmin, ymin, xmax, ymax = area.bounds
        area = shapely.segmentize(area, max(xmax - xmin, ymax - ymin) / EDGE_POINTS)
        area = shapely.transform(area, lambda points: project(points, crs, ground_crs))
    return shapely.make_valid(area)
