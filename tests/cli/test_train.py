"""`deltavlm train`: from a configuration to a model folder, stopped and gone on with, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from deltavlm.config import shipped_config
from deltavlm.data.changechat import write_chip_set
from deltavlm.data.synthetic import SceneOptions, make_scene
from tests.cli.conftest import ROOT, Run, one_line

# small enough for a test, everything else as it ships
SMALL = [
    *("scenes.train=3", "scenes.validation=2", "scenes.stormy=2", "log_every=1", "precision=fp32"),
    *("sets.changechat.held_out=2", "validation.every=2", "validation.pairs=2"),
    *("phases.read.steps=2", "phases.read.batch=2", "phases.read.rows=2", "phases.read.micro=1"),
    *("phases.all.steps=2", "phases.all.batch=2", "phases.all.rows=2"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    scenes = [(f"train_{seed}", make_scene(seed, 64, 64, SceneOptions(change=seed % 2))) for seed in range(4)]
    write_chip_set(folder, "train", scenes)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in tests/training: several threads would wait for each other more than they compute."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltavlm.metrics.java.shutil.which", lambda name: None)


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.slow
def test_nano_is_tuned_on_a_set_and_answers(run: Run, made: Path) -> None:
    """The shipped recipe at small size: both phases, validation with real figures, and a model folder."""
    here = sets(*SMALL, f"sets.changechat.path={made}")
    result = run("train", "finetune_nano_changechat.yaml", "-o", "mine", "--json", *here)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told == {"folder": "mine", "model": "mine/model", "phase": "all", "step": 2}
    log = [json.loads(line) for line in Path("mine/log.jsonl").read_text().splitlines()]
    assert [(one["phase"], one["step"]) for one in log if one["kind"] == "train"] == [
        ("read", 1),
        ("read", 2),
        ("all", 1),
        ("all", 2),
    ]
    checked = [one for one in log if one["kind"] == "validation"]
    assert [(one["phase"], one["step"]) for one in checked] == [("read", 2), ("all", 2)]
    assert {"changechat.change.all.accuracy", "scenes.yes_no_accuracy", "changechat.loss.words"} <= {
        *checked[0]
    }
    config = json.loads(Path("mine/model/config.json").read_text())
    assert config["sources"]["trained_on"] == "synthetic scenes and changechat"
    again = run("train", "finetune_nano_changechat.yaml", "-o", "mine", *here)
    assert again.exit_code == 2
    assert "mine holds a run; --resume goes on with it" in one_line(again)
    done = run("train", "finetune_nano_changechat.yaml", "-o", "mine", "--resume", *here)
    assert done.exit_code == 0, done.stderr
    other = run("train", "finetune_nano_changechat.yaml", "-o", "mine", "--resume", *here, "--set", "seed=1")
    assert other.exit_code == 2
    assert "another configuration: seed (0, now 1)" in one_line(other)


def quick(made: Path, folder: Path) -> Path:
    """A run of one phase of the shipped nano on a set, without scenes and validation."""
    phases = {"read": {"part": "language", "steps": 400, "batch": 2, "rows": 1, "lr": 1e-4, "warmup": 0}}
    config = {
        "model": "nano",
        "start": "nano",
        "sets": {"made": {"path": str(made)}},
        "phases": phases,
        "log_every": 1,
        "checkpoint_every": 3,
    }
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def started(config: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deltacli", "train", str(config), "-o", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def words(out: Path) -> list[float]:
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["words"] for line in lines if line.endswith("\n")]


def wait_for(out: Path, steps: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if (out / "log.jsonl").exists() and len(words(out)) >= steps:
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_terminated_and_killed_it_goes_on_as_if_unbroken(made: Path, tmp_path: Path) -> None:
    """SIGTERM ends it with a checkpoint and one line, SIGKILL with what was kept last; the losses are those
    of a run that nobody stopped."""
    config, cut, whole = quick(made, tmp_path), tmp_path / "cut", tmp_path / "whole"
    one = started(config, whole)
    first = started(config, cut)
    wait_for(cut, 2, first)
    first.send_signal(signal.SIGTERM)
    out, said = first.communicate(timeout=60)
    assert first.returncode == 143
    assert out == ""
    last = [line for line in said.splitlines() if line.startswith("Error:")]
    assert len(last) == 1
    assert "stopped by SIGTERM at step" in last[0]
    assert "--resume goes on" in last[0]
    there = len(words(cut))
    second = started(config, cut, "--resume")
    wait_for(cut, there + 5, second)
    second.kill()
    second.communicate()
    steps = len(words(cut)) + 2
    third = started(config, cut, "--resume")
    wait_for(cut, steps, third)
    third.terminate()
    third.communicate(timeout=60)
    wait_for(whole, steps, one)
    one.kill()
    one.communicate()
    assert words(cut)[:steps] == words(whole)[:steps]


def test_the_whole_configuration_is_printed(run: Run) -> None:
    result = run("train", "train_nano", "--print-config", "--set", "seed=7")
    assert result.exit_code == 0, result.stderr
    told = yaml.safe_load(result.stdout)
    assert told["seed"] == 7
    assert told["phases"]["masks"]["betas"] == [0.9, 0.98]
    Path("again.yaml").write_text(result.stdout)
    assert run("train", "again.yaml", "--print-config").stdout == result.stdout


def test_a_dry_run_of_the_7b_says_what_is_missing(run: Run) -> None:
    """The plan goes to stdout, the reason why it cannot start to stderr."""
    result = run("train", shipped_config("train_stage2.yaml"), "--dry-run")
    assert result.exit_code == 2
    assert "no model 'runs/stage1/model'" in one_line(result)
    assert "fitted: 253,216,384 parameters: vision 50,500,352 of 985,897,344" in result.stdout
    assert "time: unknown, what it starts from is not there" in result.stdout
    assert not list(Path().iterdir())


def test_a_dry_run_measures_and_writes_nothing(run: Run, made: Path, tmp_path: Path) -> None:
    result = run("train", quick(made, tmp_path), "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    phase = told["phases"]["read"]
    assert phase["seconds"] > 0
    assert phase["activation_bytes"] > 0
    assert phase["organs"]["vision"]["fitted"] == 0
    assert phase["organs"]["language"]["fitted"] == phase["organs"]["language"]["all"]
    assert phase["epochs"]["made"] > 1
    assert told["missing"] is None
    assert not list(Path().iterdir())


def test_bad_input_is_one_line_and_leaves_nothing(run: Run, made: Path, tmp_path: Path) -> None:
    config = quick(made, tmp_path)
    (tmp_path / "images").mkdir()
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: nano\nphasez: {}\n")
    for words_, told in (
        ([config], "give -o DIR"),
        (["no.yaml", "-o", "x"], "no shipped config 'no.yaml'"),
        ([broken, "-o", "x"], "unknown key 'phasez'; did you mean 'phases'?"),
        ([config, "-o", "x", "--set", "phases.read.stps=3"], "did you mean 'steps'"),
        ([config, "-o", "x", "--set", "start=nowhere"], "no model 'nowhere'"),
        ([config, "-o", "x", "--set", "model=deltavlm-7b"], "has another vision and qformer and"),
        ([config, "-o", "x", "--set", "sets.made.path=gone"], "sets.made: gone does not exist"),
        ([config, "-o", "x", "--set", f"sets.made.images={tmp_path / 'images'}"], "8 pictures are missing"),
        ([config, "-o", "x", "--set", "phases.read.micro=3"], "batch 2 does not divide"),
        ([config, "-o", "x", "--set", "phases.read.rates={visoin: 1}"], "no 'visoin'; did you mean 'vision'"),
        ([config, "-o", "x", "--set", "sharding=fsdp"], "fsdp is for several processes"),
        ([config, "-o", "x", "--resume"], "x holds no run"),
        ([config, "-o", config / "x"], "choose another -o"),
    ):
        result = run("train", *words_)
        assert result.exit_code == 2, (words_, result.output)
        assert told in one_line(result), words_
