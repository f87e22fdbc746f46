"""One picture of a pair: where it lies, and what of a mask lies on the ground."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import shapely

from deltavlm.errors import RasterError
from deltavlm.geo.chips import chip_at, chip_of_bbox, chip_of_pair, chip_of_window
from deltavlm.geo.geobox import LONLAT, Window, project
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions, open_pair
from deltavlm.geo.polygonize import polygonize_chip
from tests.rasters import HALF_METRE, noise, write_raster


@contextmanager
def pair(tmp_path: Path, **options: object) -> Iterator[PairReader]:
    path = str(write_raster(tmp_path / "one.tif", noise()))  # 160 x 96 px
    with open_pair(RasterPair(path, path), ReadOptions(**options)) as reader:  # type: ignore[arg-type]
        yield reader


def at_pixel(reader: PairReader, col: float, row: float) -> tuple[float, float]:
    ground = reader.geobox.to_ground(np.array([[col, row]], float))
    ((lon, lat),) = project(ground, reader.geobox.crs, LONLAT).tolist()
    return lon, lat


@pytest.mark.parametrize(
    ("pixel", "window"),
    [
        ((80, 50), Window(64, 34, 32, 32)),
        ((0, 0), Window(0, 0, 32, 32)),
        ((160, 96), Window(128, 64, 32, 32)),
        ((5, 50), Window(0, 34, 32, 32)),
    ],
)
def test_the_chip_around_a_point_stays_inside(tmp_path: Path, pixel: tuple[int, int], window: Window) -> None:
    with pair(tmp_path) as reader:
        chip = chip_at(reader, *at_pixel(reader, *pixel), 32)
        assert chip.window == window
        assert chip.size == 32
        assert chip.footprint.buffer(1e-6).covers(shapely.Point(reader.geobox.transform * pixel))


def test_a_chip_larger_than_the_pair_is_all_of_it(tmp_path: Path) -> None:
    with pair(tmp_path) as reader:
        chip = chip_at(reader, *at_pixel(reader, 10, 10), 128)
        assert chip.window == Window(0, 0, 128, 96)
        assert chip.size == 128
        assert chip_of_pair(reader, 128) == Chip(0, 0, Window(0, 0, 160, 96), 160, reader.geobox.transform)
        assert chip_of_pair(reader, 256).size == 256


def test_a_point_outside_is_refused(tmp_path: Path) -> None:
    with pair(tmp_path) as reader:
        lon, lat = at_pixel(reader, 200, 10)
        with pytest.raises(RasterError, match=r"outside of the pair, which covers lon/lat"):
            chip_at(reader, lon, lat, 32)
        with pytest.raises(RasterError, match="outside"):
            chip_at(reader, 0, 95, 32)
        lon, lat = at_pixel(reader, 80, 50)
        with pytest.raises(RasterError, match=rf"; {lon:g},{lat:g} is inside: the order is longitude, lat"):
            chip_at(reader, lat, lon, 32)
        with pytest.raises(RasterError, match="are coordinates in EPSG:32631: give longitude, lat"):
            chip_at(reader, 500_040, 4_999_975, 32)
        for window in (Window(-1, 0, 9, 9), Window(150, 0, 11, 9), Window(0, 0, 0, 9)):
            with pytest.raises(RasterError, match="is not in the pair"):
                chip_of_window(reader, window, 32)


def test_without_a_crs_a_point_is_in_pixels(tmp_path: Path) -> None:
    path = str(write_raster(tmp_path / "one.tif", noise(), crs=None, transform=None))
    with open_pair(RasterPair(path, path), ReadOptions(allow_no_crs=True)) as reader:
        assert chip_at(reader, 80, 50, 32).window == Window(64, 34, 32, 32)
        with pytest.raises(RasterError, match="pixel 300,5 is outside"):
            chip_at(reader, 300, 5, 32)


def test_a_box_is_its_pixels(tmp_path: Path) -> None:
    xmin, top = HALF_METRE * (20, 30)
    xmax, bottom = HALF_METRE * (60.5, 50)
    with pair(tmp_path, bbox=(xmin, bottom, xmax, top), bbox_crs="EPSG:32631") as reader:
        assert chip_of_bbox(reader, 32).window == Window(20, 30, 41, 20)
        assert chip_of_bbox(reader, 32).size == 41
        assert chip_of_bbox(reader, 256).size == 256
    with pair(tmp_path, bbox=(xmin - 100, bottom, xmax, top), bbox_crs="EPSG:32631") as reader:
        assert chip_of_bbox(reader, 32).window == Window(0, 30, 61, 20)
    with pair(tmp_path) as reader, pytest.raises(ValueError, match="without"):
        chip_of_bbox(reader, 32)


def test_masks_become_polygons_on_the_ground() -> None:
    """Thirds of a chip whose lower part is padding: what lies there is cut off."""
    chip = Chip(0, 0, Window(10, 20, 96, 48), 96, HALF_METRE)
    labels = np.zeros((6, 6), np.uint8)  # a mask pixel is 16 px
    labels[0, :2] = 3
    labels[2:5, 5] = 1
    labels[5, 0] = 2  # in the padding
    polygons = dict(polygonize_chip(labels, chip))
    assert set(polygons) == {1, 3}
    assert polygons[3].equals(shapely.box(*(HALF_METRE * (10, 36)), *(HALF_METRE * (42, 20))))
    assert polygons[1].equals(shapely.box(*(HALF_METRE * (90, 68)), *(HALF_METRE * (106, 52))))
