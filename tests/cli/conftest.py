"""The command line, run in this process with the scripted model, or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deltacli.main import app
from deltavlm.model.config import RuntimeOptions

ROOT = Path(__file__).resolve().parent.parent.parent

# `deltavlm` as a program with the scripted model (see the fixture `loads`), slowed down by a pause
PROGRAM = """
import sys, time
import deltavlm
from deltacli.main import app
from tests.scripted_model import ScriptedModel

class Slow(ScriptedModel):
    def answer(self, encoded, questions, pairs=None):
        time.sleep({pause})
        return super().answer(encoded, questions, pairs)

    def answer_rows(self, encoded, rows):
        time.sleep({pause})
        return super().answer_rows(encoded, rows)

deltavlm.load_model = lambda name, runtime: Slow()
app(prog_name="deltavlm")
"""


@dataclass
class Run:
    """Runner: `run("analyze", before, ...)` in this process; `loads` records calls of `load_model`."""

    loads: list[tuple[str, RuntimeOptions]]

    def __call__(self, *args: object, **settings: Any) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args], **settings)


@pytest.fixture
def run(loads: list[tuple[str, RuntimeOptions]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runner with the scripted model, in an empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("DELTAVLM_")]:
        monkeypatch.delenv(name)
    return Run(loads)


def one_line(result: Result) -> str:
    """The single line on stderr, which has no traceback and no box."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in result.output
    assert not {*"╭│╰─"} & {*result.output}
    return lines[0]


def program(*args: object, pause: float = 0.0, **settings: Any) -> subprocess.Popen[str]:
    """`deltavlm` as a process with the scripted model, which rests for `pause` seconds at every batch."""
    command = [sys.executable, "-c", PROGRAM.format(pause=pause), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.Popen(command, env=environment, text=True, **streams)
