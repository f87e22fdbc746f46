"""Pixel size, bounding box and area of interest, and options that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import transform_bounds
from shapely.geometry import mapping

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.grid import ChipGrid
from tests.geo.reading import COLS, ROWS, SIZE, mosaic, opened, read_all
from tests.rasters import HALF_METRE, UTM, noise, write_raster


@pytest.mark.parametrize("gsd_m", [0.25, 1.0])
def test_gsd_resamples_both(tmp_path: Path, before: Path, gsd_m: float) -> None:
    with opened(before, before, gsd_m=gsd_m) as reader:
        assert reader.gsd_m == pytest.approx(gsd_m, rel=0.01)
        assert (reader.geobox.width, reader.geobox.height) == (
            round(COLS * 0.5 / gsd_m),
            round(ROWS * 0.5 / gsd_m),
        )
        assert any("resampled" in note for note in reader.notes)
        images = mosaic(reader, read_all(reader))
        with rasterio.open(before) as raster:
            assert reader.geobox.footprint.symmetric_difference(shapely.box(*raster.bounds)).area < 1e-3
    assert images[2].mean() > 0.99
    assert (images[0] == images[1]).all()


def test_the_present_gsd_changes_nothing(before: Path) -> None:
    with opened(before, before, gsd_m=0.5) as reader:
        assert not any("resampled" in note for note in reader.notes)
        assert (reader.geobox.width, reader.geobox.height) == (COLS, ROWS)


def lonlat_of(cols: tuple[float, float], rows: tuple[float, float]) -> tuple[float, ...]:
    xmin, ymax = HALF_METRE * (cols[0], rows[0])
    xmax, ymin = HALF_METRE * (cols[1], rows[1])
    return tuple(transform_bounds(UTM, "EPSG:4326", xmin, ymin, xmax, ymax))


def test_bbox_and_area_of_interest_keep_their_chips(tmp_path: Path, before: Path) -> None:
    box = lonlat_of((40, 60), (40, 60))
    with opened(before, before, bbox=box) as reader:
        assert [chip.chip_id for chip in reader.chips(SIZE)] == ["r00032_c00032"]
    in_utm = (500_000.0, 4_999_990.0, 500_020.0, 5_000_000.0)
    with opened(before, before, bbox=in_utm, bbox_crs=UTM) as reader:
        assert len(reader.chips(SIZE)) == 2
    for suffix, crs in ((".geojson", "EPSG:4326"), (".gpkg", "EPSG:3857")):
        aoi = tmp_path / f"aoi{suffix}"
        geopandas.GeoSeries([shapely.box(*box)], crs="EPSG:4326").to_crs(crs).to_file(aoi)
        with opened(before, before, aoi=aoi) as reader:
            assert [chip.chip_id for chip in reader.chips(SIZE)] == ["r00032_c00032"]


def test_a_country_is_an_area_of_interest(tmp_path: Path, before: Path) -> None:
    """Areas far from the raster need not be expressible in its CRS."""
    aoi = tmp_path / "half_the_world.geojson"
    geopandas.GeoSeries([shapely.box(-90, -89.9, 90, 89.9)], crs="EPSG:4326").to_file(aoi)
    with opened(before, before, aoi=aoi) as reader:
        assert len(reader.chips(SIZE)) == 15


def test_a_box_with_latitudes_first(before: Path) -> None:
    west, south, east, north = 3.0, 45.153, 3.001, 45.154
    with opened(before, before, bbox=(west, south, east, north)):
        pass
    with pytest.raises(RasterError, match="with x and y swapped it does: the order is longitude, latitude"):
        opened(before, before, bbox=(south, west, north, east)).__enter__()


def test_bbox_over_the_antimeridian(tmp_path: Path) -> None:
    transform = Affine(10, 0, 818_000, 0, -10, 1000)
    path = write_raster(tmp_path / "fiji.tif", noise(3, 400, 3200), crs="EPSG:32660", transform=transform)
    with opened(path, path, bbox=(179.99, -0.02, -179.99, 0.0)) as reader:
        footprints = [chip.footprint for chip in reader.chips(256)]
        every = len(ChipGrid(reader.geobox, 256))
    assert 0 < len(footprints) < every
    assert shapely.union_all(footprints).bounds[0] < 834_000 < shapely.union_all(footprints).bounds[2]


STEP = 1e-4  # degrees


def in_degrees(path: Path, west: float, crs: str = "EPSG:4326", step: float = STEP) -> Path:
    return write_raster(path, noise(), crs=crs, transform=Affine(step, 0, west, 0, -step, 10))


@pytest.mark.parametrize("west", [-160.0, 200.0, 560.0 - 360 * 2, 179.995, -180.005])
@pytest.mark.parametrize("turn", [0, 360])
def test_boxes_and_areas_may_count_longitudes_otherwise(tmp_path: Path, west: float, turn: int) -> None:
    """Of chips from 32 to 64 and from 64 to 96 pixels, in images that count from 0, or cross 180 degrees."""
    path = in_degrees(tmp_path / "a.tif", west)
    left = (west + 180) % 360 - 180 + turn
    box = (left + 40 * STEP, 10 - 60 * STEP, left + 70 * STEP, 10 - 40 * STEP)
    expected = ["r00032_c00032", "r00032_c00064"]
    with opened(path, path, bbox=box) as reader:
        assert [chip.chip_id for chip in reader.chips(SIZE)] == expected
    aoi = tmp_path / "aoi.geojson"
    aoi.write_text(shapely.to_geojson(shapely.box(*box)))
    for area in (aoi, shapely.box(*box)):
        with opened(path, path, aoi=area) as reader:
            assert [chip.chip_id for chip in reader.chips(SIZE)] == expected


@pytest.mark.parametrize(
    ("bbox", "chips"),
    [
        ((179.9985, 9.995, -180.0001, 9.996), 1),
        ((-180.0015, 9.995, 180, 9.996), 5),
        ((179.9985, 9.995, 179.9999, 9.996), 1),
        ((539.9985, 9.995, -179.999, 9.996), 2),
    ],
)
def test_a_box_goes_eastwards(tmp_path: Path, bbox: tuple[float, ...], chips: int) -> None:
    """A box from 350 to 10 was one from 180 to 350."""
    path = in_degrees(tmp_path / "a.tif", 180 - 64 * STEP)
    with opened(path, path, bbox=bbox) as reader:
        assert len(reader.chips(SIZE)) == chips


def test_areas_in_metres_cross_the_antimeridian(tmp_path: Path) -> None:
    path = in_degrees(tmp_path / "a.tif", 180 - 80 * STEP)
    in_utm = transform_bounds("EPSG:4326", "EPSG:32601", -180.004, 9.9945, -179.996, 9.9995)
    with opened(path, path, bbox=in_utm, bbox_crs="EPSG:32601") as reader:
        assert {chip.col for chip in reader.chips(SIZE)} == {1, 2, 3}


def test_grads_count_to_400(tmp_path: Path) -> None:
    path = in_degrees(tmp_path / "a.tif", 222.5, "EPSG:4807")
    west, south, east, north = transform_bounds("EPSG:4807", "EPSG:4326", 222.504, 9.995, 222.506, 9.996)
    with opened(path, path, bbox=(west, south, east, north)) as reader:
        assert [chip.chip_id for chip in reader.chips(SIZE)] == ["r00032_c00032"]
    with opened(path, path, bbox=(-177.496, 9.995, -177.494, 9.996), bbox_crs="EPSG:4807") as reader:
        assert [chip.chip_id for chip in reader.chips(SIZE)] == ["r00032_c00032"]


@pytest.mark.parametrize(
    ("box", "chips"),
    [
        ((-180, 89.9, 180, 90), {(1, 1), (1, 2), (2, 1), (2, 2)}),
        ((-44, 89.5, 44, 89.9), {(2, 2)}),
        ((136, 89.5, -136, 89.9), {(1, 1)}),
        ((-180, 60, 180, 80), None),
    ],
)
def test_areas_round_a_pole(tmp_path: Path, box: tuple[float, ...], chips: set[Any] | None) -> None:
    """Areas near the pole were outside of the bounds of the image's outline in degrees."""
    transform = Affine(2000, 0, -128_000, 0, -2000, 128_000)
    path = write_raster(tmp_path / "a.tif", noise(3, 128, 128), crs="EPSG:3413", transform=transform)
    if chips is None:
        with pytest.raises(RasterError, match="does not overlap the pair, which covers lon/lat"):
            opened(path, path, bbox=box).__enter__()
        return
    with opened(path, path, bbox=box) as reader:
        assert chips <= {(chip.row, chip.col) for chip in reader.chips(SIZE)}
        assert len(reader.chips(SIZE)) < 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bbox": (3.1, 45.0, 3.0, 45.1), "bbox_crs": UTM}, "empty"),
        ({"bbox": (3.0, 45.1, 3.1, 45.0)}, "empty"),
        ({"bbox": (3.0, 45.0, 3.1, 45.1), "bbox_crs": "EPSG:0"}, "EPSG:0"),
        ({"bbox": (3.0, 45.0, 3.1, 45.1), "bbox_crs": "EPSG:word"}, "EPSG:word"),
        ({"bbox": (10.0, 45.0, 10.1, 45.1)}, "covers lon/lat"),
        ({"bbox": (5e5, 49e5, 6e5, 50e5)}, "CRS looks wrong; give the right one"),
        ({"bbox": (-1e308, -1e308, 1e308, 1e308), "bbox_crs": UTM}, "covers lon/lat"),
        ({"aoi": Path("nosuch.geojson")}, "no such file; check the name"),
        ({"aoi": Path("a" * 300 + ".geojson")}, "File name too long"),
        ({"resampling": "gauss"}, "gauss"),
        ({"scale": "9,1"}, "9,1"),
        ({"gsd_m": 0.0}, "above 0"),
        ({"gsd_m": float("nan")}, "above 0"),
    ],
)
def test_options_that_are_refused(before: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, RasterError), match=words):
        opened(before, before, **options).__enter__()


