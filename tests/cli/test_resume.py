"""`deltavlm analyze` stopped anywhere: its messages, and killed processes that resume to the same bytes."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_line, program
from tests.conftest import Scene
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", 32, "--batch-size", 2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_run_killed_repeatedly_resumes_to_the_same_bytes(run: Run, scene: Scene, tmp_path: Path) -> None:
    assert run("analyze", *scene.args, "-o", "uninterrupted.geojson", *SMALL).exit_code == 0
    out = tmp_path / "out.geojson"
    journal = tmp_path / "out.geojson.journal.jsonl"
    rng, kills = random.Random(1), 0
    for _ in range(3):
        process = program("analyze", *scene.args, "-o", out, *SMALL, pause=0.3)
        earlier = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > earlier):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    assert kills >= 2
    assert not out.exists()
    process = program("analyze", *scene.args, "-o", out, *SMALL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "resuming: " in stderr
    assert out.read_bytes() == Path("uninterrupted.geojson").read_bytes()
    assert not journal.exists()


def test_an_interrupted_run_says_how_to_resume(run: Run, scene: Scene, model: ScriptedModel) -> None:
    encode, calls = model.encode, 0

    def failing(before: object, after: object, contexts: object = ()) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return encode(before, after)  # type: ignore[arg-type]

    model.encode = failing  # type: ignore[method-assign, assignment]
    result = run("analyze", *scene.args, "-o", "out.gpkg", *SMALL)
    assert "6 chips kept in out.gpkg.journal.jsonl; the same command resumes" in result.stderr
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--json", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert "resuming: 6 of 15 chips done" in result.stderr
    summary = json.loads(result.stdout)
    assert (summary["chips"], summary["earlier"], summary["changed"]) == (15, 6, 1)
    assert [path.name for path in Path.cwd().iterdir()] == ["out.gpkg"]


def test_other_settings_are_not_resumed(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.poison = 255  # never met
    Path("out.geojson.journal.jsonl").write_text('{"deltavlm_journal": 1}\n')
    result = run("analyze", *scene.args, "-o", "out.geojson", *SMALL)
    assert result.exit_code == 2
    assert "add --no-resume, which starts over" in result.stderr.splitlines()[-1]
    assert run("analyze", *scene.args, "-o", "out.geojson", "--no-resume", *SMALL).exit_code == 0


def test_failed_chips_are_retried(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.most = 0
    args = ("analyze", *scene.args, "-o", "out.geojson", *SMALL)
    result = run(*args)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].endswith("--retry-failed tries them again")
    model.most = None
    assert "exists already" in run(*args).stderr
    result = run(*args, "--retry-failed")
    assert result.exit_code == 0, result.stderr
    result = run(*args, "--retry-failed")
    assert result.exit_code == 2
    assert "there is no journal of a run" in one_line(result)


@pytest.mark.skipif(sys.platform == "win32", reason="needs processes that can be stopped")
def test_two_runs_cannot_write_the_same_output(run: Run, scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out.geojson"
    first = program("analyze", *scene.args, "-o", out, *SMALL, pause=0.5)
    try:
        while not (tmp_path / "out.geojson.journal.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.02)
        second = run("analyze", *scene.args, "-o", out, *SMALL)
        assert second.exit_code == 2
        assert "another run is writing it" in second.stderr.splitlines()[-1]
    finally:
        first.kill()
        first.communicate()
    assert run("analyze", *scene.args, "-o", out, *SMALL).exit_code == 0  # the dead one's lock is free
