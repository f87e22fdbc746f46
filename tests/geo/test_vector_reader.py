"""Vector files of others: one driver for each, text of any encoding, SQL under a deadline."""

from __future__ import annotations

import os
import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path

import geopandas
import pandas as pd
import pyogrio
import pytest
import shapely

from deltavlm.errors import InputError, RasterError
from deltavlm.geo import geopackage_reader
from deltavlm.geo.vector_reader import read_layer, split_layer
from tests.geo.reading import opened
from tests.rasters import noise, write_raster

SQUARE = shapely.box(2.9, 44.9, 3.1, 45.2)
ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT a.* FROM a, r WHERE n < 0"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "image.tif", noise(1))


def frame_of(*shapes: object, **columns: object) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(columns, geometry=list(shapes), crs="EPSG:4326")


def package_with(tmp_path: Path, *statements: str) -> Path:
    """GeoPackage with the layer `a` and what SQL statements add."""
    path = tmp_path / "areas.gpkg"
    frame_of(SQUARE, name=["one"]).to_file(path, layer="a")
    change(path, *statements)
    return path


def change(path: Path, *statements: str) -> None:
    """Execute SQL, without the triggers that need GDAL's functions."""
    with closing(sqlite3.connect(path)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)
        database.commit()


def as_layer(view: str) -> tuple[str, str]:
    return (
        f"INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id) "
        f"VALUES ('{view}', 'features', '{view}', 4326)",
        f"INSERT INTO gpkg_geometry_columns SELECT '{view}', column_name, geometry_type_name, srs_id, z, m "
        "FROM gpkg_geometry_columns WHERE table_name = 'a'",
    )


@pytest.mark.parametrize(
    "start", [b"fgb\x03", b"fgb\x03fgb\x01", b"\0\0\x27\x0a", b"", b" ", b"SQLite format 3\0"]
)
@pytest.mark.parametrize("suffix", [".fgb", ".gpkg", ".shp", ".geojson", ".vrt"])
def test_a_description_of_another_file(tmp_path: Path, image: Path, start: bytes, suffix: str) -> None:
    secret = tmp_path / "secret.geojson"
    frame_of(SQUARE).to_file(secret)
    path = tmp_path / f"area{suffix}"
    source = f'<OGRVRTLayer name="secret"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
    path.write_bytes(start + f"<OGRVRTDataSource>{source}</OGRVRTDataSource>".encode())
    with pytest.raises(InputError, match=rf"^{path}: "):
        read_layer(path)
    with pytest.raises(RasterError, match=rf"^{path}: "):
        opened(image, image, aoi=path).__enter__()


def test_a_flatgeobuf_that_is_also_a_description(tmp_path: Path) -> None:
    """GDAL looks for its mark up to the first zero byte: a header whose size has none is refused."""
    path = tmp_path / "area.fgb"
    frame_of(SQUARE).to_file(path)
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"\x01\x01\x01\x01<OGRVRTDataSource/>" + content[12:])
    with pytest.raises(InputError, match="is none of GeoPackage"):
        read_layer(path)


def test_the_suffix_agrees_with_the_content(tmp_path: Path) -> None:
    """GDAL has drivers that go by the suffix."""
    for suffix in ("gpkg", "fgb", "shp"):
        path = tmp_path / f"area.{suffix}"
        frame_of(SQUARE).to_file(path)
        other = path.rename(tmp_path / f"area_{suffix}.csv")
        with pytest.raises(InputError, match=rf"is a \w+ by its content; rename it to \.{suffix}"):
            read_layer(other)
        path.write_bytes(other.read_bytes())
        with pytest.raises(InputError, match="rename it"):
            read_layer(other.rename(tmp_path / f"area;b!.{suffix}"))


@pytest.mark.parametrize("name", ["area.geojson", "area.gpkg", "area.shp", "area.fgb", "area.parquet"])
def test_pipes_are_not_opened(tmp_path: Path, image: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"is a pipe, which is not opened; give a file"):
        read_layer(path)
    with pytest.raises(RasterError, match=r"is a pipe, which is not opened; give a file"):
        opened(image, image, aoi=path).__enter__()


