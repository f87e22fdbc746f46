"""Grids are compared by where pixels fall, and pixels are measured on the ground."""

from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from deltavlm.geo.alignment import crop_window, locate
from deltavlm.geo.geobox import GeoBox, Window
from tests.rasters import HALF_METRE, moved

UTM = CRS.from_epsg(32631)
GRID = GeoBox(1000, 800, HALF_METRE, UTM)


@given(st.integers(-900, 900), st.integers(-700, 700), st.floats(-0.04, 0.04), st.floats(-1e-8, 1e-8))
def test_full_pixels_are_an_offset(cols: int, rows: int, jitter: float, stretch: float) -> None:
    transform = moved(cols + jitter, rows) * Affine.scale(1 + stretch)
    placement = locate(GeoBox(1000, 800, transform, UTM), GRID)
    assert placement.offset == (-cols, -rows)
    window = crop_window(placement.covered, GRID)
    assert window == Window(max(0, cols), max(0, rows), 1000 - abs(cols), 800 - abs(rows))
    assert placement.covered.area == pytest.approx((1000 - abs(cols)) * (800 - abs(rows)), rel=1e-2)


@given(st.integers(-99, 99), st.floats(0.06, 0.94))
def test_a_fraction_of_a_pixel_is_no_offset(cols: int, fraction: float) -> None:
    placement = locate(GeoBox(1000, 800, moved(cols + fraction, 0), UTM), GRID)
    assert placement.offset is None
    assert placement.error_px == pytest.approx(min(fraction, 1 - fraction), abs=1e-6)


def test_rounding_in_the_file_is_no_shift() -> None:
    """1e-7 m and a resolution that differs in the eighth digit fail `==`, and are nothing on the ground."""
    transform = Affine(0.5 * (1 + 2e-8), 0, 500_000 + 1e-7, 0, -0.5, 5_000_000)
    assert transform != GRID.transform
    assert locate(GeoBox(1000, 800, transform, UTM), GRID).offset == (0, 0)


def test_other_pixel_size_is_no_offset() -> None:
    coarse = GeoBox(250, 200, HALF_METRE * Affine.scale(4), UTM)
    placement = locate(coarse, GRID)
    assert placement.offset is None
    assert placement.scale == pytest.approx(4)
    assert placement.covered.area == pytest.approx(1000 * 800)


def test_a_crs_in_two_spellings_is_the_same_grid() -> None:
    spelled = CRS.from_wkt(UTM.to_wkt().replace("WGS 84 / UTM zone 31N", "mine"))
    assert locate(GeoBox(1000, 800, HALF_METRE, spelled), GRID).offset == (0, 0)


def test_a_world_raster_covers_a_utm_raster() -> None:
    """The far side of the world cannot be expressed in UTM; the raster still covers the grid."""
    world = GeoBox(3600, 1800, Affine(0.1, 0, -180, 0, -0.1, 90), CRS.from_epsg(4326))
    placement = locate(world, GRID)
    assert placement.offset is None
    assert placement.covered.area == pytest.approx(1000 * 800)


def test_longitudes_are_counted_from_anywhere() -> None:
    """Rasters over the antimeridian reach beyond 180 degrees, and climate rasters run from 0 to 360."""
    lonlat = CRS.from_epsg(4326)
    over_the_edge = GeoBox(1000, 1000, Affine(1e-4, 0, 179.95, 0, -1e-4, 0.05), lonlat)
    zone_1 = GeoBox(4000, 4000, Affine(10, 0, 150_000, 0, -10, 20_000), CRS.from_epsg(32601))
    assert locate(zone_1, over_the_edge).covered.area == pytest.approx(1e6)
    west = GeoBox(100, 100, Affine(0.1, 0, -20, 0, -0.1, 10), lonlat)
    from_zero = GeoBox(3600, 1800, Affine(0.1, 0, 0, 0, -0.1, 90), lonlat)
    assert locate(west, from_zero).covered.bounds == pytest.approx((3400, 800, 3500, 900))


def test_far_apart_is_no_overlap() -> None:
    other = GeoBox(1000, 800, HALF_METRE, CRS.from_epsg(32655))
    assert crop_window(locate(other, GRID).covered, GRID) is None


def test_a_crs_that_leads_nowhere_is_no_overlap() -> None:
    local = GeoBox(100, 100, HALF_METRE, CRS.from_wkt('LOCAL_CS["a building site",UNIT["metre",1]]'))
    for other in (GRID, GeoBox(100, 100, Affine(1e-5, 0, 3, 0, -1e-5, 45), CRS.from_epsg(4326))):
        assert crop_window(locate(local, other).covered, other) is None
        assert crop_window(locate(other, local).covered, local) is None
    assert locate(local, local).offset == (0, 0)


@pytest.mark.parametrize("latitude", [0, 45, -60, 80])
def test_pixels_are_measured_on_the_ground(latitude: float) -> None:
    degree_m = 111_320 * math.cos(math.radians(latitude))
    degrees = GeoBox(10, 10, Affine(1e-4, 0, 10, 0, -1e-4, latitude), CRS.from_epsg(4326))
    size = degrees.pixel_size_m()
    assert size is not None
    assert size == pytest.approx((degree_m * 1e-4, 11.13), rel=0.01)


def test_web_mercator_metres_are_not_metres() -> None:
    """At 60 degrees north a Web Mercator metre is half a metre on the ground."""
    north = 8_399_738.0
    size = GeoBox(10, 10, Affine(1, 0, 1e6, 0, -1, north), CRS.from_epsg(3857)).pixel_size_m()
    assert size == pytest.approx((0.5, 0.5), rel=0.01)


def test_no_crs_no_size() -> None:
    assert GeoBox(10, 10, Affine.identity()).pixel_size_m() is None


@given(st.floats(0.1, 5), st.integers(10, 3000), st.integers(10, 3000))
def test_resampling_keeps_the_ground(gsd_m: float, width: int, height: int) -> None:
    grid = GeoBox(width, height, HALF_METRE, UTM)
    size = grid.pixel_size_m()
    assert size is not None
    finer = grid.resample(gsd_m)
    assert finer.to_ground(finer.outline()) == pytest.approx(grid.to_ground(grid.outline()))
    new = finer.pixel_size_m()
    assert new is not None
    assert new == pytest.approx((gsd_m, gsd_m), rel=0.6 / min(finer.width, finer.height) + 1e-3)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_pixels_to_ground_and_back(x: float, y: float) -> None:
    rotated = GeoBox(100, 100, HALF_METRE * Affine.rotation(17), UTM)
    point = np.array([[x, y]])
    assert rotated.to_pixels(rotated.to_ground(point)) == pytest.approx(point, abs=1e-5)


def test_cropping_moves_the_corner() -> None:
    assert GRID.crop(Window(10, 20, 30, 40)) == GeoBox(30, 40, moved(10, 20), UTM)
