"""Outputs of every format can be read back, and are written atomically."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from rasterio.crs import CRS

from deltavlm.errors import OutputError, WriteError
from deltavlm.geo import sinks
from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.geo.output_files import SUFFIXES, check_output
from deltavlm.geo.qml import SIGNATURE
from deltavlm.geo.sinks import check_can_hold, open_sink
from deltavlm.geo.tables import ROW_GROUP

ROOT = Path(__file__).resolve().parents[2]
UTM = CRS.from_epsg(32631)
CHIPS = Layer(
    "chips",
    (
        Field("chip_id", "str", "name of the chip"),
        Field("changed", "bool"),
        Field("changed_score", "float"),
        Field("new_roads", "int"),
        Field("road_cells", "list"),
        Field("extra", "json"),
        Field("caption", "str"),
    ),
)
LOCATIONS = Layer("locations", (Field("chip_id", "str"), Field("class", "str"), Field("cell", "str")))
PROVENANCE = {"model": {"name": "nano"}, "questions": ["caption"]}


def square(step: int) -> shapely.Polygon:
    return shapely.box(500_000 + 128 * step, 5_000_000, 500_128 + 128 * step, 5_000_128)


FULL = {
    "chip_id": "r00000_c00000",
    "changed": np.bool_(True),
    "changed_score": np.float32(0.75),
    "new_roads": np.int64(2),
    "road_cells": ("top-left", "center-center"),
    "extra": {"a": [1, None]},
    "caption": 'a "road" — 新道路\n\tand <b>',
}
EMPTY = {"chip_id": "r00000_c00256", "changed_score": np.float32("inf"), "road_cells": []}
FEATURES = [
    Feature(square(0), FULL),
    Feature(square(1), EMPTY),
    Feature(square(2), {"chip_id": "last", "changed_score": float("nan")}),
]
CELLS = [Feature(square(0), {"chip_id": "r00000_c00000", "class": "road", "cell": "top-left"})]


def write(path: Path, crs: CRS | None = UTM, **options: Any) -> None:
    with open_sink(path, (CHIPS, LOCATIONS), crs, PROVENANCE, **options) as sink:
        sink.write("chips", FEATURES[:1])
        sink.write("locations", CELLS)
        sink.write("chips", iter(FEATURES[1:]))
        sink.write("chips", [])


def rows_of(path: Path, layer: str | None = None) -> dict[str, dict[str, Any]]:
    """The rows by chip_id, NaN as None and JSON texts parsed, whatever the format."""
    if path.suffix == ".parquet":
        frame = geopandas.read_parquet(path)
    else:
        frame = pyogrio.read_dataframe(path, layer=layer, use_arrow=path.suffix == ".gpkg")
    rows = {}
    for row in frame.to_dict("records"):
        values = {
            key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()
        }
        values = {
            key: None if not isinstance(value, list | dict | shapely.Polygon) and pd.isna(value) else value
            for key, value in values.items()
        }
        for key in ("road_cells", "extra"):
            if isinstance(values.get(key), str):
                values[key] = json.loads(values[key])
        rows[values["chip_id"]] = values
    return rows


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_values_come_back(tmp_path: Path, suffix: str) -> None:
    """Lists once came back as the repr of a Python list, and whole numbers with a gap as text."""
    path = tmp_path / f"out{suffix}"
    write(path)
    rows = rows_of(path, "chips" if suffix == ".gpkg" else None)
    assert list(rows) == ["r00000_c00000", "r00000_c00256", "last"] or suffix == ".fgb"
    full = rows["r00000_c00000"]
    expected = FULL | {"road_cells": ["top-left", "center-center"]}
    assert {name: full[name] for name in FULL} == expected
    empty = rows["r00000_c00256"]
    assert empty["road_cells"] == []
    assert [empty[name] for name in ("changed", "changed_score", "new_roads", "extra", "caption")] == [
        None
    ] * 5
    assert (rows["last"]["road_cells"], rows["last"]["changed_score"]) == (None, None)
    assert set(rows) == {"r00000_c00000", "r00000_c00256", "last"}
    styles = [] if suffix == ".gpkg" else [path.with_suffix(".qml")]
    assert sorted(tmp_path.iterdir()) == sorted([path, *styles])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_polygons_come_back_in_the_right_crs(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix.upper()}"
    write(path)
    frame = geopandas.read_parquet(path) if suffix == ".parquet" else pyogrio.read_dataframe(path, layer=0)
    in_lonlat = "json" in suffix
    assert frame.crs.to_epsg() == (4326 if in_lonlat else 32631)
    back = frame.set_index("chip_id").to_crs(32631).geometry
    for step, name in enumerate(("r00000_c00000", "r00000_c00256", "last")):
        assert back[name].symmetric_difference(square(step)).area < (10 if in_lonlat else 1e-9)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_provenance_is_in_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write(path)
    assert provenance_of(path) == PROVENANCE
    with open_sink(path, (CHIPS, LOCATIONS), UTM, PROVENANCE, overwrite=True):
        pass
    if suffix in (".geojsonl", ".ndjson"):
        assert path.read_bytes() == b""
    else:
        assert provenance_of(path) == PROVENANCE


def provenance_of(path: Path) -> Any:
    text: Any
    suffix = path.suffix
    if suffix == ".parquet":
        text = pq.read_metadata(path).metadata[b"deltavlm"]
    elif suffix in (".gpkg", ".fgb"):
        text = pyogrio.read_info(path, layer="chips" if suffix == ".gpkg" else None)["layer_metadata"][
            "deltavlm"
        ]
    elif suffix == ".geojson":
        text = json.dumps(json.loads(path.read_text())["deltavlm"])
    else:
        first, *others = path.read_text().splitlines()
        text = json.dumps(json.loads(first)["deltavlm"])
        assert not any("deltavlm" in json.loads(line) for line in others)
    return json.loads(text)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_layer_can_be_chosen(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write(path, only_layer="locations")
    assert rows_of(path, "locations" if suffix == ".gpkg" else None)["r00000_c00000"]["class"] == "road"
    with pytest.raises(OutputError, match=r"'cells'.*chips, locations"):
        write(tmp_path / f"other{suffix}", only_layer="cells")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_crs_and_without_features(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"pixels{suffix}", crs=None)
    frame = rows_of(tmp_path / f"pixels{suffix}", "chips" if suffix == ".gpkg" else None)
    assert frame["last"]["geometry"].symmetric_difference(square(2)).area == 0
    empty = tmp_path / f"empty{suffix}"
    with open_sink(empty, (CHIPS, LOCATIONS), UTM, PROVENANCE):
        pass
    if suffix in (".geojsonl", ".ndjson"):
        assert empty.read_text() == ""
    else:
        assert rows_of(empty, "chips" if suffix == ".gpkg" else None) == {}


def test_geopackage_holds_all_layers_and_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "out.gpkg"
    write(path)
    assert [name for name, _ in pyogrio.list_layers(path)] == ["chips", "locations", "layer_styles"]
    info = pyogrio.read_info(path, layer="chips")
    subtypes = dict(zip(info["fields"].tolist(), info["ogr_subtypes"], strict=True))
    assert (subtypes["road_cells"], subtypes["changed"]) == ("OFSTJSON", "OFSTBoolean")
    with sqlite3.connect(path) as database:
        described = database.execute("SELECT column_name, description FROM gpkg_data_columns").fetchall()
        assert ("chip_id", "name of the chip") in described
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    database.close()


def test_geopackage_opens_styled_in_qgis(tmp_path: Path) -> None:
    """QGIS takes a default style only where catalog and schema are '' and the geometry column is right."""
    path = tmp_path / "out.gpkg"
    write(path)
    columns = "f_table_catalog, f_table_schema, f_table_name, f_geometry_column, useAsDefault"
    with sqlite3.connect(path) as database:
        rows = database.execute(f"SELECT {columns}, styleQML FROM layer_styles").fetchall()
    database.close()
    assert [row[:5] for row in rows] == [("", "", name, "geom", 1) for name in ("chips", "locations")]
    renderer = ET.fromstring(rows[0][5]).find("renderer-v2")
    assert renderer is not None
    assert "changed_score" in renderer.attrib["attr"]


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".gpkg"])
def test_a_qml_style_is_written_next_to_other_formats(tmp_path: Path, suffix: str) -> None:
    """Ours is replaced with the output; one that a person has saved, or of another program, stays."""
    path, style = tmp_path / f"out{suffix}", tmp_path / "out.qml"
    write(path)
    assert "changed_score" in style.read_text()
    write(path, only_layer="locations", overwrite=True)
    assert "changed_score" not in style.read_text()
    style.write_bytes(b"<qgis/>\xff mine")
    write(path, overwrite=True)
    assert style.read_bytes() == b"<qgis/>\xff mine"


@pytest.mark.parametrize("kind", ["link to a style", "dangling link", "pipe", "folder"])
def test_what_lies_in_the_place_of_a_style_is_left_alone(tmp_path: Path, kind: str) -> None:
    """A link led to a file of somebody else, and a pipe made the run wait for ever."""
    path, style, others = tmp_path / "out.geojson", tmp_path / "out.qml", tmp_path / "others.qml"
    if kind == "link to a style":
        others.write_text(SIGNATURE)
    if "link" in kind:
        style.symlink_to(others)
    elif kind == "pipe":
        os.mkfifo(style)
    else:
        style.mkdir()
    write(path)
    assert len(rows_of(path)) == 3
    assert style.is_symlink() == ("link" in kind)
    assert not others.exists() or others.read_text() == SIGNATURE


def test_a_pipe_is_no_output(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.gpkg")
    with pytest.raises(OutputError, match="is a pipe or a device; choose another name"):
        check_output(tmp_path / "out.gpkg", overwrite=True)


def test_geoparquet_has_bounding_boxes(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write(path)
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert geo["version"] == "1.1.0"
    assert column["bbox"] == [500_000, 5_000_000, 500_384, 5_000_128]
    east = geopandas.read_parquet(path, bbox=(500_300, 5_000_000, 500_400, 5_000_010))
    assert east["chip_id"].tolist() == ["last"]


def test_a_long_geoparquet_has_row_groups(tmp_path: Path) -> None:
    """Each row group says what it covers, so that a reader with a box in mind leaves the others out."""
    path = tmp_path / "out.parquet"
    with open_sink(path, (LOCATIONS,), UTM, PROVENANCE) as sink:
        for start in range(0, ROW_GROUP + 10, 1000):
            steps = range(start, min(start + 1000, ROW_GROUP + 10))
            sink.write("locations", [Feature(square(step), {"chip_id": str(step)}) for step in steps])
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [ROW_GROUP, 10]
    names = [metadata.schema.column(n).path for n in range(metadata.num_columns)]
    statistics = metadata.row_group(1).column(names.index("bbox.xmin")).statistics
    assert (statistics.min, statistics.max) == (square(ROW_GROUP).bounds[0], square(ROW_GROUP + 9).bounds[0])


def test_stdout_gets_a_line_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with open_sink(Path("-"), (CHIPS, LOCATIONS), UTM, PROVENANCE) as sink:
        sink.write("chips", FEATURES[:1])
        first = capsys.readouterr().out
        sink.write("locations", CELLS)
        assert capsys.readouterr().out == ""
        sink.write("chips", FEATURES[1:])
    assert json.loads(first)["properties"]["caption"] == FULL["caption"]
    assert len(capsys.readouterr().out.splitlines()) == 2
    with open_sink(None, (CHIPS,), UTM, PROVENANCE) as sink:
        sink.write("chips", FEATURES)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["Feature"] * 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_multipolygons_and_rows_without_a_polygon(tmp_path: Path, suffix: str) -> None:
    """A chip on the 180th meridian is cut in two; a pair that cannot be opened has no polygon."""
    two = shapely.MultiPolygon([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)])
    shapes = [two, shapely.Polygon(), shapely.box(10, 0, 11, 1)]
    rows = [Feature(shape, {"chip_id": str(n)}) for n, shape in enumerate(shapes)]
    path = tmp_path / f"out{suffix}"
    with open_sink(path, (CHIPS,), CRS.from_epsg(4326), PROVENANCE) as sink:
        sink.write("chips", rows)
    frame = geopandas.read_parquet(path) if suffix == ".parquet" else pyogrio.read_dataframe(path, layer=0)
    back = frame.set_index("chip_id").geometry
    assert back["0"].equals(two)
    assert back["1"] is None
    assert back["2"].geom_type == "Polygon"
    if suffix == ".parquet":
        column = json.loads(pq.read_schema(path).metadata[b"geo"])["columns"]["geometry"]
        assert column["geometry_types"] == ["Polygon", "MultiPolygon"]
        assert column["bbox"] == [-180, 0, 180, 1]


def test_a_property_that_no_layer_has_is_a_bug() -> None:
    with pytest.raises(ValueError, match="color"):
        Feature(square(0), {"color": "red"}).row(CHIPS)


# --- atomic ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("old", [None, b"the old result"])
def test_an_exception_leaves_nothing(tmp_path: Path, suffix: str, old: bytes | None) -> None:
    path = tmp_path / f"out{suffix}"
    if old:
        path.write_bytes(old)

    def interrupted() -> None:
        with open_sink(path, (CHIPS, LOCATIONS), UTM, PROVENANCE, overwrite=True) as sink:
            sink.write("chips", FEATURES)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(sinks.TABLE_WRITERS, suffix, fail)
    with pytest.raises(WriteError, match=r"writing failed .*No space left.*free some space"):
        write(tmp_path / f"out{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_limited_file_size_is_a_clear_error(tmp_path: Path, suffix: str) -> None:
    """The same with the real writers: the process may write files of 1 KiB, as on a full disk."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from tests.geo.test_sinks import write;"
        "from deltavlm.errors import WriteError; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try: write(Path(sys.argv[1]))\n"
        "except WriteError as error: print(error, error.exit_code)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / f"out{suffix}")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert "writing failed" in process.stdout, process.stderr
    assert process.stdout.endswith(" 1\n")  # no mistake of the user
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    existing = tmp_path / "existing.gpkg"
    existing.write_bytes(b"something")
    (tmp_path / "folder.gpkg").mkdir()
    (tmp_path / "a!b").mkdir()
    for path, words in {
        existing: "exists already; add `overwrite=True`",
        tmp_path / "folder.gpkg": "is a folder",
        tmp_path / "a!b" / "out.gpkg": "a ! in its name",
        tmp_path: "is a folder; name a file in it",
        tmp_path / "out.shp": r"suffix '\.shp' is not one of \.gpkg, ",
        tmp_path / "out": "has no suffix; use one of",
        tmp_path / "no" / "such" / "out.gpkg": "there is no folder",
        tmp_path / f"{'a' * 245}.gpkg": "File name too long",  # the name fits, that of SQLite's log does not
        tmp_path / f"{'a' * 300}.fgb": "File name too long",
        Path("/proc/out.gpkg"): "cannot write in /proc",
    }.items():
        with pytest.raises(OutputError, match=words) as caught:
            check_output(path, overwrite=False)
        assert str(caught.value).startswith(f"{path}: ")
        with pytest.raises(OutputError):
            write(path)
    check_output(existing, overwrite=True)
    for stdout in (None, Path("-")):
        check_output(stdout, overwrite=False)


