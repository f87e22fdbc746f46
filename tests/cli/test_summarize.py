"""`deltavlm summarize`: tables, documents, maps, and one-line errors."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import geopandas
import pyogrio
import pytest
import shapely

from tests.cli.conftest import Run, one_line
from tests.rasters import noise, write_raster

SMALL = ("--chip-size", 32)


@pytest.fixture
def out(run: Run, tmp_path: Path) -> Path:
    """An output of 15 chips, of which one has changed; see the scripted model."""
    before, after = (
        write_raster(tmp_path / f"{name}.tif", noise(3, 96, 160)) for name in ("before", "after")
    )
    path = tmp_path / "out.gpkg"
    assert run("analyze", before, after, "-o", path, *SMALL).exit_code == 0
    return path


def districts(path: Path, out: Path) -> Path:
    chips = pyogrio.read_dataframe(out, layer="chips")
    x_min, bottom, x_max, top = chips.total_bounds
    x_centre = (x_min + x_max) / 2
    shapes = [shapely.box(x_min, bottom, x_centre, top), shapely.box(x_centre, bottom, x_max, top)]
    frame = geopandas.GeoDataFrame({"name": ["'=west", "east"]}, geometry=shapes, crs=chips.crs)
    frame.to_file(path, layer="halves")
    return path


def test_the_table_goes_to_stdout_and_caveats_to_stderr(run: Run, out: Path) -> None:
    result = run("summarize", out)
    assert result.exit_code == 0, result.stderr
    head, row = result.stdout.splitlines()
    assert head.split()[:2] == ["area", "chips"]
    assert row.split()[:2] == ["all", "15"]
    assert "not measurements" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("of 15 chips changed")


def test_the_table_says_what_changed_ground_is_measured_by_where_areas_differ(
    run: Run, out: Path, bright: object, tmp_path: Path
) -> None:
    """By polygons in one output, by whole chips in the other."""
    other = tmp_path / "other"
    other.mkdir()
    after = noise(3, 96, 160)
    after[:, 40:50, 70:80] = 255
    images = [write_raster(other / "b.tif", noise(3, 96, 160)), write_raster(other / "a.tif", after)]
    result = run("analyze", *images, "-o", other / "other.gpkg", "--polygons", *SMALL)
    assert result.exit_code == 0, result.stderr
    result = run("summarize", out, other / "other.gpkg", "--by", "pair")
    head, *rows = result.stdout.splitlines()
    assert "measured by" in head, result.stdout
    start = head.index("measured by")
    assert sorted(row[start:].split("  ")[0] for row in rows) == ["chips", "chips and polygons", "polygons"]
    assert "measured by" not in run("summarize", out).stdout


def test_by_a_file_and_its_layer(run: Run, out: Path, tmp_path: Path) -> None:
    path = districts(tmp_path / "halves.gpkg", out)
    for by in (path, f"{path}:halves"):
        result = run("summarize", out, "--by", by, "--json")
        assert result.exit_code == 0, result.stderr
        summary = json.loads(result.stdout)
        assert sorted(area["name"] for area in summary["areas"]) == ["'=west", "east"]
        assert sum(area["chips"] for area in summary["areas"]) == summary["all"]["chips"] == 15
        assert any("not measurements" in caveat for caveat in summary["caveats"])
    *_, last = run("summarize", out, "--by", path).stdout.splitlines()
    assert last.split()[:2] == ["all", "15"]


@pytest.mark.parametrize("suffix", [".csv", ".md", ".html", ".gpkg", ".geojson", ".fgb", ".parquet"])
def test_each_kind_of_output(run: Run, out: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sum{suffix}"
    args = ("summarize", out, "--by", districts(tmp_path / "halves.gpkg", out), "-o", path)
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].endswith(f"in 2 areas; output {path}")
    if suffix == ".csv":
        with path.open(newline="") as file:
            assert sorted(row["name"] for row in csv.DictReader(file)) == ["'=west", "east"]
    elif suffix in (".md", ".html"):
        assert "Caveats" in path.read_text(encoding="utf-8")
    else:
        frame = (
            geopandas.read_parquet(path) if suffix == ".parquet" else pyogrio.read_dataframe(path, layer=0)
        )
        assert frame["chips"].sum() == 15
        assert frame.crs.to_epsg() == 4326
    assert "exists already; add --overwrite" in one_line(run(*args))
    assert run(*args, "--overwrite").exit_code == 0


def test_usage_errors_are_one_line(
    run: Run, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: dict[tuple[object, ...], str] = {
        (tmp_path / "no.gpkg",): "no such file",
        (out, "--by", tmp_path / "no.gpkg"): "no such file",
        (out, "--cell", 100): "--cell: goes with --by grid only",
        (out, "--by", "grid", "--resolution", 3): "goes with --by h3 only",
        (out, "--by", "h3", "--name-field", "x"): "goes with --by FILE only",
        (out, "--by", "grid", "--cell", 0): "0 is not from above 0",
        (out, "--by", "h3", "--resolution", 16): "--resolution",
        (out, "--by", "pair"): "has one pair only",
        (out, "-o", tmp_path / "x.txt"): "suffix '.txt' is not one of .csv, .md, .html, .gpkg",
        (out, "-o", tmp_path / "x.gpkg"): "no areas to draw; add --by",
        (out, "-o", out, "--overwrite"): "would be both -o and OUT",
        (out, "-o", "-"): "no areas to draw; add --by",
        (out, "--by", "grid", "-o", "-", "--json"): "stdout is taken",
    }
    for args, words in cases.items():
        result = run("summarize", *args)
        assert result.exit_code == 2, (args, result.stderr)
        assert words in one_line(result)
    assert not (tmp_path / "x.gpkg").exists()


def test_a_stream_of_areas(run: Run, out: Path) -> None:
    result = run("summarize", out, "--by", "grid", "--cell", 20, "-o", "-")
    assert result.exit_code == 0, result.stderr
    features = [json.loads(line) for line in result.stdout.splitlines()]
    assert sum(feature["properties"]["chips"] for feature in features) == 15


def test_without_h3(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h3", None)  # importing it fails
    result = run("summarize", out, "--by", "h3")
    assert result.exit_code == 2
    assert one_line(result).endswith('--by h3 needs h3, which is not installed; pip install "deltavlm[h3]"')


def test_a_folder_stands_for_its_outputs(run: Run, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "each"
    folder.mkdir()
    for name in ("a.gpkg", "b.gpkg"):
        shutil.copy(out, folder / name)
    for name in ("a.changes.geojson", ".hidden.gpkg", "a.qml", "notes.txt"):
        (folder / name).write_text("{}")
    assert json.loads(run("summarize", folder, "--json").stdout)["all"]["chips"] == 30
    assert json.loads(run("summarize", folder, out, "--json").stdout)["all"]["chips"] == 45
    (tmp_path / "empty").mkdir()
    assert "empty: holds no outputs (.gpkg" in one_line(run("summarize", tmp_path / "empty"))


def test_a_threshold_of_stored_scores(run: Run, out: Path) -> None:
    result = run("summarize", out, "--threshold", 0.05, "--json")
    summary = json.loads(result.stdout)
    assert summary["all"]["changed"] == 15
    assert summary["conflicts"] == {"changed_but_caption_denies": 15}
    assert any("a score of at least 0.05, by the stored scores" in caveat for caveat in summary["caveats"])


def test_chips_that_a_cascade_did_not_ask_about_are_told(run: Run, tmp_path: Path, out: Path) -> None:
    before, after = tmp_path / "before.tif", tmp_path / "after.tif"
    assert run("analyze", before, after, "-o", "cascade.gpkg", "--cascade", *SMALL).exit_code == 0
    result = run("summarize", "cascade.gpkg", "--threshold", 0.05)
    assert "15 changed chips were asked only whether they changed" in result.stderr
    assert "15 changed chips" not in run("summarize", "cascade.gpkg").stderr
