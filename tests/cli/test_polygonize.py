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
    summary = json.loads(result.stdout)
    km2 = summary.pop("changed_km2")
    assert summary == {
        "polygons": 1,
        "output": "again.geojson",
        "kinds": {"building_built": 1},
        "kinds_km2": {"building_built": km2},
    }
    assert f"1 building_built {1e6 * km2:.0f} m²" in result.stderr
    assert f"1 polygon of change, {1e6 * km2:.0f} m²; output again.geojson" in result.stderr
    again, before = (
        Path(name).read_bytes().partition(b'"features"') for name in ("again.geojson", "out.changes.geojson")
    )
    assert again[2] == before[2]
    records = [
        json.loads(Path(name).read_text())["deltavlm"] for name in ("again.geojson", "out.changes.geojson")
    ]
    assert records[0].pop("polygonized") == {"output": "out.geojson", "threshold": None}
    assert records[0] == records[1]
    assert run("polygonize", "p.tif").exit_code == 0
    (row,) = layer("p.changes.gpkg", "changes")
    assert row["caption"] is None
    assert len(run.loads) == loads


def test_chips_called_unchanged(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    run("analyze", *scene.args, "-o", "out.gpkg", "--probability", "p.tif", *SMALL)
    strict = ("polygonize", "out.gpkg", "--threshold", 0.95, "--overwrite")
    assert "0 polygons of change" in run(*strict).stderr
    assert "1 polygon of change" in run(*strict, "--polygons", "all").stderr


def test_a_class_that_the_run_has_no_polygon_of(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    run("analyze", *scene.args, "-o", "out.gpkg", "--probability", "p.tif", *SMALL)
    result = run("polygonize", "out.gpkg", "--class", "road,other")
    assert result.exit_code == 0
    warning = "Warning: no polygon of class road or other; the run has 1 of class building"
    assert warning in result.stderr.splitlines()
    again = ("polygonize", "out.gpkg", "--overwrite")
    assert "the run has" not in run(*again, "--class", "building").stderr
    assert "the run has" not in run(*again, "--class", "road", "--threshold", 0.95).stderr


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet"])
def test_a_file_of_polygons_stands_for_its_output(
    run: Run, scene: Scene, bright: ScriptedModel, suffix: str
) -> None:
    """With these polygons: in a summary, a report and a catalog, at the threshold that they were drawn at."""
    Path("sub").mkdir()
    run("analyze", *scene.args, "-o", f"out{suffix}", "--polygons", "--probability", "p.tif", *SMALL)
    other = ".geojson" if suffix == ".gpkg" else suffix
    for name, *args in (
        ("sub/large" + other, "--min-area", 1),
        ("sub/none" + other, "--threshold", 0.95),
    ):
        assert run("polygonize", f"out{suffix}", "-o", name, *args).exit_code == 0
    first, large, none = (
        json.loads(run("summarize", name, "--json").stdout)
        for name in (f"out{suffix}", "sub/large" + other, "sub/none" + other)
    )
    assert (first["all"]["changed"], large["all"]["changed"], none["all"]["changed"]) == (1, 1, 0)
    assert first["totals"]["basis"] == large["totals"]["basis"] == "polygons"
    for name in ("analyzed_km2", "changed_km2", "new_buildings"):
        assert large["totals"][name] == pytest.approx(first["totals"][name], rel=1e-5)
    assert (none["totals"]["basis"], none["totals"]["changed_km2"]) == ("polygons", 0)
    assert any("at least 0.95" in caveat for caveat in none["caveats"])
    result = run("report", "sub/large" + other, "-o", "r.html", "--quicklook", "q.png")
    assert result.exit_code == 0, result.stderr
    assert "no images" not in result.stderr
    dates = ("--before-date", 2020, "--after-date", 2024)
    assert run("stac", "sub/large" + other, "-o", "item.json", *dates).exit_code == 0
    assert run("polygonize", "sub/large" + other, "-o", "third.gpkg", "--probability", "p.tif").exit_code == 0
    third = json.loads(run("summarize", "third.gpkg", "--json").stdout)
    assert third["totals"]["kinds_km2"] == pytest.approx(first["totals"]["kinds_km2"])
    both = run("summarize", f"out{suffix}", "sub/large" + other)
    assert both.exit_code == 2
    assert "ground would count twice with the other outputs of this run" in one_line(both)
    over = run("summarize", "sub/large" + other, "--by", "grid", "-o", f"out{suffix}", "--overwrite")
    assert over.exit_code == 2
    Path(f"out{suffix}").rename("moved")
    lost = run("summarize", "sub/large" + other)
    assert lost.exit_code == 2
    assert f"sub/large{other}: its chips are in sub/../out{suffix}, and there is no such file" in one_line(
        lost
    )


def test_polygons_without_chips_say_what_to_give(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    run("analyze", *scene.args, "-o", "out.geojson", "--polygons", "--probability", "p.tif", *SMALL)
    run("analyze", *scene.args, "-o", "other.geojson", "--polygons", "--overlap", 8, *SMALL)
    run("polygonize", "p.tif", "-o", "raster.gpkg")
    run("polygonize", "out.geojson", "-o", "again.gpkg")
    Path("other.geojson").replace("out.geojson")
    for name, words in (
        (
            "raster.gpkg",
            "has polygons of a raster alone, without chips; draw them with deltavlm polygonize OUT",
        ),
        ("out.changes.geojson", "has polygons of change and no chips; give an output of deltavlm analyze"),
        ("again.gpkg", "again.gpkg: is not of the run of out.geojson, as their options differ"),
    ):
        for command in ("summarize", "report"):
            result = run(command, name)
            assert result.exit_code == 2
            assert words in one_line(result)


def test_polygons_drawn_over_those_of_the_run_count(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    """They were ignored, and whole chips counted as changed ground."""
    run("analyze", *scene.args, "-o", "out.geojson", "--polygons", "--probability", "p.tif", *SMALL)
    again = ("polygonize", "out.geojson", "-o", "out.changes.geojson", "--overwrite", "--min-area")
    for min_area, kinds in ((1, {"building_built": 1}), (1e6, {})):
        assert run(*again, min_area).exit_code == 0
        totals = json.loads(run("summarize", "out.geojson", "--json").stdout)["totals"]
        assert (totals["basis"], totals["kinds"]) == ("polygons", kinds)


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
