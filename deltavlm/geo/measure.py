"""How large polygons are on the ground."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import rasterio.crs
import shapely
from pyproj import CRS, Geod, Transformer
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.geobox import GeoBox

__all__ = ["Measure", "measure_of"]

STRETCH = 0.01  # lengths that a projection changes by more are measured along the ellipsoid

Measure = Callable[[BaseGeometry], tuple[float, float] | None]
"""Area in square metres and perimeter in metres, holes counted; None where the ground is not known."""


def measure_of(geobox: GeoBox) -> Measure:
    """How polygons in the grid's CRS are measured.

    In the plane, in metres whatever the CRS's unit is, where its lengths are true to within a hundredth in
    the middle of the grid; else along the ellipsoid: degrees, and Web Mercator, whose metres are none.
    """
    size_m = geobox.pixel_size_m()
    if geobox.crs is None or size_m is None:
        return lambda polygon: None
    if geobox.crs.is_geographic:
        return _geodesic(geobox.crs)
    unit_m = CRS.from_wkt(geobox.crs.to_wkt()).axis_info[0].unit_conversion_factor
    a, b, _, d, e, _ = geobox.transform[:6]
    lengths = np.hypot(a, d) * unit_m, np.hypot(b, e) * unit_m
    if any(abs(told / true - 1) > STRETCH for told, true in zip(lengths, size_m, strict=True)):
        return _geodesic(geobox.crs)
    return lambda polygon: (float(polygon.area) * unit_m**2, float(polygon.length) * unit_m)


def _geodesic(crs: rasterio.crs.CRS) -> Measure:
    geod = Geod(ellps="WGS84")
    to_lonlat = Transformer.from_crs(CRS.from_wkt(crs.to_wkt()), CRS.from_epsg(4326), always_xy=True)

    def measured(polygon: BaseGeometry) -> tuple[float, float] | None:
        placed = shapely.transform(
            polygon, lambda points: np.stack(to_lonlat.transform(points[:, 0], points[:, 1]), axis=1)
        )
        if not np.isfinite(shapely.get_coordinates(placed)).all():
            return None
        area, _ = geod.geometry_area_perimeter(shapely.geometry.polygon.orient(placed))
        return abs(area), geod.geometry_length(placed.boundary)  # the perimeter above has no holes

    return measured
