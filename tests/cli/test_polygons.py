"""`analyze --polygons`, `--mask`, `--probability`: flags, messages and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rasterio

from deltavlm.pipeline.job import AnalyzeJob
from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.pairs import layer, write_pairs
from tests.scripted_model import ScriptedModel
from tests.seven import seven_checkpoint, seven_with_head

SMALL = ("--chip-size", 32)
RASTERS = ("--mask", "m.tif", "--probability", "p.tif")


def test_polygons_and_rasters_are_reported(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--polygons", *RASTERS, "--json", *SMALL)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["polygons"] == 1
    assert summary["extras"] == {"mask": "m.tif", "probability": "p.tif"}
    assert "1 polygon of change; mask m.tif; probability p.tif" in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["m.tif", "out.gpkg", "p.tif"]


def test_a_separate_file_of_polygons_is_reported(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    args = ("analyze", *scene.args, "-o", "out.geojson", "--polygons", *SMALL)
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    assert "1 polygon of change; polygons out.changes.geojson" in result.stderr
    Path("out.geojson").unlink()
    refused = run(*args)
    assert (refused.exit_code, "out.changes.geojson: exists already" in one_line(refused)) == (2, True)


def test_flags_of_polygons_reach_the_run(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    flags = ("--mask-threshold", 0.7, "--min-area", 2, "--simplify", 0, "--overlap", 8)
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--polygons", "--mask", "m.tif", *flags, *SMALL)
    assert result.exit_code == 0, result.stderr
    with rasterio.open("m.tif") as raster:
        record = json.loads(raster.tags()["deltavlm"])
    expected = {"threshold": 0.7, "min_area_m2": 2, "simplify_px": 0, "chips": "changed"}
    assert {name: record["changes"][name] for name in expected} == expected
    assert record["options"]["overlap_px"] == 8


@pytest.mark.parametrize(
    ("words", "chips"),
    [
        (["--polygons"], "changed"),
        (["--polygons", "changed"], "changed"),
        (["--polygons", "all"], "all"),
        (["--polygons=all"], "all"),
        (["--polygons", "all", "--polygons"], "changed"),
        (["--no-polygons", "--polygons", "all"], "all"),
        (["--polygons", "all", "--no-polygons"], None),
        (["--config", "true.toml"], "changed"),
        (["--config", "all.toml"], "all"),
        (["--config", "false.toml"], None),
        (["--config", "all.toml", "--no-polygons"], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_polygons_takes_a_value_only_where_it_is_one(
    run: Run,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    chips: str | None,
    is_first: bool,
) -> None:
    """The word behind a bare --polygons may be BEFORE."""
    jobs: list[AnalyzeJob] = []
    monkeypatch.setattr("deltacli.analyze.analyze_job", lambda job, *_: jobs.append(job))
    for name, value in (("true", "true"), ("false", "false"), ("all", '"all"')):
        Path(f"{name}.toml").write_text(f"[analyze]\npolygons = {value}\n")
    args = [*words, *scene.args] if is_first else [*scene.args, *words]
    result = run("analyze", *args)
    assert result.exit_code == 0, result.stderr
    (job,) = jobs
    assert job.pairs.pairs[0].before == str(scene.before)
    assert job.output.polygons == (chips is not None)
    assert job.output.changes.chips == (chips or "changed")


def test_polygons_in_the_environment(
    run: Run, scene: Scene, bright: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("1", "all"):
        monkeypatch.setenv("DELTAVLM_ANALYZE_POLYGONS", value)
        result = run("analyze", *scene.args, "-o", f"{value}.gpkg", *SMALL, "--json")
        assert json.loads(result.stdout)["polygons"] == 1


def test_polygons_of_other_chips_are_refused(run: Run, scene: Scene) -> None:
    for words in (["--polygons=some", *scene.args], [*scene.args, "--polygons", "some"]):
        result = run("analyze", *words)
        assert result.exit_code == 2
        assert "'some' is not changed or all" in one_line(result)
    result = run("analyze", "--pairs", "list.csv", "--polygons", "some")  # was taken for BEFORE
    assert "'some' is not changed or all" in one_line(result)


def test_dates_of_a_single_pair(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    args = ("analyze", *scene.args, "-o", "out.gpkg", "--polygons", *SMALL)
    dates = ("--before-date", "2015", "--after-date", "2024-05-31")
    assert run(*args, *dates).exit_code == 0
    for name in ("changes", "chips"):
        row = layer("out.gpkg", name)[0]
        assert (row["before_date"], row["after_date"]) == ("2015", "2024-05-31")
    assert run("analyze", *scene.args, "-o", "plain.gpkg", *SMALL, *dates).exit_code == 0
    refused = run(*args, "--overwrite", "--before-date", "yesterday")
    assert (refused.exit_code, "is not a date in ISO 8601" in one_line(refused)) == (2, True)


def test_the_plan_names_rasters_and_polygons(run: Run, scene: Scene, tmp_path: Path) -> None:
    args = ("analyze", *scene.args, "-o", "out.geojson", "--polygons", "--mask", "m.tif", "-n", *SMALL)
    plan = run(*args).stdout.splitlines()
    assert "mask       m.tif" in plan
    assert "polygons   out.changes.geojson" in plan
    assert any("overlap 4 px" in line for line in plan)
    assert json.loads(run(*args, "--json").stdout)["extras"] == {
        "mask": "m.tif",
        "polygons": "out.changes.geojson",
    }
    table = write_pairs(tmp_path / "in", 2)
    plan = run("analyze", "--pairs", table, "-o", "each/", "--mask", "masks/", "-n", *SMALL).stdout
    assert "mask       masks" in plan.splitlines()
    assert not list(Path().iterdir())


def test_a_config_file_and_the_metrics(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    Path("conf.toml").write_text('[analyze]\npolygons = true\nmask = "m.tif"\nmin-area = 2\n')
    result = run(
        "analyze", *scene.args, "-o", "out.gpkg", "--config", "conf.toml", "--metrics", "m.prom", *SMALL
    )
    assert result.exit_code == 0, result.stderr
    assert Path("m.tif").exists()
    metrics = Path("m.prom").read_text()
    assert any(
        line.startswith("deltavlm_polygons_total{") and line.endswith(" 1") for line in metrics.split("\n")
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--mask", "m.png"), "m.png: suffix '.png' is not one of .tif, .tiff"),
        (("--mask", "nowhere/m.tif"), "there is no folder"),
        (("--mask", "."), ".: is a folder; name a file in it"),
        (("-o", "."), ".: is a folder; name a file in it"),
        (
            ("--mask", "one.tif", "--probability", "./one.tif"),
            "one.tif: would be both the mask and the probability",
        ),
        (("--layer", "changes"), "without --polygons"),
        (("--min-area", 3), "is for --polygons"),
        (("--simplify", 3), "is for --polygons"),
        (("--polygons", "-o", "-"), "they need a file"),
        (("--polygons", "--mask-threshold", 0), "0.01"),
        (("--polygons", "--min-area", -1), "-1"),
        (("--polygons", "--min-area", "nan"), "not 'nan'"),
        (("--polygons", "--simplify", "inf"), "inf is not a finite number"),
        (("--mask", "/proc/m.tif"), "cannot write in /proc"),
        (("--mask", f"{'m' * 300}.tif"), "choose another name"),
        (("--mask", "there.tif"), "there.tif: exists already; add --overwrite"),
    ],
)
def test_invalid_flags_are_refused(run: Run, scene: Scene, args: tuple[object, ...], words: str) -> None:
    Path("there.tif").write_bytes(b"mine")
    named = () if "-o" in args else ("-o", "out.gpkg")
    result = run("analyze", *scene.args, *named, *args, *SMALL)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert [path.name for path in Path().iterdir()] == ["there.tif"]
    assert Path("there.tif").read_bytes() == b"mine"


def test_an_image_is_never_overwritten(run: Run, scene: Scene) -> None:
    content = scene.before.read_bytes()
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--mask", scene.before, "--overwrite", *SMALL)
    assert (result.exit_code, "would be both the mask and the earlier image" in one_line(result)) == (2, True)
    assert scene.before.read_bytes() == content


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-o", "all.gpkg", "--mask", "m.tif"), "many pairs cannot be one raster"),
        (("-o", "each/", "--probability", "p.tif"), "name a folder, such as --probability rasters/"),
        (("-o", "all.gpkg", "--polygons", "--after-date", "2024"), "a list has its own"),
    ],
)
def test_invalid_flags_for_many_pairs_are_refused(
    run: Run, tmp_path: Path, args: tuple[object, ...], words: str
) -> None:
    result = run("analyze", "--pairs", write_pairs(tmp_path / "in", 2), *args, *SMALL)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert not list(Path().iterdir())


def test_a_model_without_a_mask_head(run: Run, scene: Scene, tmp_path: Path) -> None:
    folder = seven_checkpoint(tmp_path / "seven")
    args = ("analyze", *scene.args, "-o", "out.gpkg", "--model", folder, "--polygons", *SMALL)
    for flags in ((), ("-n",)):
        result = run(*args, *flags)
        assert result.exit_code == 2
        assert "model seven has no mask head" in one_line(result)
        assert "ask a model that has one, such as nano" in result.stderr
    seven_with_head(tmp_path / "head")
    assert run(*args[:-4], tmp_path / "head", "--polygons", "-n", *SMALL).exit_code == 0
