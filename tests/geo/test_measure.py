"""Areas and perimeters in metres, whatever the CRS counts in."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import Point, Polygon, box

from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.measure import measure_of


def grid(crs: str | None, x: float, y: float, pixel: float) -> GeoBox:
    return GeoBox(200, 200, Affine(pixel, 0, x, 0, -pixel, y), CRS.from_user_input(crs) if crs else None)


def on_the_ground(crs: str, lon: float, lat: float, side_m: float) -> Polygon:
    """A square with sides along north and east, in a CRS."""
    geod = pyproj.Geod(ellps="WGS84")
    half = side_m / np.sqrt(2)
    corners = [geod.fwd(lon, lat, azimuth, half)[:2] for azimuth in (45, 135, 225, 315)]
    transformer = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    return Polygon([transformer.transform(*corner) for corner in corners])


@pytest.mark.parametrize(
    ("crs", "lon", "lat"),
    [
        ("EPSG:32631", 3.5, 45),  # UTM, metres
        ("EPSG:2263", -73.9, 40.7),  # New York, US feet
        ("EPSG:4326", 15, 48.75),
        ("EPSG:4326", 25, -70),
        ("EPSG:4277", -2, 52),  # degrees on another ellipsoid
        ("EPSG:3857", 10, 60),  # whose metres are two, and their squares four
    ],
)
def test_a_square_of_100_metres(crs: str, lon: float, lat: float) -> None:
    polygon = on_the_ground(crs, lon, lat, 100)
    middle = polygon.centroid
    pixel = 1e-5 if CRS.from_user_input(crs).is_geographic else 1.0
    geobox = grid(crs, middle.x - 100 * pixel, middle.y + 100 * pixel, pixel)
    measures = measure_of(geobox)(polygon)
    assert measures is not None
    assert measures[0] == pytest.approx(10_000, rel=2e-3)
    assert measures[1] == pytest.approx(400, rel=1e-3)


def test_a_hole_counts() -> None:
    ring = Point(15, 48.75).buffer(0.01).difference(Point(15, 48.75).buffer(0.005))
    measure = measure_of(grid("EPSG:4326", 14.999, 48.751, 1e-5))
    disk, hole = (measure(Polygon(line)) for line in (ring.exterior, ring.interiors[0]))
    measures = measure(ring)
    assert measures is not None
    assert disk is not None
    assert hole is not None
    assert measures[0] == pytest.approx(disk[0] - hole[0])
    assert measures[1] == pytest.approx(disk[1] + hole[1])


def test_without_a_crs_there_is_no_area() -> None:
    assert measure_of(grid(None, 0, 0, 1))(box(0, 0, 1, 1)) is None
