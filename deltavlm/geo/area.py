"""The part of the ground that was asked for: a box, or the areas of a file, in the raster's CRS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import LONLAT, PixelGrid, covers, is_off_the_globe, project
from deltavlm.geo.location import refuse_a_missing_file

__all__ = ["area_of_box", "area_of_file", "area_of_shape", "check_box"]

EDGE_POINTS = 20  # a straight edge bends when it is projected
GIVE_POLYGONS = "give polygons, for example as GeoJSON or GeoPackage"


def area_of_box(box: tuple[float, float, float, float], box_crs: str, grid: PixelGrid) -> BaseGeometry:
    """`xmin, ymin, xmax, ymax` in the grid's CRS; in degrees, xmin > xmax crosses the antimeridian.

    Raises:
        ConfigError: the box is empty, or its CRS unknown.
        RasterError: it lies outside the grid.
    """
    crs = check_box(box, box_crs)
    xmin, ymin, xmax, ymax = box
    parts = [(xmin, xmax)] if xmin < xmax else [(xmin, 180.0), (-180.0, xmax)]
    shape = shapely.MultiPolygon([shapely.box(left, ymin, right, ymax) for left, right in parts])
    return _on_grid(shape, crs, grid, _box_name(box))


def check_box(box: tuple[float, float, float, float], box_crs: str) -> CRS:
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


def area_of_file(path: Path, grid: PixelGrid) -> BaseGeometry:
    """All areas of a vector file as one shape in the grid's CRS.

    Raises:
        RasterError: the file is missing, unreadable, without areas or CRS, or lies outside the grid.
    """
    import pyogrio
    from pyogrio.errors import DataSourceError

    refuse_a_missing_file(str(path))
    try:
        meta, _, wkb, _ = pyogrio.raw.read(path, columns=[])
        shapes = shapely.from_wkb([shape for shape in wkb if shape is not None] if wkb is not None else [])
        union = shapely.union_all(shapely.make_valid(shapes))
    except (DataSourceError, shapely.GEOSException, ValueError, OSError) as error:
        words = str(error).partition("\n")[0]
        raise RasterError(f"{path}: no areas can be read from it ({words}); {GIVE_POLYGONS}") from error
    if union.area == 0:
        raise RasterError(f"{path}: holds no areas; {GIVE_POLYGONS}")
    if not meta["crs"]:
        raise RasterError(f"{path}: has no CRS; save it with one")
    try:
        crs = CRS.from_user_input(meta["crs"])
    except ValueError as error:
        raise RasterError(f"{path}: its CRS is not known ({error}); save it with another one") from error
    return _on_grid(union, crs, grid, str(path))


def area_of_shape(shape: BaseGeometry, grid: PixelGrid) -> BaseGeometry:
    """Areas in longitude and latitude as a shape in the grid's CRS.

    Raises:
        RasterError: they lie outside the grid.
    """
    return _on_grid(shape, LONLAT, grid, "area of interest")


def _on_grid(shape: BaseGeometry, crs: CRS, grid: PixelGrid, name: str) -> BaseGeometry:
    """Project what lies near the grid: a country need not be expressible in the CRS of one image."""
    if is_off_the_globe(np.reshape(shape.bounds, (2, 2)), crs):
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
            f"{name}: has no part of the pair in it, which covers {covers(grid)}; move it there"
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
