"""`deltavlm grid`: the chips' outlines, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pyogrio

from tests.cli.conftest import Run, one_line
from tests.conftest import Scene


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


def test_dry_run_and_mistakes(run: Run, scene: Scene) -> None:
    assert "15 of 32 px" in run("grid", scene.before, "-n", "--chip-size", 32).stdout
    assert not list(Path.cwd().iterdir())
    result = run("grid", "nosuch.tif")
    assert result.exit_code == 2
    assert "nosuch.tif" in one_line(result)
    assert run("grid", scene.before, "-o", "-", "--json").exit_code == 2
