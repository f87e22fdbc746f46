"""Area of interest: a bounding box, or the polygons of a vector file, in the CRS of the raster."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyproj
import shapely
from rasterio.crs import CRS
from shapely import affinity
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, InputError, OutputError, RasterError
from deltavlm.geo.geobox import LONLAT, GeoBox, are_off_globe, degrees_per_unit, project
from deltavlm.geo.georeferencing import ADD_A_CRS
from deltavlm.geo.location import normalize_location
from deltavlm.geo.lonlat import count_from, to_lonlat
from deltavlm.geo.vector_reader import read_layer, split_layer

__all__ = [
    "aoi_file",
    "aoi_from_bbox",
    "aoi_from_file",
    "aoi_from_shape",
    "area_of_interest",
    "check_bbox",
]

DATUM_SHIFT = 0.05  # degrees; further than any two datums are apart
EDGE_POINTS = 20  # along the longer side of an area, as a straight edge bends when it is projected
POLYGON_IDS = (3, 6)  # of shapely: Polygon, MultiPolygon
GIVE_POLYGONS = "give polygons, for example as GeoJSON or GeoPackage"

BBox = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax


def area_of_interest(
    geobox: GeoBox, bbox: BBox | None, bbox_crs: str, aoi: Path | BaseGeometry | None
) -> BaseGeometry | None:
    """Intersection of a bounding box and an area (a vector file, or polygons in longitude and latitude) in
    the CRS of the grid; None without either.

    Raises:
        ConfigError: the box is empty, its CRS unknown, or the grid has no CRS.
        RasterError: they do not overlap each other or the grid, or the file cannot be read.
    """
    if bbox is None and aoi is None:
        return None
    if geobox.crs is None:
        raise ConfigError(f"bbox and aoi need rasters with a CRS; leave them out, or {ADD_A_CRS}")
    shapes = [] if bbox is None else [aoi_from_bbox(bbox, bbox_crs, geobox)]
    if aoi is not None:
        shapes.append(aoi_from_file(aoi, geobox) if isinstance(aoi, Path) else aoi_from_shape(aoi, geobox))
    area = shapes[0].intersection(shapes[-1])
    if area.area == 0:
        raise RasterError("bbox and aoi do not overlap; leave one of them out")
    return area


def aoi_from_bbox(bbox: BBox, bbox_crs: str, geobox: GeoBox) -> BaseGeometry:
    """Bounding box in the CRS of the grid; in degrees, it goes from xmin eastwards to xmax, whichever way the
    two are counted.

    Raises:
        ConfigError: the box is empty, or its CRS unknown.
        RasterError: it lies outside the grid.
    """
    crs = check_bbox(bbox, bbox_crs)
    xmin, ymin, xmax, ymax = bbox
    if xmin > xmax:  # over the antimeridian
        turn = 360 / degrees_per_unit(crs)
        xmax += turn * math.ceil((xmin - xmax) / turn)
    return _to_grid(shapely.box(xmin, ymin, xmax, ymax), crs, geobox, _bbox_name(bbox))


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
    """Union of all polygons of a vector file, or of a layer of it as FILE:LAYER, in the CRS of the grid.

    Raises:
        RasterError: the file is missing, of a format that `read_layer` does not open, without polygons or
            CRS, has several layers with polygons, or lies outside the grid.
    """
    file, layer = _split(path)
    try:
        frame = read_layer(file, layer, GIVE_POLYGONS, polygons=True).frame
        shapes = shapely.get_parts(shapely.force_2d(frame.geometry.to_numpy()))
        shapes = shapes[np.isin(shapely.get_type_id(shapes), POLYGON_IDS)]
        union = shapely.union_all(shapely.make_valid(shapes))
    except InputError as error:
        raise RasterError(str(error)) from error
    except (ShapelyError, AttributeError) as error:  # AttributeError: a table without geometries
        message = str(error).partition("\n")[0]
        raise RasterError(f"{path}: no areas can be read from it ({message}); {GIVE_POLYGONS}") from error
    if union.area == 0:
        raise RasterError(f"{path}: holds no areas; {GIVE_POLYGONS}")
    if frame.crs is None:
        raise RasterError(f"{path}: has no CRS; save it with one")
    try:
        crs = CRS.from_wkt(frame.crs.to_wkt())
    except ValueError as error:
        raise RasterError(f"{path}: its CRS is not known ({error}); save it with another one") from error
    return _to_grid(union, crs, geobox, str(path))


def aoi_file(path: Path) -> Path:
    """File of an area of interest that is given as FILE or FILE:LAYER."""
    return _split(path)[0]


def _split(path: Path) -> tuple[Path, str | None]:
    return split_layer(normalize_location(str(path)))


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
    nearby = _overlapping(area, crs, geobox)
    if nearby is None:
        advice = "move it there"
        swapped = shapely.transform(area, lambda points: points[:, ::-1])
        if crs.is_geographic and _overlapping(swapped, crs, geobox) is not None:
            advice = "with x and y swapped it does: the order is longitude, latitude"
        raise RasterError(
            f"{name}: does not overlap the pair, which covers {geobox.describe_bounds()}; {advice}"
        )
    return nearby


def _overlapping(area: BaseGeometry, crs: CRS, geobox: GeoBox) -> BaseGeometry | None:
    """Part of an area near a grid, in the CRS of the grid; None where the two do not overlap."""
    ground = shapely.Polygon(geobox.to_ground(geobox.outline()))
    try:
        with np.errstate(all="ignore"):  # coordinates may be absurd
            nearby = shapely.make_valid(_project_nearby(area, crs, geobox))
            overlaps = np.isfinite(nearby.bounds).all() and shapely.intersection(nearby, ground).area > 0
    except (shapely.GEOSException, OutputError):  # or the grid's CRS does not lead to longitudes
        return None
    return nearby if overlaps else None


def _project_nearby(area: BaseGeometry, crs: CRS, geobox: GeoBox) -> BaseGeometry:
    """Intersection of `area` with the surroundings of a grid, in the CRS of the grid; may be empty."""
    if crs.is_geographic:
        region = to_lonlat(geobox.crs)(geobox.footprint).buffer(DATUM_SHIFT)
        degrees = count_from(_affine(area, *_degrees(crs)), -180, 360)
        area = _affine(degrees.intersection(region), *_degrees(crs), inverse=True)
    elif np.isfinite(surroundings := project(geobox.to_ground(geobox.lattice(21)), geobox.crs, crs)).all():
        envelope = shapely.MultiPoint(surroundings).envelope
        xmin, ymin, xmax, ymax = envelope.bounds
        area = area.intersection(envelope.buffer(max(xmax - xmin, ymax - ymin) / 10))
    if area.area == 0:
        return area
    xmin, ymin, xmax, ymax = area.bounds
    area = shapely.segmentize(area, max(xmax - xmin, ymax - ymin) / EDGE_POINTS)
    projected = shapely.transform(area, lambda points: project(points, crs, geobox.crs))
    if geobox.crs is None or not geobox.crs.is_geographic:
        return projected
    turn = 360 / degrees_per_unit(geobox.crs)
    if not crs.is_geographic and np.ptp(projected.bounds[::2]) > turn / 2:  # it crosses the antimeridian
        projected = _affine(to_lonlat(crs)(area), *_degrees(geobox.crs), inverse=True)
    middle, _ = geobox.transform * (geobox.width / 2, geobox.height / 2)
    return count_from(projected, middle - turn / 2, turn)


def _degrees(crs: CRS) -> tuple[float, float]:
    """Degrees in the unit of a geographic CRS, and the longitude of its prime meridian in degrees."""
    meridian = pyproj.CRS.from_wkt(crs.to_wkt()).prime_meridian
    assert meridian is not None
    return degrees_per_unit(crs), meridian.longitude * np.degrees(meridian.unit_conversion_factor)


def _affine(area: BaseGeometry, unit: float, meridian: float, *, inverse: bool = False) -> BaseGeometry:
    """Area in degrees from Greenwich, from another unit and prime meridian; `inverse` leads back."""
    scale, shift = (1 / unit, -meridian / unit) if inverse else (unit, meridian)
    return affinity.affine_transform(area, (scale, 0, 0, scale, shift, 0))
