"""Commands with a tiny random model of the Hub's kind: outputs, resuming, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from deltacli.main import app
from deltavlm.tasks.classify import PROMPT
from tests.cli.conftest import ROOT
from tests.conftest import Scene
from tests.pairs import layer
from tests.tiny_hf import BUILDERS, build

SMALL = ("--chip-size", "32", "--dtype", "fp32", "--device", "cpu")
ONLY_CHANGE = "- {name: change, task: change}\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{build('llava', tmp_path_factory.mktemp('hf') / 'tiny')}"


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(*args: object, **settings: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], **settings)


def test_analyze_and_report(scene: Scene, tiny: str) -> None:
    result = run("analyze", *scene.args, "--model", tiny, "-o", "out.gpkg", *SMALL, "--limit", 2)
    assert result.exit_code == 0, result.stderr
    assert re.search(
        r"^tiny needs about [\d.]+ [kM]B in memory; .* free\n(.*\n)*model tiny \(", result.stderr, re.M
    )
    rows = layer("out.gpkg", "chips")
    assert len(rows) == 2
    assert all(row["status"] == "answered" and 0 < row["changed_score"] < 1 for row in rows)
    assert len({row["changed_score"] for row in rows}) == 2
    report = run("report", "out.gpkg", "-o", "out.html")
    assert report.exit_code == 0, report.stderr
    assert "tiny" in Path("out.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*BUILDERS])
def test_every_architecture_writes_a_map(architecture: str, scene: Scene, tmp_path: Path) -> None:
    if architecture == "smolvlm":
        pytest.importorskip("num2words")
    model = ("--model", f"hf:{build(architecture, tmp_path / 'model')}")
    result = run("analyze", *scene.args, *model, "-o", "out.gpkg", *SMALL, "--limit", 2)
    assert result.exit_code == 0, result.stderr
    rows = layer("out.gpkg", "chips")
    assert [row["status"] for row in rows] == ["answered"] * 2
    assert len({row["changed_score"] for row in rows}) == 2


def test_a_dry_run_names_the_model(scene: Scene, tiny: str) -> None:
    result = run("analyze", *scene.args, "--model", tiny, "-o", "out.gpkg", *SMALL, "--limit", 1, "-n")
    assert result.exit_code == 0, result.stderr
    assert "chips/s in a sample" in result.stdout
    assert not [*Path().iterdir()]


def test_ask_and_chat_pass_the_words_of_a_person_through(scene: Scene, tiny: str) -> None:
    model = ("--model", tiny, "--dtype", "fp32")
    asked = run("ask", *scene.args, "Why is it white?", *model, "--json")
    assert asked.exit_code == 0, asked.stderr
    record = json.loads(asked.stdout)
    assert record["asked"] == "Why is it white?"
    assert record["model"].startswith("tiny ")
    talk = run("chat", *scene.args, *model, "--json", input="Why is it white?\nWhy is it white?\n")
    assert talk.exit_code == 0, talk.stderr
    first, second = (json.loads(line) for line in talk.stdout.splitlines())
    assert first["answer"] == record["answer"]
    assert first["score"] == pytest.approx(record["score"])
    assert second["score"] != first["score"]  # it was told the first turn


def test_eval_scores_the_answers(tiny: str) -> None:
    Path("images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    for name, value in {"a": 0, "b": 255}.items():
        pixels[:8] = value
        Image.fromarray(pixels).save(f"images/{name}.png")
    record = {
        "id": "x",
        "changeflag": 1,
        "image": ["images/a.png", "images/b.png"],
        "conversations": [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": "yes"}],
    }
    Path("set.json").write_text(json.dumps([record]))
    result = run("eval", "set.json", "--images", ".", "--model", tiny, "--dtype", "fp32", "-o", "scores.json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(Path("scores.json").read_text())["sources"]["model"]["name"] == "tiny"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_resumes_to_the_same_bytes(scene: Scene, tiny: str) -> None:
    Path("only.yaml").write_text(ONLY_CHANGE)
    flags = [*scene.args, "--model", tiny, *SMALL, "-Q", "only.yaml", "--batch-size", "1"]
    whole = run("analyze", *flags, "-o", "whole.geojson")
    assert whole.exit_code == 0, whole.stderr
    command = [sys.executable, "-m", "deltacli", "analyze", *flags, "-o", "out.geojson"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    journal = Path("out.geojson.journal.jsonl")
    while process.poll() is None and not (journal.exists() and journal.read_text().count("r000") > 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = run("analyze", *flags, "-o", "out.geojson")  # here, to save the start of a program
    assert done.exit_code == 0, done.stderr
    assert "resuming: " in done.stderr
    assert Path("out.geojson").read_bytes() == Path("whole.geojson").read_bytes()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--decode", "upstream"], "do not support --decode upstream; omit it"),
        (["--prompt-style", "trained"], "do not support --prompt-style trained; omit it"),
        (["--runtime", "openvino"], "do not support --runtime openvino; omit it"),
        (["--beams", "3"], "do not support --beams 3; omit it"),
        (["--polygons"], "mask"),
        (
            ["--model", "hf:no/such/folder"],
            "no model 'no/such/folder': give an existing folder, or OWNER/NAME",
        ),
    ],
)
def test_bad_input_is_one_line(scene: Scene, tiny: str, flags: list[str], words: str) -> None:
    for command in ("analyze", "ask"):
        if command == "ask" and flags == ["--polygons"]:
            continue
        own = ["Why?"] if command == "ask" else ["-o", "out.gpkg"]
        result = run(command, *scene.args, *own, "--model", tiny, *flags)
        assert result.exit_code == 2, result.output
        assert words in result.stderr.splitlines()[-1]
        assert not [*Path().iterdir()]