@pytest.mark.parametrize(("name", "part"), [("a.shp", "a.dbf"), ("a.shp", "a.prj"), ("a.gpkg", "a.gpkg-wal")])
def test_parts_that_are_pipes_are_not_opened(tmp_path: Path, name: str, part: str) -> None:
    frame_of(SQUARE).to_file(tmp_path / name)
    (tmp_path / part).unlink(missing_ok=True)
    os.mkfifo(tmp_path / part)
    with pytest.raises(InputError, match=f"{part}: is a pipe"):
        read_layer(tmp_path / name)


# --- SQL in GeoPackages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "CREATE VIEW v AS SELECT fid, geom, 'seen' AS name FROM a",
        "CREATE TABLE v (fid INTEGER PRIMARY KEY, geom BLOB, name TEXT AS ('seen'))",
    ],
)
def test_a_view_is_a_layer(tmp_path: Path, query: str) -> None:
    path = package_with(tmp_path, query, *as_layer("v"))
    if "TABLE" in query:
        change(path, "INSERT INTO v (fid, geom) SELECT fid, geom FROM a")
    for layer, name in (("a", "one"), ("v", "seen")):
        frame = read_layer(path, layer).frame
        assert frame["name"].tolist() == [name]
        assert frame.geometry[0].equals(SQUARE)
        assert frame.crs.to_epsg() == 4326


def test_a_query_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geopackage_reader, "DEADLINE_S", 0.2)
    path = package_with(tmp_path, f"CREATE VIEW v AS {ENDLESS}", *as_layer("v"))
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"areas\.gpkg: a query in it takes more than 0\.2 s; save its result"
    ):
        read_layer(path, "v")
    assert time.monotonic() - start < 10
    assert len(read_layer(path, "a").frame) == 1


@pytest.mark.parametrize("table", ["gpkg_contents", "gpkg_geometry_columns", "gpkg_spatial_ref_sys"])
def test_the_list_of_layers_is_no_query(tmp_path: Path, table: str) -> None:
    path = package_with(
        tmp_path, f"ALTER TABLE {table} RENAME TO kept", f"CREATE VIEW {table} AS SELECT * FROM kept"
    )
    with pytest.raises(InputError, match=f"its table {table} is computed by a query; save it again"):
        read_layer(path)


def test_a_wrong_count_loses_no_row(tmp_path: Path) -> None:
    path = package_with(tmp_path, "UPDATE gpkg_ogr_contents SET feature_count = 0")
    change(path, "UPDATE a SET name = CAST(x'4772fc6e' AS TEXT)")
    assert read_layer(path).frame["name"].tolist() == ["Gr\u00fcn"]


# --- what files of others hold ----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-8"])
@pytest.mark.parametrize("declared", [True, False])
def test_text_of_a_shapefile(tmp_path: Path, encoding: str, declared: bool) -> None:
    path = tmp_path / "areas.shp"
    pyogrio.write_dataframe(frame_of(SQUARE, name=["Gr\u00fcn"]), path, encoding=encoding)
    if not declared:
        path.with_suffix(".cpg").unlink()
        table = bytearray(path.with_suffix(".dbf").read_bytes())
        table[29] = 0  # language driver
        path.with_suffix(".dbf").write_bytes(table)
    if declared or encoding == "ISO-8859-1":
        assert read_layer(path).frame["name"].tolist() == ["Gr\u00fcn"]
    else:
        assert len(read_layer(path).frame) == 1


def wkb(kind: int, *rings: list[tuple[float, ...]]) -> bytes:
    parts = (struct.pack("<I", len(ring)) + b"".join(map(_point, ring)) for ring in rings)
    return b"GP\0\x01" + struct.pack("<iBII", 4326, 1, kind, len(rings)) + b"".join(parts)


def _point(point: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(point)}d", *point)


