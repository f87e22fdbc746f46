"""`deltavlm polygonize`: polygons of a run again, with other thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.pairs import layer
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", 32)


def test_the_file_of_the_run_byte_for_byte(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    args = ("-o", "out.geojson", "--polygons", "--probability", "p.tif", *SMALL)
    assert run("analyze", *scene.args, *args).exit_code == 0
    loads = len(run.loads)
    result = run("polygonize", "out.geojson", "-o", "again.geojson", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"polygons": 1, "output": "again.geojson"}
    assert Path("again.geojson").read_bytes() == Path("out.changes.geojson").read_bytes()
    assert run("polygonize", "p.tif").exit_code == 0
    (row,) = layer("p.changes.gpkg", "changes")
    assert row["caption"] is None
    assert len(run.loads) == loads


def test_chips_called_unchanged(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    run("analyze", *scene.args, "-o", "out.gpkg", "--probability", "p.tif", *SMALL)
    strict = ("polygonize", "out.gpkg", "--threshold", 0.95, "--overwrite")
    assert "0 polygons of change" in run(*strict).stderr
    assert "1 polygon of change" in run(*strict, "--polygons", "all").stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("out.gpkg", "--class", "house"), "'house' is not one of building, road, other"),
        (("p.tif", "--threshold", 0.5), "--threshold"),
        (("p.tif", "--probability", "p.tif"), "--probability"),
        (("out.gpkg", "-o", "p.tif"), "p.tif"),
        (("out.gpkg", "-o", "out.gpkg", "--overwrite"), "out.gpkg"),
        (("nosuch.gpkg",), "nosuch.gpkg: no such file"),
        (("out.gpkg", "--min-area", "nan"), "--min-area"),
        (("out.gpkg", "--bbox", "1,2,3"), "is not xmin,ymin,xmax,ymax"),
        (("out.gpkg", "--bbox", "50,50,51,51"), "overlap"),
    ],
)
def test_bad_input(run: Run, scene: Scene, bright: ScriptedModel, args: tuple[str, ...], words: str) -> None:
    run("analyze", *scene.args, "-o", "out.gpkg", "--probability", "p.tif", *SMALL)
    before = Path("out.gpkg").read_bytes()
    result = run("polygonize", *args)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert Path("out.gpkg").read_bytes() == before