@pytest.mark.parametrize("content", ["", "plain text", '{"type": "Point", "coordinates": [3, 45]}'])
def test_an_area_file_without_areas(tmp_path: Path, before: Path, content: str) -> None:
    aoi = tmp_path / "aoi.geojson"
    aoi.write_text(content)
    with pytest.raises(RasterError, match=r"aoi\.geojson: .*; give polygons"):
        opened(before, before, aoi=aoi).__enter__()


def test_a_table_is_no_area(tmp_path: Path, before: Path) -> None:
    """A table has no geometry at all, which was an unexpected TypeError."""
    aoi = tmp_path / "aoi.gpkg"
    pyogrio.write_dataframe(pd.DataFrame({"name": ["here"]}), aoi)
    with pytest.raises(RasterError, match=r"aoi\.gpkg: has no layer with geometries; give polygons"):
        opened(before, before, aoi=aoi).__enter__()


@pytest.mark.parametrize("number", ["1e400", "1e300", "5000"])
def test_an_area_beyond_the_world(tmp_path: Path, before: Path, number: str) -> None:
    """GEOS refuses to look at infinite coordinates, which was an unexpected GEOSException."""
    aoi = tmp_path / "aoi.geojson"
    ring = f"[[3, 45], [{number}, 45], [4, 46], [3, 45]]"
    aoi.write_text(f'{{"type": "Polygon", "coordinates": [{ring}]}}')
    with pytest.raises(RasterError, match=r"aoi\.geojson: .*; give ") as caught:
        opened(before, before, aoi=aoi).__enter__()
    assert "\n" not in str(caught.value)


def test_an_area_in_an_unknown_crs(tmp_path: Path, before: Path) -> None:
    aoi = tmp_path / "aoi.geojson"
    crs = {"type": "name", "properties": {"name": "EPSG:1"}}
    aoi.write_text(json.dumps({**mapping(shapely.box(3, 45, 4, 46)), "crs": crs}))
    with pytest.raises(
        RasterError, match=r"aoi\.geojson: cannot be read \(Invalid projection: EPSG:1.*; give"
    ):
        opened(before, before, aoi=aoi).__enter__()