def test_geometries_of_every_kind(tmp_path: Path, image: Path) -> None:
    """Curves, measures, heights, none at all, and points among polygons."""
    ring = list(SQUARE.exterior.coords)
    circle = [(2.9, 45.0), (3.0, 45.1), (3.1, 45.0), (3.0, 44.9), (2.9, 45.0)]
    curve = struct.pack("<BII", 1, 8, 5) + b"".join(map(_point, circle))
    path = package_with(
        tmp_path, "UPDATE gpkg_geometry_columns SET geometry_type_name = 'GEOMETRY'", "DELETE FROM a"
    )
    shapes = [
        b"GP\0\x01" + struct.pack("<iBII", 4326, 1, 10, 1) + curve,
        wkb(2003, [(*point, 5.0) for point in ring]),
        wkb(1003, [(*point, 5.0) for point in ring]),
        None,
        b"GP\0\x01" + struct.pack("<iBI2d", 4326, 1, 1, 3.0, 45.0),
    ]
    with closing(sqlite3.connect(path)) as database:
        for (trigger,) in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.executemany("INSERT INTO a (geom, name) VALUES (?, 'x')", [(shape,) for shape in shapes])
        database.commit()
    assert len(read_layer(path).frame) == 5
    with opened(image, image, aoi=path) as reader:
        assert len(reader.chips(32)) == 15


@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
def test_columns_of_every_kind(tmp_path: Path, suffix: str) -> None:
    frame = frame_of(
        SQUARE,
        day=[pd.Timestamp("2024-05-31")],
        time=[pd.Timestamp("2024-05-31T10:00:00Z")],
        raw=[b"\xff\0"],
        flag=[True],
        nothing=[None],
    )
    path = tmp_path / f"a.{suffix}"
    frame.to_parquet(path) if suffix == "parquet" else frame.to_file(path)
    assert len(read_layer(path).frame) == 1


# --- layers -----------------------------------------------------------------------------------------------


def layers_with(path: Path, **layers: object) -> Path:
    for name, shape in layers.items():
        frame_of(shape).to_file(path, layer=name)
    return path


def test_an_area_in_the_second_layer(tmp_path: Path, image: Path) -> None:
    path = layers_with(tmp_path / "areas.gpkg", points=shapely.Point(3, 45), communes=SQUARE)
    for aoi in (path, Path(f"{path}:communes")):
        with opened(image, image, aoi=aoi) as reader:
            assert len(reader.chips(32)) == 15
    with pytest.raises(RasterError, match="holds no areas; give polygons"):
        opened(image, image, aoi=Path(f"{path}:points")).__enter__()
    with pytest.raises(RasterError, match=r"has no layer 'parks' \(it has points, communes\)"):
        opened(image, image, aoi=Path(f"{path}:parks")).__enter__()
    layers_with(path, parks=SQUARE)
    with pytest.raises(
        RasterError, match=r"several layers with polygons \(communes, parks\); name one as FILE:"
    ):
        opened(image, image, aoi=path).__enter__()


def test_no_layer_with_polygons(tmp_path: Path, image: Path) -> None:
    line = shapely.LineString([(3, 45), (3.1, 45)])
    path = layers_with(tmp_path / "areas.gpkg", points=shapely.Point(3, 45), lines=line)
    with pytest.raises(
        RasterError, match=r"has no layer with polygons \(points \(point\), lines \(linestring\)\)"
    ):
        opened(image, image, aoi=path).__enter__()


def test_a_name_with_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "a:b.gpkg"
    path.touch()
    assert split_layer(str(path)) == (path, None)
    assert split_layer(f"{path}:layer") == (path, "layer")
    assert split_layer("none.gpkg:layer") == (Path("none.gpkg:layer"), None)


# --- CRS --------------------------------------------------------------------------------------------------

GRID = "+proj=longlat +ellps=bessel +nadgrids={} +no_defs"


@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "shp", "parquet"])
def test_a_grid_file_named_by_the_crs(tmp_path: Path, image: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frame = geopandas.GeoDataFrame(geometry=[SQUARE], crs=GRID.format("none.gsb"))
    frame.to_parquet(path) if suffix == "parquet" else frame.to_file(path)
    if suffix == "shp":
        path.with_suffix(".prj").write_text(frame.crs.to_wkt("WKT1_GDAL"))
    with pytest.raises(InputError, match=r"its CRS names a grid file \('none\.gsb"):
        read_layer(path)
    with pytest.raises(RasterError, match=r"its CRS names a grid file \('none\.gsb"):
        opened(image, image, aoi=path).__enter__()
