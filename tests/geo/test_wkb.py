"""Geometries in geometries: GEOS ended the process with a segmentation fault."""

from __future__ import annotations

import json
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import geopandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import InputError
from deltavlm.geo.vector_reader import read_layer
from deltavlm.geo.wkb import MAX_DEPTH, check_depth

POINT = shapely.Point(1, 2)
SQUARE = shapely.box(0, 0, 4, 4) - shapely.box(1, 1, 2, 2)
SHAPES = (
    POINT,
    shapely.Point(1, 2, 3),
    shapely.LineString([(0, 0), (1, 1), (2, 0)]),
    SQUARE,
    shapely.force_3d(SQUARE),
    shapely.Polygon(),
    shapely.MultiPoint([(0, 0), (1, 1)]),
    shapely.MultiPolygon([SQUARE, shapely.box(9, 9, 10, 10)]),
    shapely.GeometryCollection([shapely.GeometryCollection([SQUARE, POINT]), POINT] * 40),
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("byte_order", [0, 1])
def test_the_depth_is_that_of_the_deepest_part(shape: BaseGeometry, byte_order: int) -> None:
    for flavor, srid in (("iso", 0), ("extended", 0), ("extended", 4326)):
        part = shapely.to_wkb(
            shapely.set_srid(shape, srid), flavor=flavor, byte_order=byte_order, include_srid=srid > 0
        )
        check_depth(part)
        for cut in range(0, len(part), 7):
            check_depth(part[:cut])  # GEOS has its own words for a damaged geometry
        level = struct.pack("<BII", 1, 7, 2) + part  # and one more collection
        with pytest.raises(ValueError, match="more than 32 geometry collections in each other"):
            check_depth(level * (MAX_DEPTH + 1))


@pytest.mark.parametrize("kind", [4, 5, 6, 7, 1007, 0x80000007])
def test_a_file_of_deep_geometries_is_refused(tmp_path: Path, kind: int) -> None:
    deep = struct.pack("<BII", 1, kind, 1) * 100_000 + shapely.to_wkb(POINT)
    columns = {"geometry": {"encoding": "WKB", "geometry_types": []}}
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": columns}
    table = pa.table({"geometry": [deep]}).replace_schema_metadata({"geo": json.dumps(geo)})
    pq.write_table(table, tmp_path / "deep.parquet")
    frame = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[POINT], crs="EPSG:4326")
    frame.to_file(tmp_path / "deep.gpkg", layer="areas")
    with closing(sqlite3.connect(tmp_path / "deep.gpkg")) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute("UPDATE areas SET geom = ?", (b"GP\0\1" + struct.pack("<i", 4326) + deep,))
        database.commit()
    for file in ("deep.parquet", "deep.gpkg"):
        with pytest.raises(InputError, match="more than 32 geometry collections in each other"):
            read_layer(tmp_path / file)
