"""`deltavlm doctor`: findings about the installation, with remedies."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import deltavlm
from deltacli.main import app
from deltavlm.diagnostics import check_proj_variables, check_torchvision, pinned_torch
from deltavlm.errors import ModelError
from tests.cli.conftest import ROOT, Run, one_line
from tests.scripted_model import ScriptedModel


@pytest.fixture
def load_by(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """`load_by(function)` makes `deltavlm.load_model` call it."""
    return lambda load: monkeypatch.setitem(vars(deltavlm), "load_model", load)


@pytest.mark.slow
def test_a_working_installation(run: Run, model: ScriptedModel) -> None:
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0, report
    assert report["ok"]
    assert report["versions"]["rasterio"]
    details = {check["name"]: check["detail"] for check in report["checks"]}
    assert "GDAL" in details["gdal"]
    assert "PROJ" in details["gdal"]
    assert "cores" in details["devices"]
    assert "scripted" in details["model"]
    assert details["model"].endswith("changed? no")
    assert "fit together" in details["torchvision"]
    assert [question.name for (question,) in model.history] == ["change"]


def test_a_model_that_loads_but_cannot_answer(run: Run, load_by: Callable[[Any], None]) -> None:
    load_by(lambda name: ScriptedModel(poison=0))
    result = run("doctor")
    assert result.exit_code == 1
    assert "broken   model" in result.stdout


def test_a_broken_part_is_exit_code_1_with_a_remedy(run: Run, load_by: Callable[[Any], None]) -> None:
    def fail(name: str) -> None:
        raise ModelError("weights/nano is missing")

    load_by(fail)
    result = run("doctor")
    assert result.exit_code == 1
    assert "broken   model" in result.stdout
    assert "weights/nano is missing" in result.stdout
    assert "-> reinstall" in result.stdout
    assert result.stderr == "Error: broken: model; see the remedies above\n"


def test_a_check_that_raises_is_a_finding(run: Run, load_by: Callable[[Any], None]) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("no such thing\nand more")

    load_by(fail)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    broken = [check for check in json.loads(result.stdout)["checks"] if check["status"] == "broken"]
    details = [(check["name"], check["detail"]) for check in broken]
    assert details == [("model", "RuntimeError: no such thing")]


def test_a_torchvision_built_for_another_torch_is_explained() -> None:
    """With it `import timm` and every transformers model fail with messages that name neither package."""
    failure = RuntimeError("operator torchvision::nms does not exist")
    finding = check_torchvision("2.15.0+cpu", "0.28.0", "2.14.0", failure)
    assert finding.status == "broken"
    assert "do not fit together" in finding.detail
    assert "torchvision::nms" in finding.detail
    assert "pip install --force-reinstall torch torchvision" in finding.remedy
    assert check_torchvision("2.15.0+cpu", "0.28.0", "2.14.0", None).status == "warning"
    assert check_torchvision("2.15.0+cpu", "0.29.0", "2.15.0", None).status == "ok"
    assert check_torchvision("2.15.0", "0.29.0", None, None).status == "ok"


def test_a_model_is_not_tried_without_torchvision(
    run: Run, load_by: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its error names neither package, and the remedy was to reinstall deltavlm."""
    monkeypatch.setattr("deltavlm.model.runtime.has_gpu", lambda: True)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('no torchvision::nms')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    load_by(None)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert one_line(result) == "Error: broken: torchvision; see the remedies above"
    (check,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "model"]
    assert (check["status"], check["detail"]) == (
        "warning",
        "not tried: it runs on a GPU, and needs torch and torchvision there",
    )


def test_a_failing_check_shows_its_traceback(run: Run, load_by: Callable[[Any], None]) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("no such thing")

    load_by(fail)
    assert "RuntimeError: no such thing" in run("doctor", "-vv").stderr
    assert "Traceback" not in run("doctor").stderr


@pytest.mark.parametrize(
    ("requirements", "required"),
    [
        (["numpy", "torch==2.15.0"], "2.15.0"),
        (["torch (==2.1) ; x"], "2.1"),
        (["torch>=2"], None),
        ([], None),
    ],
)
def test_the_torch_that_torchvision_pins(requirements: list[str], required: str | None) -> None:
    assert pinned_torch(requirements) == required


def make_proj(folder: Path, minor: int) -> Path:
    folder.mkdir()
    connection = sqlite3.connect(folder / "proj.db")
    connection.execute("CREATE TABLE metadata (key TEXT, value TEXT)")
    connection.execute("INSERT INTO metadata VALUES ('DATABASE.LAYOUT.VERSION.MINOR', ?)", [str(minor)])
    connection.commit()
    connection.close()
    return folder


def test_proj_data_of_another_program(tmp_path: Path) -> None:
    old, new = make_proj(tmp_path / "old", 2), make_proj(tmp_path / "new", 6)
    empty = tmp_path / "empty"
    empty.mkdir()

    def status(environ: dict[str, str], unset: dict[str, str]) -> list[str]:
        return [finding.status for finding in check_proj_variables(environ, unset, 6)]

    assert status({}, {}) == []
    assert status({}, {"PROJ_DATA": str(old)}) == ["ok"]  # deltavlm unset it
    assert status({"PROJ_DATA": str(old)}, {}) == ["broken"]
    assert status({"PROJ_LIB": str(empty)}, {}) == ["broken"]
    assert status({"PROJ_DATA": str(new)}, {}) == ["ok"]
    (finding,) = check_proj_variables({"PROJ_DATA": str(old)}, {}, 6)
    assert str(old) in finding.detail
    assert "unset PROJ_DATA" in finding.remedy


@pytest.mark.slow
@pytest.mark.parametrize("words", ["grid a.tif", "synth scene out", "doctor", "grid -h"])
def test_an_empty_proj_data_that_is_kept(tmp_path: Path, words: str) -> None:
    """PROJ itself wrote a line to stderr, and a CRSError followed that named no variable."""
    variables = {"DELTAVLM_KEEP_PROJ": "1", "PROJ_DATA": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-m", "deltacli", *words.split()],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    if words == "grid -h":
        assert (process.returncode, process.stderr) == (0, "")
        return
    (line,) = process.stderr.splitlines()
    if words == "doctor":
        assert (process.returncode, line) == (1, "Error: broken: proj; see the remedies above")
        line = process.stdout
    else:
        assert process.returncode == 2
        assert "deltavlm doctor" in line
    assert f"PROJ_DATA={tmp_path} has no readable proj.db" in line
    assert "unset PROJ_DATA" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nano_is_proved() -> None:
    result = CliRunner().invoke(app, ["doctor", "--model", "nano", "--json"])
    assert result.exit_code == 0, result.stderr + result.stdout
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert "has a mask head" in checks["model"]["detail"]
