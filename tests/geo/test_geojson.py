"""GeoJSON by RFC 7946, compared with what GDAL makes of the same polygons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from deltavlm.errors import OutputError
from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.geojson import FeatureCollection, FeatureLines
from deltavlm.geo.grid import ChipGrid
from deltavlm.geo.lonlat import shapes_to_lonlat, to_lonlat

CHIPS = Layer("chips", (Field("chip_id", "str"),))
LOCAL = 'LOCAL_CS["a building site",UNIT["metre",1]]'


def collection(grid: ChipGrid, crs: CRS) -> Any:
    texts: list[str] = []
    sink = FeatureCollection(texts.append, CHIPS, to_lonlat(crs), {})
    sink.write("chips", (Feature(chip.footprint, {"chip_id": chip.chip_id}) for chip in grid))
    sink.close()
    return json.loads("".join(texts))


@pytest.mark.parametrize(
    ("epsg", "x", "y"),
    [
        (32631, 500_000, 5_000_000),
        (4326, 10.0, 50.0),
        (3857, 1e6, 6e6),
        (32601, 165_000, 4_000),  # zone 1 reaches over the antimeridian to the west
        (32660, 830_000, 4_000),  # zone 60 to the east
        (3413, -2_000_000, 2_000_000),  # polar
    ],
)
@pytest.mark.parametrize("angle", [0, 30])
def test_polygons_are_those_of_gdal(tmp_path: Path, epsg: int, x: float, y: float, angle: float) -> None:
    pixel = 1e-4 if epsg == 4326 else 10
    transform = Affine.translation(x, y) * Affine.rotation(angle) * Affine.scale(pixel, -pixel)
    grid, crs = ChipGrid(GeoBox(700, 600, transform)), CRS.from_epsg(epsg)
    chips = list(grid)
    frame = geopandas.GeoDataFrame(
        {"chip_id": [chip.chip_id for chip in chips]},
        geometry=[chip.footprint for chip in chips],
        crs=epsg,
    )
    pyogrio.write_dataframe(frame, tmp_path / "gdal.geojson", driver="GeoJSON", RFC7946="YES")
    expected = json.loads((tmp_path / "gdal.geojson").read_text())["features"]
    ours = collection(grid, crs)["features"]
    assert len(ours) == len(expected) == 9
    for mine, theirs in zip(ours, expected, strict=True):
        polygon, other = (shapely.geometry.shape(feature["geometry"]) for feature in (mine, theirs))
        assert polygon.symmetric_difference(other).area < 1e-3 * other.area
        assert polygon.geom_type == other.geom_type
        for shape in shapely.get_parts(polygon):
            assert shape.exterior.is_ccw
            assert np.abs(shapely.get_coordinates(shape)[:, 0]).max() <= 180
            west, _, east, _ = shape.bounds
            assert east - west < 1


def test_chips_across_the_antimeridian_are_cut() -> None:
    """Reprojected as it is, a chip at 180 degrees becomes a band round the union world."""
    transform = Affine(10, 0, 830_000, 0, -10, 4_000)
    features = collection(ChipGrid(GeoBox(1024, 256, transform)), CRS.from_epsg(32660))["features"]
    assert {feature["geometry"]["type"] for feature in features} == {"Polygon", "MultiPolygon"}
    union = shapely.union_all([shapely.geometry.shape(feature["geometry"]) for feature in features])
    assert union.bounds[0] == -180
    assert union.bounds[2] == 180
    assert union.area == pytest.approx(1024 * 256 * (10 / 111_200) ** 2, rel=0.02)


def test_longitudes_beyond_180_are_wrapped() -> None:
    """Climate rasters run from 0 to 360 degrees."""
    features = collection(ChipGrid(GeoBox(720, 256, Affine(0.5, 0, 0, 0, -0.5, 64))), CRS.from_epsg(4326))[
        "features"
    ]
    union = shapely.union_all([shapely.geometry.shape(feature["geometry"]) for feature in features])
    assert union.bounds == (-180, -64, 180, 64)
    assert union.area == pytest.approx(360 * 128)


@pytest.mark.parametrize(("epsg", "x", "y"), [(32660, 830_000, 4_000), (32631, 500_000, 5_000_000)])
def test_an_array_of_shapes_is_transformed_alike(epsg: int, x: float, y: float) -> None:
    chips = list(ChipGrid(GeoBox(1024, 256, Affine(10, 0, x, 0, -10, y))))
    shapes = np.array([*(chip.footprint for chip in chips), None, shapely.Polygon()], dtype=object)
    *polygons, missing, empty = shapes_to_lonlat(shapes, pyproj.CRS.from_epsg(epsg))
    assert (missing, empty) == (None, None)
    exact = to_lonlat(CRS.from_epsg(epsg))
    for chip, polygon in zip(chips, polygons, strict=True):
        expected = exact(chip.footprint)
        assert polygon.geom_type == expected.geom_type
        assert polygon.symmetric_difference(expected).area < 1e-4 * expected.area


def test_an_empty_polygon_has_no_geometry() -> None:
    texts: list[str] = []
    FeatureLines(texts.append, CHIPS, to_lonlat(CRS.from_epsg(32631)), {}).write(
        "chips", [Feature(shapely.Polygon())]
    )
    assert json.loads("".join(texts))["geometry"] is None


def test_without_crs_coordinates_stay() -> None:
    square = shapely.box(0, 0, 256, 256)
    assert to_lonlat(None)(square) == square


def test_a_crs_that_leads_nowhere() -> None:
    with pytest.raises(OutputError, match=r"a building site.*\.gpkg"):
        to_lonlat(CRS.from_wkt(LOCAL))
