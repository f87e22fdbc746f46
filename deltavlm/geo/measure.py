"""Area and perimeter of polygons in metres: planar where the CRS is true to scale, else geodesic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import rasterio.crs
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.geobox import LONLAT, GeoBox, project

__all__ = ["Measure", "areas_m2", "measure_of"]

MAX_STRETCH = 0.01  # relative error of lengths in the plane; beyond it they are measured along the ellipsoid

_EQUAL_AREA = Transformer.from_crs(4326, 6933, always_xy=True)

Measure = Callable[[BaseGeometry], tuple[float, float] | None]
"""Area in square metres and perimeter in metres, holes included; None without longitudes and latitudes."""


def measure_of(geobox: GeoBox) -> Measure:
    """Measure for polygons in the CRS of a grid.

    In the plane, converted from the unit of the CRS to metres, where its lengths are true to within 1 % in
    the middle of the grid; else along the ellipsoid, as for degrees and the stretched metres of Web Mercator.
    """
    size_m = geobox.pixel_size_m()
    if geobox.crs is None or size_m is None:
        return lambda polygon: None
    if geobox.crs.is_geographic:
        return _geodesic(geobox.crs)
    unit_m = CRS.from_wkt(geobox.crs.to_wkt()).axis_info[0].unit_conversion_factor
    a, b, _, d, e, _ = geobox.transform[:6]
    plane_m = np.hypot(a, d) * unit_m, np.hypot(b, e) * unit_m
    if any(abs(plane / true - 1) > MAX_STRETCH for plane, true in zip(plane_m, size_m, strict=True)):
        return _geodesic(geobox.crs)
    return lambda polygon: (float(polygon.area) * unit_m**2, float(polygon.length) * unit_m)


def _geodesic(crs: rasterio.crs.CRS) -> Measure:
    geod = Geod(ellps="WGS84")

    def measure(polygon: BaseGeometry) -> tuple[float, float] | None:
        lonlat = shapely.transform(polygon, lambda points: project(points, crs, LONLAT))
        if not np.isfinite(shapely.get_coordinates(lonlat)).all():
            return None
        area, _ = geod.geometry_area_perimeter(shapely.geometry.polygon.orient(lonlat))
        return abs(area), geod.geometry_length(lonlat.boundary)  # the perimeter above leaves holes out

    return measure


def areas_m2(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """(shapes,): areas of polygons in longitude and latitude on the ellipsoid; NaN for None."""

    def project_to_plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(_EQUAL_AREA.transform(points[:, 0], points[:, 1]), axis=1)

    areas: NDArray[np.float64] = shapely.area(shapely.transform(shapes, project_to_plane))
    areas[shapely.is_missing(shapes)] = np.nan
    return areas