def test_overwriting_replaces(tmp_path: Path) -> None:
    path = tmp_path / "out.gpkg"
    path.write_bytes(b"not a database")
    write(path, overwrite=True)
    write(path, overwrite=True)
    assert len(rows_of(path, "chips")) == 3


def leave_a_log(path: Path) -> None:
    """A process that dies with the GeoPackage open, as QGIS may, and leaves its write-ahead log."""
    code = (
        "import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1]);"
        "database.execute('PRAGMA journal_mode=WAL');"
        "database.execute('CREATE TABLE left_over (a)'); database.commit(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)


def test_a_stale_log_does_not_corrupt_the_new_file(tmp_path: Path) -> None:
    """Replacing a GeoPackage beside a stale -wal gave "malformed database schema"."""
    path = tmp_path / "out.gpkg"
    write(path)
    leave_a_log(path)
    assert (tmp_path / "out.gpkg-wal").exists()
    write(path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    assert len(rows_of(path, "chips")) == 3


def test_a_log_without_its_file_is_removed(tmp_path: Path) -> None:
    """Deleting out.gpkg alone leaves a log that SQLite would apply to the next out.gpkg."""
    path = tmp_path / "out.gpkg"
    write(path)
    leave_a_log(path)
    path.unlink()
    write(path)
    assert list(tmp_path.iterdir()) == [path]
    assert len(rows_of(path, "chips")) == 3


def test_a_geopackage_open_elsewhere_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.gpkg"
    write(path)
    code = (
        "import sqlite3, sys; database = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "database.execute('PRAGMA journal_mode=WAL'); database.execute('SELECT * FROM chips').fetchall();"
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(OutputError, match="open in another program, perhaps QGIS; close it"):
            check_output(path, overwrite=True)
        other.communicate()
    check_output(path, overwrite=True)


def test_checking_an_output_changes_nothing(tmp_path: Path) -> None:
    """A dry run took the write-ahead log of an existing GeoPackage into the file and removed it."""
    path = tmp_path / "out.gpkg"
    write(path)
    leave_a_log(path)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert "out.gpkg-wal" in files
    check_output(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


@pytest.mark.parametrize("name", ["a\nb.gpkg", "a\x1b[31m.geojson", "a\udcff.fgb"])
def test_a_name_that_cannot_be_printed(tmp_path: Path, name: str) -> None:
    """GDAL cuts such a name short, and what it wrote under the other name stayed behind."""
    with pytest.raises(OutputError, match="control characters") as caught:
        write(tmp_path / name)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_long_name_that_the_system_takes(tmp_path: Path, suffix: str) -> None:
    """The hidden file had a longer name than the result, and failed after all the work."""
    path = tmp_path / f"{'a' * (255 - len('-journal') - len(suffix))}{suffix}"
    write(path)
    assert set(tmp_path.iterdir()) <= {path, path.with_suffix(".qml")}
    assert path.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path: Path, suffix: str, exists: bool) -> None:
    """The link was replaced by a file, and what it led to stayed old."""
    target, link = tmp_path / "store" / f"target{suffix}", tmp_path / f"link{suffix}"
    target.parent.mkdir()
    if exists:
        target.write_bytes(b"old")
        with pytest.raises(OutputError, match="exists already"):
            check_output(link.parent / "store" / target.name, overwrite=False)
    link.symlink_to(target)
    write(link, overwrite=exists)
    assert link.is_symlink()
    assert len(rows_of(target, "chips" if suffix == ".gpkg" else None)) == 3
    assert list(target.parent.iterdir()) == [target]
    link.unlink()
    link.symlink_to(link.name)
    with pytest.raises(OutputError, match=r"link\.\w+: cannot be written"):
        check_output(link, overwrite=True)


def test_results_are_saved_under_another_name_if_the_path_exists_by_then(tmp_path: Path) -> None:
    """Hours of answers must not be lost because somebody else wrote the file in the meantime.

    Nor must another file: the results saved the last time were replaced.
    """
    path = tmp_path / "out.geojson"

    def overtaken() -> None:
        with open_sink(path, (CHIPS,), UTM, PROVENANCE) as sink:
            sink.write("chips", FEATURES)
            path.write_text("taken")

    with pytest.raises(OutputError, match=r"exists already.*the results are in .*out\.new\.geojson"):
        overtaken()
    assert path.read_text() == "taken"
    assert len(rows_of(tmp_path / "out.new.geojson")) == 3
    path.unlink()
    (tmp_path / "out.new.geojson").write_text("precious")
    with pytest.raises(OutputError, match=r"the results are in .*out\.new2\.geojson"):
        overtaken()
    assert (tmp_path / "out.new.geojson").read_text() == "precious"
    assert len(rows_of(tmp_path / "out.new2.geojson")) == 3


def environment(**variables: str) -> Mapping[str, str]:
    return {**os.environ, **variables}


@pytest.mark.parametrize(("keep", "works"), [("0", True), ("1", False)])
def test_a_poisoned_proj_data_is_unset(tmp_path: Path, keep: str, works: bool) -> None:
    """QGIS and OSGeo4W set PROJ_DATA for their own PROJ, and every CRS of rasterio failed."""
    code = (
        "from deltavlm.geo import UNSET_VARIABLES; from rasterio.crs import CRS;"
        "print(UNSET_VARIABLES); print(CRS.from_epsg(32631).to_epsg())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(PROJ_DATA=str(tmp_path), DELTAVLM_KEEP_PROJ=keep),
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (process.returncode == 0 and "32631" in process.stdout) == works
    assert (str(tmp_path) in process.stdout) == works


# --- before a run -----------------------------------------------------------------------------------------

SITE = 'LOCAL_CS["site",UNIT["metre",1]]'


@pytest.mark.parametrize("suffix", [*SUFFIXES, None])
def test_what_a_format_cannot_hold_is_told_before_the_run(tmp_path: Path, suffix: str | None) -> None:
    """GeoJSON needs a way to longitude and latitude, which a site's own CRS has not."""
    path = None if suffix is None else tmp_path / f"out{suffix}"
    for crs in (None, UTM):
        check_can_hold(path, (CHIPS, LOCATIONS), crs, [square(0)])
    if suffix in (".gpkg", ".fgb", ".parquet"):
        check_can_hold(path, (CHIPS, LOCATIONS), CRS.from_wkt(SITE), [square(0)])
    else:
        with pytest.raises(OutputError, match=r"does not lead to longitude and latitude.*; write \.gpkg"):
            check_can_hold(path, (CHIPS, LOCATIONS), CRS.from_wkt(SITE), [square(0)])
        globe = CRS.from_string("+proj=ortho +lat_0=45 +lon_0=3")
        beyond = shapely.box(7e6, 7e6, 8e6, 8e6)
        with pytest.raises(OutputError, match=r"the CRS of the raster has none; write .gpkg instead"):
            check_can_hold(path, (CHIPS,), globe, [beyond])
        check_can_hold(path, (CHIPS,), globe, [beyond, shapely.box(0, 0, 1e5, 1e5)])
    assert not list(tmp_path.iterdir())


def test_a_crs_that_a_format_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object) -> None:
        path.touch()
        raise RuntimeError("cannot store this CRS")

    monkeypatch.setitem(sinks.TABLE_WRITERS, ".fgb", fail)
    with pytest.raises(OutputError, match=r"out\.fgb: a \.fgb cannot hold the result there \(cannot store"):
        check_can_hold(tmp_path / "out.fgb", (CHIPS,), CRS.from_wkt(SITE), [square(0)])
    assert not list(tmp_path.iterdir())


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network drives, where SQLite fails."""

    def locked(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    path = tmp_path / "out.gpkg"
    with monkeypatch.context() as patched:
        patched.setattr(sinks.sqlite3, "connect", locked)
        with pytest.raises(OutputError, match=r"cannot hold the result there \(database is locked\); choose"):
            check_can_hold(path, (CHIPS,), UTM, [square(0)])
    many = Layer("chips", tuple(Field(f"answer_{number}", "str") for number in range(3000)))
    with pytest.raises(OutputError, match="too many columns"):
        check_can_hold(path, (many,), UTM, [square(0)])
    assert not list(tmp_path.iterdir())
