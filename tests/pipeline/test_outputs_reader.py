"""Reader of outputs: the same rows from every format, and a one-line error for foreign files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
from rasterio.crs import CRS
from shapely.geometry import box

from deltavlm.errors import InputError
from deltavlm.geo.features import Feature
from deltavlm.geo.pair import ReadOptions
from deltavlm.geo.sinks import open_sink
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.schema import LOCATIONS
from tests.conftest import Analyzed, Scene

COLUMNS = ("chip_id", "status", "changed", "changed_score", "caption", "new_buildings", "road_cells")


@pytest.mark.parametrize("suffix", ["fgb", "parquet", "geojson", "geojsonl", "ndjson"])
def test_every_format_gives_the_same_rows(analyzed: Analyzed, scene: Scene, suffix: str) -> None:
    def values(path: Path) -> dict[str, list[object]]:
        rows = read_output(path).rows("chips")
        return {row["chip_id"]: [row[name] for name in COLUMNS] for row in rows}

    package = analyzed(*scene.args)
    other = analyzed(*scene.args, to=f"other.{suffix}")
    assert values(other) == values(package)
    assert values(package)[scene.changed_chip][6] == ["center-left"]
    assert len(values(package)) == 15
    first, second = read_output(package), read_output(other)
    assert first.provenance["inputs"] == second.provenance["inputs"]
    assert second.crs is not None
    (first_shape,), (second_shape,) = (
        [row["geometry"] for row in output.rows("chips") if row["chip_id"] == scene.changed_chip]
        for output in (first, second)
    )
    assert first_shape.is_valid
    assert second_shape.is_valid
    if first.crs == second.crs:
        assert first_shape.equals(second_shape)


def test_a_result_without_a_chip_is_read(analyzed: Analyzed, scene: Scene) -> None:
    path = analyzed(*scene.args, read=ReadOptions(nodata=255), max_nodata=0)
    assert {row["status"] for row in read_output(path).rows("chips")} == {"answered", "nodata"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.gpkg", None, "no such file"),
        ("empty.gpkg", b"", "is empty (0 bytes)"),
        ("text.gpkg", b"hello", "is none of GeoPackage"),
        ("text.fgb", b"hello", "is none of GeoPackage"),
        ("text.parquet", b"hello", "is none of GeoPackage"),
        ("text.geojson", b"hello", "is none of GeoPackage"),
        ("list.geojson", b"[]", "is none of GeoPackage"),
        ("deep.geojson", b'{"type":' * 100_000, "cannot be read"),
        ("bytes.geojsonl", b"{\xff\xfe\x00", "cannot be read"),
        ("theirs.geojson", b'{"type": "FeatureCollection", "features": []}', "was not written by deltavlm"),
        (
            "grid.geojson",
            b'{"type": "FeatureCollection", "deltavlm": {}, "features": '
            b'[{"geometry": null, "properties": {"chip_id": "r00000_c00000"}}]}',
            "has no column 'status', so it does not hold chips",
        ),
        ("image.tif", b"II*\0", "is none of GeoPackage"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_output(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    assert "give an output of deltavlm analyze" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_vrt_is_not_followed(analyzed: Analyzed, scene: Scene, tmp_path: Path) -> None:
    package = analyzed(*scene.args)
    source = f"<SrcDataSource>{package}</SrcDataSource><SrcLayer>chips</SrcLayer>"
    path = tmp_path / "leads.gpkg"
    path.write_text(f'<OGRVRTDataSource><OGRVRTLayer name="chips">{source}</OGRVRTLayer></OGRVRTDataSource>')
    assert pyogrio.read_info(path)["features"] > 0  # GDAL would
    with pytest.raises(InputError, match="is none of GeoPackage"):
        read_output(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_output(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.gpkg", r"has no layer 'chips' \(it has locations"),
        ("out.fgb", "has no column 'status', so it does not hold chips"),
    ],
)
def test_an_output_of_another_layer_is_refused(tmp_path: Path, name: str, words: str) -> None:
    """As `--layer locations` writes it."""
    path = tmp_path / name
    with open_sink(path, (LOCATIONS,), CRS.from_epsg(32633), {}) as sink:
        sink.write("locations", [Feature(box(0, 0, 1, 1), {"chip_id": "r00000_c00000", "class": "road"})])
    with pytest.raises(InputError, match=words):
        read_output(path)


def test_a_damaged_package_is_refused(analyzed: Analyzed, scene: Scene, tmp_path: Path) -> None:
    """Truncated or overwritten anywhere: an InputError, or an output that is read."""
    package = analyzed(*scene.args).read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for number in range(12):
        content = bytearray(package[: random.integers(1, len(package))] if number % 2 else package)
        start = int(random.integers(0, len(content)))
        content[start : start + 4000] = bytes(min(4000, len(content) - start))
        path = tmp_path / f"broken{number}.gpkg"
        path.write_bytes(content)
        try:
            read_output(path)
        except InputError:
            refused += 1
    assert refused


@pytest.mark.parametrize(
    "member",
    [
        {"model": {"name": 3}},
        {"model": {"chip_px": "256"}},
        {"model": {"training_gsd_m": [0.5]}},
        {"model": []},
        {"options": {"chip_px": None}},
        {"options": {"limit": "all"}},
        {"options": {"threshold": float("inf")}},
        {"options": {"overlap_px": 0.5}},
        {"versions": 3},
        {"pairs": {}},
        {"questions": [{"name": None}]},
        {"questions": {"name": "caption"}},
        {"inputs": {"before": {"path": 3}}},
        {"inputs": {"grid": {"transform": "abcdef"}}},
        {"inputs": {"alignment": {"overlap_share": "0.5"}}},
    ],
    ids=str,
)
def test_a_provenance_of_other_types_is_none(
    analyzed: Analyzed, scene: Scene, tmp_path: Path, member: dict[str, Any]
) -> None:
    path = analyzed(*scene.args, to="out.geojson")
    collection = json.loads(path.read_text())
    assert read_output(path).provenance == collection["deltavlm"]
    (name,) = member
    value = member[name]
    inner = collection["deltavlm"].get(name)
    collection["deltavlm"][name] = (
        inner | value if isinstance(inner, dict) and isinstance(value, dict) else value
    )
    path.write_text(json.dumps(collection))
    output = read_output(path)
    assert output.provenance == {}
    assert len(output.rows("chips")) == 15
