"""Outlines in longitude and latitude: bent, round a pole, cut at 180 degrees, or of what has a place."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.geobox import LONLAT, GeoBox, lonlat_of, project
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.geo.lonlat import (
    cut_at_180,
    hull_in_lonlat,
    lonlat_bounds,
    polygon_of_ring,
    shapes_to_lonlat,
    to_lonlat,
)

LAEA_WORLD = "+proj=laea +lat_0=90 +datum=WGS84"
FULL_DISK = "+proj=geos +h=35785831 +lon_0=140.7 +sweep=y +datum=WGS84"


def chips_of(crs: str, pixel: float, left: float, top: float, size: tuple[int, int] = (256, 256)) -> ChipGrid:
    transform = Affine(pixel, 0, left, 0, -pixel, top)
    return ChipGrid(GeoBox(*size, transform, CRS.from_user_input(crs)), 256)


CURVED = ("sinu +R=6371007.181", "eqearth", "hammer", "sinu +lon_0=150")


@pytest.mark.parametrize("projection", CURVED)
def test_a_map_ends_at_its_curved_edge(projection: str) -> None:
    """PROJ gives what lies beyond the edge, as in the outer tiles of MODIS, places on the other side."""
    crs = CRS.from_string(f"+proj={projection}")
    middle = 150.0 if "150" in projection else 0.0
    ground = pyproj.Transformer.from_crs(4326, crs.to_wkt(), always_xy=True)
    x, y = ground.transform(middle + 179.999, 45)
    edge = GeoBox(512, 512, Affine(500, 0, x - 128_000, 0, -500, y + 128_000), crs)  # ends 128 km beyond
    outlines = [to_lonlat(crs)(chip.footprint) for chip in ChipGrid(edge, 256)]
    west, south, east, north = shapely.union_all(outlines).bounds
    assert south == pytest.approx(44, abs=0.2)
    assert 45 < north < 46.2
    assert east - west < 8  # all on one side
    beyond = np.array([(x + 100_000, y)])
    assert not np.isfinite(project(beyond, crs, LONLAT)).any()
    assert lonlat_of(beyond, crs) == [None]
    inside = project(np.array([(x - 100_000, y)]), crs, LONLAT)
    assert np.isfinite(inside).all()


@pytest.mark.parametrize("code", ["EPSG:3857", "EPSG:32660", "EPSG:3832"])
def test_other_maps_go_on_beyond_180(code: str) -> None:
    crs = CRS.from_string(code)
    points = project(np.array([(179.9, 60.0), (180.1, 60.0)]), LONLAT, crs)
    if code == "EPSG:3857":
        points[1, 0] = points[0, 0] + 30_000
    assert [round(lon) % 360 for lon, _ in lonlat_of(points, crs)] == [180, 180]  # type: ignore[misc]


def share_inside(grid: ChipGrid, chip: Chip, outline: BaseGeometry, steps: int = 31) -> float:
    """Share of points of a chip with a longitude and latitude that lie in its outline."""
    col, row, width, height = chip.window
    cols, rows = np.meshgrid(*((np.arange(steps) + 0.5) / steps,) * 2)
    x, y = grid.geobox.transform * (col + cols.ravel() * width, row + rows.ravel() * height)
    to_degrees = pyproj.Transformer.from_crs(grid.geobox.crs.to_wkt(), 4326, always_xy=True)  # type: ignore[union-attr]
    lon, lat = to_degrees.transform(x, y)
    known = np.isfinite(lon) & np.isfinite(lat)
    lon = (lon[known] + 180) % 360 - 180
    return float(shapely.contains_xy(outline.buffer(1e-6), lon, lat[known]).mean())


@pytest.mark.parametrize(
    ("crs", "pixel", "left", "top", "bounds"),
    [
        ("EPSG:3413", 500, -74_000, 64_000, (-180, 89.1, 180, 90)),
        ("EPSG:3413", 500, -128_000, 128_000, (135, 88.33, -135, 90)),  # the pole is its corner
        ("EPSG:3413", 500, 0, 64_000, (-45, 88.68, 135, 90)),  # on its edge
        ("EPSG:3413", 500, -300_000, 64_000, None),
        ("EPSG:3412", 25_000, -3_100_000, 3_300_000, (-180, -90, 180, -48.7)),
        ("EPSG:3031", 25_000, -3_100_000, 3_300_000, (-180, -90, 180, -48.8)),
        ("EPSG:3995", 30_000, -4_000_000, 4_000_000, (-180, 41, 180, 90)),
        ("EPSG:5041", 100, 1_990_000, 2_010_000, (-180, 89.8, 180, 90)),
        ("EPSG:5042", 100, 1_990_000, 2_010_000, (-180, -90, 180, -89.8)),
        ("EPSG:3571", 50_000, -6e6, 6e6, (-180, -8, 180, 90)),
        (LAEA_WORLD, 110_000, -14e6, 14e6, (-180, -90, 180, 90)),
        (FULL_DISK, 44_000, -5.6e6, 5.6e6, (59.4, -81.3, -138, 81.3)),
        ("EPSG:3857", 156_543.033928, -20_037_508.34, 20_037_508.34, (-180, -85.05, 180, 85.05)),
        ("EPSG:3857", 100, 20_030_000, 0, (179.93, -0.23, -179.84, 0)),
        ("EPSG:32633", 2000, 300_000, 9_400_000, None),  # bends by kilometres
        ("EPSG:3832", 1000, 3_100_000, 0, (177.85, -2.3, -179.85, 0)),
        ("EPSG:4269", 0.01, 179, 10, (179, 7.44, -178.44, 10)),
        ("EPSG:4269", 0.01, 200, 10, (-160, 7.44, -157.44, 10)),
        ("EPSG:4326", 1.5, -12, 91.5, (-12, -90, 12, 90)),  # to the middle of a pixel over each pole
        ("EPSG:4807", 0.01, 222.5, 11, (-157.4, 7.6, -155.1, 9.9)),  # grads from Paris
    ],
)
def test_pixels_of_a_chip_lie_in_its_outline(
    crs: str, pixel: float, left: float, top: float, bounds: tuple[float, ...] | None
) -> None:
    """A chip with a pole in it was two slivers, and what goes round it was taken for crossing 180 degrees."""
    size = (16, 122) if left == -12 else (256, 256)
    grid = chips_of(crs, pixel, left, top, size)
    (chip,) = grid
    outline = to_lonlat(grid.geobox.crs)(chip.footprint)
    assert share_inside(grid, chip, outline) > 0.995
    assert outline.is_valid
    assert shapely.box(-180, -90, 180, 90).covers(outline)
    if bounds is not None:
        assert lonlat_bounds(outline) == pytest.approx(bounds, abs=0.1)
    (again,) = shapes_to_lonlat(np.array([chip.footprint], object), pyproj.CRS(grid.geobox.crs.to_wkt()))  # type: ignore[union-attr]
    assert again.symmetric_difference(outline).area < 1e-4 * outline.area


@pytest.mark.parametrize(("crs", "pixel", "share"), [("ESRI:54009", 70_500, 0.97), (FULL_DISK, 22_000, 0.99)])
def test_of_a_chip_without_all_its_corners_the_rest_is_placed(crs: str, pixel: float, share: float) -> None:
    """The corners of a world map are nowhere on earth, and chips with one of them had no geometry."""
    grid = chips_of(crs, pixel, -256 * pixel, 128 * pixel, (512, 256))
    outlines = [to_lonlat(grid.geobox.crs)(chip.footprint) for chip in grid]
    for chip, outline in zip(grid, outlines, strict=True):
        assert not outline.is_empty
        assert share_inside(grid, chip, outline) > share
    nowhere = ChipGrid(GeoBox(256, 256, Affine(1, 0, 19e6, 0, -1, 9e6), grid.geobox.crs), 256)
    assert to_lonlat(grid.geobox.crs)(next(iter(nowhere)).footprint).is_empty


def test_chips_round_a_pole_cover_the_ground_once() -> None:
    grid = chips_of("EPSG:3413", 500, -300_000, 290_000, (1024, 1024))
    outlines = [to_lonlat(grid.geobox.crs)(chip.footprint) for chip in grid]
    union = shapely.union_all(outlines)
    assert union.area == pytest.approx(sum(outline.area for outline in outlines), rel=1e-4)
    whole = to_lonlat(grid.geobox.crs)(grid.geobox.footprint)
    assert union.symmetric_difference(whole).area < 2e-3 * whole.area


def test_a_hole_may_be_a_pole() -> None:
    """Of a polygon of change round a pole, too."""
    ring = shapely.box(-50_000, -50_000, 50_000, 50_000).difference(
        shapely.box(-20_000, -20_000, 20_000, 20_000)
    )
    outline = to_lonlat(CRS.from_epsg(3413))(ring)
    assert outline.is_valid
    assert not shapely.intersects_xy(outline, 10.0, 89.95)
    assert shapely.intersects_xy(outline, (10.0, 100.0, -170.0), (89.7, 89.7, 89.7)).all()
    assert lonlat_bounds(outline)[3] < 89.9


def test_small_outlines_have_no_more_points_than_corners() -> None:
    grid = chips_of("EPSG:32633", 0.5, 500_000, 5_000_000)
    assert len(to_lonlat(grid.geobox.crs)(next(iter(grid)).footprint).exterior.coords) == 5


@pytest.mark.parametrize(
    ("east", "is_ccw", "pole"), [(True, True, 90), (True, False, -90), (False, True, -90)]
)
def test_a_ring_round_the_world_encloses_the_pole_to_its_left(east: int, is_ccw: bool, pole: int) -> None:
    lon = np.array([10, 100, -170, -80, 10.0])[:: 1 if east else -1]
    polygon = cut_at_180(polygon_of_ring(np.stack([lon, np.full(5, 20.0)], axis=1), is_ccw=is_ccw))
    assert polygon.bounds == (-180, min(20, pole), 180, max(20, pole))
    assert polygon.geom_type == "Polygon"


def test_bounds_and_hulls_go_on_beyond_180_degrees() -> None:
    """The convex hull of parts on both sides was a band round the whole world."""
    crossing = cut_at_180(shapely.box(170, -10, 190, 10) - shapely.box(175, -5, 176, 5))
    assert lonlat_bounds(crossing) == (170, -10, -170, 10)
    assert hull_in_lonlat(crossing).area == pytest.approx(400)
    apart = shapely.MultiPolygon([shapely.box(-170, 0, -160, 1), shapely.box(10, 0, 20, 1)])
    assert lonlat_bounds(apart) == (-170, 0, 20, 1)
    assert hull_in_lonlat(apart).bounds == (-170, 0, 20, 1)
