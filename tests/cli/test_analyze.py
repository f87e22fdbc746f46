"""`deltavlm analyze` of one pair: flags, messages, exit codes and streams."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deltacli.console import Console
from deltavlm.model.config import RuntimeOptions
from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.scripted_model import CHANGED, CONTRADICTIONS, ScriptedModel, contradicting

SMALL = ("--chip-size", 32)


def test_without_o_the_result_is_named_after_the_later_image(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, *SMALL)
    assert result.exit_code == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["after_changes.gpkg"]
    assert "after_changes.gpkg" in result.stderr


def test_ndjson_on_stdout_and_everything_else_on_stderr(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "-o", "-", *SMALL)
    assert result.exit_code == 0
    features = [json.loads(line) for line in result.stdout.splitlines()]
    assert [feature["type"] for feature in features] == ["Feature"] * 15
    changed = [feature["properties"] for feature in features if feature["properties"]["changed"]]
    assert changed[0]["caption"] == CHANGED["caption"]
    assert changed[0]["building_cells"] == ["top-left", "center-center"]
    assert "15 chips" in result.stderr
    assert not list(Path.cwd().iterdir())


def test_wild_model_text_keeps_ndjson_one_line_a_feature(
    run: Run, scene: Scene, model: ScriptedModel
) -> None:
    model.script = lambda *asked: "two\nhouses\x00\x1b[31m \ud800 \u2028 \"quoted\" 'list'"
    result = run("analyze", *scene.args, "-o", "-", *SMALL)
    assert result.exit_code == 0
    features = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(features) == 15
    assert features[0]["properties"]["caption"] == "two houses [31m \"quoted\" 'list'"


def test_json_summary(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--json", *SMALL)
    outcome = json.loads(result.stdout)
    assert len(result.stdout.splitlines()) == 1
    assert (outcome["chips"], outcome["answered"], outcome["changed"]) == (15, 15, 1)
    assert outcome["output"] == "out.gpkg"
    assert outcome["most_changed"][0]["chip_id"] == scene.changed_chip
    assert 2.9 < outcome["most_changed"][0]["lon"] < 3.1
    assert 45.1 < outcome["most_changed"][0]["lat"] < 45.2
    assert outcome["device"] == "cpu"


def test_conflicts_are_counted_in_every_summary(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.script = contradicting
    words = ("-o", "out.gpkg", "--json", "--metrics", "m.prom", *SMALL)
    result = run("analyze", *scene.args, *words)
    outcome, counts = json.loads(result.stdout), dict.fromkeys(CONTRADICTIONS, 1)
    assert (outcome["conflicting"], outcome["conflicts"]) == (1, counts)
    assert tuple(outcome["most_changed"][0]["conflicts"]) == CONTRADICTIONS
    assert f"1 chip with conflicting answers: {CONTRADICTIONS[0]} 1, {CONTRADICTIONS[1]} 1" in result.stderr
    metrics = Path("m.prom").read_text()
    assert f'deltavlm_conflicts_total{{rule="{CONTRADICTIONS[0]}",' in metrics
    assert 'rule="unchanged_but_mask",output' in metrics
    summary = run("summarize", "out.gpkg", "--json")
    assert json.loads(summary.stdout)["conflicts"] == counts
    assert json.loads(summary.stdout)["all"]["conflicting"] == 1


def test_json_and_features_cannot_share_stdout(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "-o", "-", "--json")
    assert result.exit_code == 2
    assert "--json" in one_line(result)


def test_the_summary_names_model_device_chips_speed_and_output(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "-o", "out.gpkg", *SMALL, "--device", "cpu")
    assert "scripted (0123456789abcdef) on cpu" in result.stderr
    assert "15 chips: 1 changed" in result.stderr
    assert "chips/s" in result.stderr
    assert result.stderr.rstrip().endswith("output out.gpkg")
    assert run.loads == [("nano", RuntimeOptions(device="cpu"))]


def test_quiet_says_nothing(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "-o", "out.gpkg", "-q", *SMALL)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert run("-q", "analyze", *scene.args, "-o", "two.gpkg", *SMALL).stderr == ""


def test_a_table_of_the_most_changed_chips_on_a_terminal(
    run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "on_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "200")
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--color", "never", *SMALL)
    assert result.exit_code == 0
    row = next(line for line in result.stderr.splitlines() if scene.changed_chip in line)
    assert CHANGED["caption"] in row
    assert "0.90" in row
    assert "3.000" in row
    assert "45.1" in row


def test_markup_in_a_caption_is_shown_as_it_is(
    run: Run, scene: Scene, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "on_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "200")
    model.script = lambda before, after, question: "yes" if question.yes_no else "[red]a[/nonsense]"
    result = run("analyze", *scene.args, "-o", "out.gpkg", *SMALL)
    assert result.exit_code == 0
    assert "[red]a[/nonsense]" in result.stderr


def test_dry_run_shows_the_plan_and_writes_nothing(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "-n", *SMALL)
    assert result.exit_code == 0
    for word in (
        "EPSG:32631",
        "same grid",
        "0.5 m",
        "15 of 32 px",
        "3 rows and 5 columns",
        "caption, change",
    ):
        assert word in result.stdout
    assert "after_changes.gpkg" in result.stdout
    assert "chips/s in a sample of 15 chips" in result.stdout
    assert not list(Path.cwd().iterdir())
    assert "first 4 chips" in run("analyze", *scene.args, "-n", "--limit", 4).stdout
    plan = json.loads(run("analyze", *scene.args, "-n", "--json", *SMALL).stdout)
    assert (plan["dry_run"], plan["chips"]) == (True, 15)
    estimate = plan["estimate"]
    assert (estimate["chips"], estimate["sample_chips"]) == (15, 15)
    assert estimate["seconds"] > 0
    assert estimate["memory_bytes"] > 10_000_000
    run("analyze", *scene.args, "-o", "out.gpkg", *SMALL)
    assert estimate["output_bytes"] == pytest.approx(Path("out.gpkg").stat().st_size, rel=0.1)


def test_dry_run_of_features_on_stdout_leaves_stdout_empty(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "-n", "-o", "-")
    assert result.stdout == ""
    assert "same grid" in result.stderr


def test_own_questions_become_columns(run: Run, scene: Scene, model: ScriptedModel) -> None:
    Path("q.yaml").write_text(
        "- name: change\n  task: change\n- name: water\n  task: open\n  prompt: Any new water?\n"
    )
    result = run("analyze", *scene.args, "-o", "-", "-Q", "q.yaml", *SMALL)
    first = json.loads(result.stdout.splitlines()[0])["properties"]
    assert first["answer_water"] == "nothing to say"
    assert [question.prompt for question in model.history[0]][1] == "Any new water?"


def test_a_wrong_question_file_is_told_before_anything_else(run: Run, scene: Scene) -> None:
    Path("q.yaml").write_text("- {name: water, tsk: open, prompt: x}\n")
    result = run("analyze", *scene.args, "-Q", "q.yaml")
    assert result.exit_code == 2
    line = one_line(result)
    assert "q.yaml" in line
    assert "did you mean 'task'" in line


def test_ask_picks_questions(run: Run, scene: Scene, model: ScriptedModel) -> None:
    run("analyze", *scene.args, "-o", "a.gpkg", "--ask", "change,count", *SMALL)
    assert [question.name for question in model.history[0]] == ["change", "count"]
    result = run("analyze", *scene.args, "-o", "b.gpkg", "--ask", "chnge")
    assert result.exit_code == 2
    assert "did you mean 'change'" in one_line(result)


def test_chip_flags(run: Run, scene: Scene) -> None:
    def chips(*args: object) -> int:
        return int(json.loads(run("analyze", *scene.args, "-n", "--json", *args).stdout)["chips"])

    assert chips("--chip-size", 64) == 2 * 3
    assert chips("--chip-size", 64, "--overlap", 32) == 2 * 4
    assert chips("--chip-size", 64, "--stride", 32) == 2 * 4
    assert (
        chips("--chip-size", 32, "--bbox", "500000,4999985,500015,5000000", "--bbox-crs", "EPSG:32631") == 1
    )
    assert (
        chips("--chip-size", 32, "--bbox", "500000 4999985 500015 5000000", "--bbox-crs", "EPSG:32631") == 1
    )


def test_limit_and_batch_size_reach_the_model(run: Run, scene: Scene, model: ScriptedModel) -> None:
    run("analyze", *scene.args, "-o", "a.gpkg", "--limit", 5, "--batch-size", 2, *SMALL)
    assert model.batches == [2, 2, 1]


def test_gdal_settings_reach_gdal(run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "60")  # so that it is put back afterwards
    assert run("analyze", *scene.args, "-n", "--gdal-config", "GDAL_HTTP_TIMEOUT=7").exit_code == 0
    assert os.environ["GDAL_HTTP_TIMEOUT"] == "7"


def test_far_from_the_models_scale_is_a_warning(run: Run, scene: Scene, model: ScriptedModel) -> None:
    assert "Warning" not in run("analyze", *scene.args, "-o", "a.gpkg", *SMALL).stderr
    model.training_gsd_m = 3.0
    result = run("analyze", *scene.args, "-o", "b.gpkg", *SMALL)
    assert "Warning: a pixel is 0.5 m, the model was trained at 3 m" in result.stderr
    assert result.exit_code == 0


def test_dry_run_checks_the_model_before_it_is_loaded(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "-n", "--gsd", 2)
    assert "Warning: a pixel is 2 m, the model was trained at 0.5 m" in result.stderr
    result = run("analyze", *scene.args, "-n", "-m", "no-such-model", *SMALL)
    assert result.exit_code == 2
    assert "Error: no model 'no-such-model'; give the name of an installed one" in result.stderr


def test_a_crs_without_a_way_to_degrees_is_told_in_its_own(run: Run, tmp_path: Path, scene: Scene) -> None:
    import rasterio

    for path in (scene.before, scene.after):
        with rasterio.open(path, "r+") as raster:
            raster.crs = rasterio.CRS.from_wkt('LOCAL_CS["here",UNIT["metre",1]]')
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--json", *SMALL)
    assert result.exit_code == 0
    assert {"x", "y"} <= set(json.loads(result.stdout)["most_changed"][0])
    assert Path("out.gpkg").exists()


def test_failed_chips_make_the_exit_code_3(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.most = 0
    result = run("analyze", *scene.args, "-o", "out.geojson", "--json", *SMALL)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].startswith("Error: 15 of 15 chips failed")
    assert json.loads(result.stdout)["error"] == 15


def test_on_error_fail_stops_and_leaves_no_output(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.most = 0
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--on-error", "fail", *SMALL)
    assert result.exit_code == 1
    assert "do not fit" in result.stderr.splitlines()[-1]
    assert not list(Path.cwd().iterdir())


def test_an_unforeseen_error_is_one_line_and_leaves_no_output(
    run: Run, scene: Scene, model: ScriptedModel
) -> None:
    def script(*asked: object) -> str:
        raise KeyError("oops\nand more")

    model.script = script
    result = run("analyze", *scene.args, "-o", "out.gpkg", *SMALL)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: unexpected KeyError: ")
    assert "-vv" in last
    assert "Traceback" not in result.stderr
    assert not list(Path.cwd().iterdir())
    assert "Traceback" in run("analyze", *scene.args, "-o", "out.gpkg", "-vv", *SMALL).stderr


def test_a_cascade_needs_the_yes_no_question(run: Run, scene: Scene) -> None:
    result = run("analyze", *scene.args, "--cascade", "--ask", "caption")
    assert result.exit_code == 2
    assert "--cascade needs the yes/no question" in one_line(result)
    done = run("analyze", *scene.args, "--cascade", "--chip-size", 32, "--json", "-q")
    assert json.loads(done.stdout)["cascaded"] == 14


def test_answers_that_are_neither_yes_nor_no_are_told(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.script = lambda before, after, question: "perhaps"
    result = run("analyze", *scene.args, "--chip-size", 32, "--json")
    assert json.loads(result.stdout)["neither_yes_nor_no"] == 15
    assert "Warning: 15 yes/no answers could not be parsed" in result.stderr
    assert json.loads(result.stdout)["unreadable_answers"] == {"count": 15, "location": 15}
    assert "Warning: other answers could not be parsed: count 15, location 15; the" in result.stderr
