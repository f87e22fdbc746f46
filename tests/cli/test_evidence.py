"""`--evidence`: analyze, ask, chat and eval tell the model what another model answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deltavlm
from deltavlm.data.changechat import write_chip_set
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.kinds import KINDS
from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.pairs import features, layer
from tests.scripted_model import ScriptedModel
from tests.text_reader import KIND, text_reader

EVIDENCE = ("--model", "text:any", "--evidence", "nano")
FOUND = {
    "new_roads": 1,
    "new_buildings": 2,
    "road_cells": ["center-left"],
    "building_cells": ["top-left", "center-center"],
}


@pytest.fixture
def reader(run: Run, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> ScriptedModel:
    """Model of the kind `text:`; every other name loads the scripted model."""
    reader = text_reader()

    def load_model(name: str = "nano", options: RuntimeOptions | None = None) -> ScriptedModel:
        run.loads.append((name, options or RuntimeOptions()))
        return reader if name.startswith("text:") else model

    monkeypatch.setattr("deltavlm.model.kinds.KINDS", {**KINDS, **KIND})
    monkeypatch.setitem(vars(deltavlm), "load_model", load_model)
    return reader


def test_analyze_writes_both(run: Run, scene: Scene, reader: ScriptedModel) -> None:
    args = ("--chip-size", 32, "-o", "out.gpkg", "--polygons", "--json")
    result = run("analyze", *scene.args, *EVIDENCE, *args)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["model"] == "text:any with evidence of scripted"
    rows = layer("out.gpkg", "chips")
    assert {row["changed"] for row in rows} == {False}
    assert any(row["evidence_changed"] for row in rows)
    assert all("Another model, scripted, gives" in context.evidence for context in reader.contexts)


def test_device_and_threads_are_those_of_both(run: Run, scene: Scene, reader: ScriptedModel) -> None:
    flags = ("--device", "cpu", "--threads", 3, "--dtype", "fp32")
    assert run("analyze", *scene.args, *EVIDENCE, *flags, "-o", "out.gpkg").exit_code == 0
    options = dict(run.loads)
    assert options["nano"] == RuntimeOptions(device="cpu", threads=3)
    assert options["text:any"] == RuntimeOptions(device="cpu", threads=3, dtype="fp32")


def test_a_cascade_spares_the_model(run: Run, scene: Scene, reader: ScriptedModel) -> None:
    args = ("--chip-size", 32, "--cascade", "-o", "out.gpkg")
    assert run("analyze", *scene.args, *EVIDENCE, *args).exit_code == 0
    rows = layer("out.gpkg", "chips")
    answered = [row for row in rows if row["status"] == "answered"]
    assert sum(reader.batches) == len(answered) < len(rows)
    assert {row["evidence_changed"] for row in answered} == {True}


@pytest.mark.parametrize(("flag", "is_counted"), [((), False), (("--any-scale",), True)])
def test_scale(
    run: Run, scene: Scene, reader: ScriptedModel, flag: tuple[str, ...], is_counted: bool
) -> None:
    args = ("--chip-size", 32, "--gsd", 10, "-o", "out.gpkg")
    result = run("analyze", *scene.args, *EVIDENCE, *args, *flag, "--dry-run")
    assert "the evidence model nano was trained at 0.5 m" in result.stderr
    reader.contexts.clear()
    result = run("analyze", *scene.args, *EVIDENCE, *args, *flag)
    assert result.exit_code == 0, result.stderr
    assert "the evidence model scripted was trained at 0.5 m" in result.stderr
    assert all(("new building" in context.evidence) is is_counted for context in reader.contexts)


def test_dry_run_measures_both(run: Run, scene: Scene, reader: ScriptedModel) -> None:
    args = ("--chip-size", 32, "-o", "out.gpkg", "--dry-run")
    result = run("analyze", *scene.args, *EVIDENCE, *args)
    assert result.exit_code == 0, result.stderr
    assert "evidence   nano" in result.stdout
    assert "chips/s" in result.stdout
    assert reader.batches
    assert not Path("out.gpkg").exists()
    plan = json.loads(run("analyze", *scene.args, *EVIDENCE, *args, "--json").stdout)
    assert (plan["model"], plan["evidence"]) == ("text:any", "nano")
    assert "evidence" not in json.loads(run("analyze", *scene.args, *args, "--json").stdout)


def test_a_calibration_is_fitted_to_scores_with_evidence(
    run: Run, scene: Scene, reader: ScriptedModel
) -> None:
    """It holds for them alone, and not for those of the model without evidence."""
    args = ("analyze", *scene.args, "--chip-size", 32, "--overwrite")
    assert run(*args, *EVIDENCE, "-o", "with.gpkg").exit_code == 0
    assert run("calibrate", "with.gpkg", "--false-alarms", 0.2, "-o", "with.json").exit_code == 0
    result = run(*args, *EVIDENCE, "--calibration", "with.json", "-o", "again.gpkg")
    assert result.exit_code == 0, result.stderr
    options = dict(run.loads)
    assert options["text:any"].calibration is options["nano"].calibration is None
    assert run(*args, "-o", "without.gpkg", "--model", "text:any").exit_code == 0
    assert run("calibrate", "without.gpkg", "--false-alarms", 0.2, "-o", "without.json").exit_code == 0
    result = run(*args, *EVIDENCE, "--calibration", "without.json", "-o", "wrong.gpkg")
    assert result.exit_code == 2
    assert "the calibration is of text:any (" in result.stderr


def test_ask(run: Run, scene: Scene, reader: ScriptedModel) -> None:
    args = ("--at", "3.0006,45.1533", "--chip-size", 32, "--json")
    result = run("ask", *scene.args, "Has anything changed?", "What is it?", *EVIDENCE, *args)
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["answer"] for record in records] == ["nothing to say"] * 2  # asked as typed
    for record in records:
        evidence = record["evidence"]
        assert evidence == {"model": evidence["model"], "changed": True, "score": 0.9, **FOUND}
        assert evidence["model"].startswith("scripted ")
    (context,) = reader.contexts
    assert "counts 1 new road and 2 new buildings" in context.evidence
    plain = run("ask", *scene.args, "Has anything changed?", *args)
    assert "evidence" not in json.loads(plain.stdout)


def test_ask_draws_the_masks_of_the_evidence(run: Run, scene: Scene, reader: ScriptedModel) -> None:
    result = run("ask", *scene.args, "Has anything changed?", *EVIDENCE, "--geojson")
    Path("out.geojson").write_text(result.stdout)
    assert "mask" in {each["properties"]["kind"] for each in features("out.geojson")}
    result = run("ask", *scene.args, "Anything?", *EVIDENCE, "--all-chips", "--cascade", "-o", "all.gpkg")
    assert result.exit_code == 0, result.stderr
    assert {row["evidence_changed"] for row in layer("all.gpkg", "chips")} == {True}


def test_chat(run: Run, scene: Scene, reader: ScriptedModel) -> None:
    flags = ("--json", "--save", "talk.jsonl", "--chip-size", 32, "--at", "3.0006,45.1533")
    result = run("chat", *scene.args, *EVIDENCE, *flags, input="What is it?\nAnd where?\n")
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [{*FOUND} <= {*record["evidence"]} for record in records] == [True, True]
    assert reader.batches == [1]
    assert reader.history[1][0].history == (("What is it?", "nothing to say"),)
    again = run("chat", *scene.args, *EVIDENCE, "--continue", "talk.jsonl", input="Why?\n")
    assert again.exit_code == 0, again.stderr


def test_eval(run: Run, reader: ScriptedModel, tmp_path: Path) -> None:
    scenes = [(f"test_{seed}", make_scene(seed, 64, 64, SceneOptions(change=1))) for seed in range(2)]
    write_chip_set(tmp_path / "set", "test", scenes)
    args = ("--tasks", "change", "-o", "report.json", "--bootstrap", 0)
    result = run("eval", tmp_path / "set", *EVIDENCE, *args)
    assert result.exit_code == 0, result.stderr
    model = json.loads(Path("report.json").read_text())["sources"]["model"]
    assert model["name"] == "text:any with evidence of scripted"
    assert model["evidence"]["name"] == "scripted"
    assert "with evidence of scripted" in Path("report.md").read_text()
    assert all("gives a probability of" in context.evidence for context in reader.contexts)
    plain = run("eval", tmp_path / "set", "--model", "text:any", *args)
    assert plain.exit_code == 2
    assert "another" in plain.stderr or "other" in plain.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--evidence", "nano"), "nano reads its questions alone"),
        (("--model", "nano", "--evidence", "nano"), "nano reads its questions alone"),
        (("--model", "text:any", "--evidence", "text:any"), "--evidence text:any: is the model that answers"),
        (("--model", "text:any", "--evidence", "nona"), "nona"),
    ],
)
@pytest.mark.parametrize("command", ["analyze", "ask", "chat", "eval"])
def test_bad_input(
    run: Run, scene: Scene, reader: ScriptedModel, tmp_path: Path, command: str, flags: Any, message: str
) -> None:
    args: tuple[Any, ...] = {"analyze": (*scene.args, "-o", "out.gpkg"), "ask": (*scene.args, "What?")}.get(
        command, scene.args
    )
    if command == "eval":
        write_chip_set(tmp_path / "set", "test", [("test_1", make_scene(1, 64, 64, SceneOptions(change=1)))])
        args = (tmp_path / "set", "--tasks", "change")
    result = run(command, *args, *flags, input="What?\n", env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.output
    assert not run.loads
    assert not Path("out.gpkg").exists()


def test_the_message_about_masks_names_evidence(run: Run, scene: Scene, reader: ScriptedModel) -> None:
    flags = ("--model", "text:any", "--polygons", "-o", "out.gpkg")
    for evidence in ((), ("--evidence", "text:other")):
        result = run("analyze", *scene.args, *flags, *evidence)
        assert result.exit_code == 2
        assert "no mask head" in one_line(result)
        assert "--evidence nano" in one_line(result)
