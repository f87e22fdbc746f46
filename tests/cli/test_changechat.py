"""Commands with a tiny random model of the kind changechat: conversion, outputs, questions, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deltacli.main import app
from tests.changechat_reference import ADAPTER, BASE, CLIP, PROJECTOR
from tests.cli.conftest import one_line
from tests.conftest import Scene
from tests.pairs import layer

SAMPLE = Path(__file__).resolve().parent.parent.parent / "sample_data" / "changechat_mini"
DEVICE = ("--device", "cpu", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changechat_folder: Path) -> None:
    """The model has the name tiny."""
    monkeypatch.setenv("DELTAVLM_HOME", str(changechat_folder.parent))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(*args: object, **settings: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], **settings)


def test_convert_inspect_and_verify(changechat_files: Path) -> None:
    files = changechat_files
    words = ("--kind", "changechat", "--base", files / BASE, "--vision", files / CLIP)
    result = run(
        *("weights", "convert", *words, "--adapter", files / ADAPTER),
        *("--projector", files / PROJECTOR, "-o", "out", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["kind"] == "changechat"
    assert record["sources"]["lora"] == "rank 4, alpha 8, merged"
    assert "logit_scale" in record["ignored"]
    verified = run("weights", "verify", "out", "--expected", files)
    assert verified.exit_code == 0, verified.stderr
    assert "first logits" in verified.stdout
    inspected = run("weights", "inspect", "--kind", "changechat", files / ADAPTER)
    assert "rank: 4" in inspected.stdout
    refused = run("weights", "convert", *words[:4], "-o", "other")
    assert refused.exit_code == 2
    assert "--vision is missing; a model of kind changechat is converted from --base, --vision" in one_line(
        refused
    )


def test_analyze_and_report(scene: Scene) -> None:
    result = run(
        *("analyze", *scene.args, "--model", "tiny", "-o", "out.gpkg", "--chip-size", 48),
        *("--overlap", 0, "--limit", 2, *DEVICE),
    )
    assert result.exit_code == 0, result.stderr
    rows = layer("out.gpkg", "chips")
    assert len(rows) == 2
    assert all(row["caption"] and 0 <= row["changed_score"] <= 1 for row in rows)
    assert all(row["model"].startswith("tiny ") for row in rows)
    report = run("report", "out.gpkg", "-o", "out.html")
    assert report.exit_code == 0, report.stderr


@pytest.mark.parametrize("flags", [("--polygons",), ("--mask", "m.tif"), ("--probability", "p.tif")])
def test_outputs_of_a_mask_are_refused_before_the_run(scene: Scene, flags: tuple[str, ...]) -> None:
    result = run("analyze", *scene.args, "--model", "tiny", "-o", "out.gpkg", *flags, *DEVICE)
    assert result.exit_code == 2
    assert "model tiny has no mask head" in one_line(result)
    assert "loaded" not in result.stderr
    assert not any(Path(name).exists() for name in ("out.gpkg", "m.tif", "p.tif"))


@pytest.mark.slow
def test_ask_and_chat_with_questions_of_ones_own(scene: Scene) -> None:
    questions = ("Why was it built?", "Where did it change?")
    asked = [word for question in questions for word in ("-q", question)]
    result = run("ask", *scene.args, "--model", "tiny", *DEVICE, "--json", *asked)
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(record["answer"] for record in records)
    chat = run("chat", *scene.args, "--model", "tiny", *DEVICE, "--json", input="\n".join(questions))
    assert chat.exit_code == 0, chat.stderr
    assert json.loads(chat.stdout.splitlines()[0])["answer"] == records[0]["answer"]
    refused = run("ask", *scene.args, "--model", "tiny", *DEVICE, "-q", "What is in <image>?")
    assert refused.exit_code == 2
    assert "has <image>, which stands for an image" in refused.stderr


@pytest.mark.usefixtures("no_java")
def test_evaluation_asks_in_the_words_of_its_training() -> None:
    result = run(
        *("eval", SAMPLE, "--model", "tiny", *DEVICE, "--limit", 1, "--bootstrap", 0),
        *("--tasks", "change,dialogue", "-o", "scores.json"),
    )
    assert result.exit_code == 0, result.stderr
    lines = Path("scores.predictions.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("task") == "dialogue" for line in lines)
