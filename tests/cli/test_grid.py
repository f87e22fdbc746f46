"""`deltavlm grid`: the chips' outlines, without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyogrio

from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.rasters import noise, write_raster


def test_outlines_of_one_raster_and_of_a_pair(run: Run, scene: Scene) -> None:
    for args in ([scene.before], scene.args):
        result = run("grid", *args, "--chip-size", 32, "--overwrite", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["chips"] == 15
        meta, _, geometry, columns = pyogrio.raw.read("before_grid.gpkg", layer="grid")
        values = dict(zip(meta["fields"], columns, strict=True))
        assert len(geometry) == 15
        assert list(values["chip_id"][:2]) == ["r00000_c00000", "r00000_c00032"]
        assert list(values["x_off"][:2]) == [0, 32]
    assert run.loads == []


def test_outlines_on_stdout(run: Run, scene: Scene) -> None:
    result = run("grid", scene.before, "-o", "-", "--chip-size", 64)
    features = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(features) == 6
    assert features[0]["geometry"]["type"] == "Polygon"


def test_dry_run_and_errors(run: Run, scene: Scene) -> None:
    assert "15 of 32 px" in run("grid", scene.before, "-n", "--chip-size", 32).stdout
    assert not list(Path.cwd().iterdir())
    result = run("grid", "nosuch.tif")
    assert result.exit_code == 2
    assert "nosuch.tif" in one_line(result)
    assert run("grid", scene.before, "-o", "-", "--json").exit_code == 2


def test_notes_about_one_image(run: Run, tmp_path: Path) -> None:
    """They named both dates, and --bands, which `grid` does not have."""
    path = write_raster(
        tmp_path / "plain.tif", noise(4, dtype="uint16"), photometric="MINISBLACK", alpha="NO"
    )
    result = run("grid", path, "--gsd", 1, "-n")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines() == ["resampled to 1 m per pixel, 80 x 48 px"]


def test_a_dry_run_changes_nothing(run: Run, scene: Scene) -> None:
    """It wrote the write-ahead log of an existing GeoPackage into the file."""
    assert run("grid", scene.before, "-o", "out.gpkg").exit_code == 0
    code = (
        "import os, sqlite3; database = sqlite3.connect('out.gpkg');"
        "database.execute('PRAGMA journal_mode=WAL'); database.execute('CREATE TABLE left_over (a)');"
        "database.commit(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    files = {path.name: path.read_bytes() for path in Path.cwd().iterdir()}
    assert run("grid", scene.before, "-o", "out.gpkg", "--overwrite", "-n").exit_code == 0
    assert {path.name: path.read_bytes() for path in Path.cwd().iterdir()} == files
    assert run("grid", scene.before, "-o", "out.gpkg", "--overwrite").exit_code == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["out.gpkg"]


def test_without_a_crs_outlines_are_in_pixels(run: Run, tmp_path: Path) -> None:
    """A transform without a CRS was used as ground coordinates, contrary to help and docs."""
    path = write_raster(tmp_path / "bare.tif", noise(), crs=None)
    assert run("grid", path, "--allow-no-crs", "--chip-size", 64, "-o", "out.fgb").exit_code == 0
    assert pyogrio.read_bounds("out.fgb")[1].min(axis=1).tolist() == [0, 0, 64, 64]
    assert pyogrio.read_bounds("out.fgb")[1].max(axis=1).tolist() == [96, 32, 160, 96]
