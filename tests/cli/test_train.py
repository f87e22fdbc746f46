"""`deltavlm train`: from a configuration to a model folder, stopped and resumed; refused input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from affine import Affine

from deltavlm.config import load, shipped_config
from deltavlm.data.changechat import write_chip_set
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.model import checkpoint
from deltavlm.model.folder import find_folder, read_config
from deltavlm.training import estimate
from deltavlm.training import run as training
from deltavlm.training.config import TrainConfig
from tests.cli.conftest import ROOT, Run, one_line
from tests.pairs import write_pairs

pytestmark = pytest.mark.usefixtures("no_java")

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
    """Set one thread, as in tests/training: several cost more than they save."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.slow
def test_nano_is_tuned_on_a_set_and_answers(run: Run, made: Path) -> None:
    """The shipped recipe at small size: both phases, validation with real figures, and a model folder."""
    here = sets(*SMALL, f"sets.changechat.path={made}")
    result = run("train", "finetune_nano_changechat.yaml", "-o", "mine", "--json", *here)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary == {"folder": "mine", "model": "mine/model", "phase": "all", "step": 2}
    log = [json.loads(line) for line in Path("mine/log.jsonl").read_text().splitlines()]
    assert [(one["phase"], one["step"]) for one in log if one["kind"] == "train"] == [
        ("read", 1),
        ("read", 2),
        ("all", 1),
        ("all", 2),
    ]
    checked = [one for one in log if one["kind"] == "validation"]
    assert [(one["phase"], one["step"]) for one in checked] == [
        ("read", 0),
        ("read", 2),
        ("all", 0),
        ("all", 2),
    ]
    assert {"changechat.change.all.accuracy", "scenes.yes_no_accuracy", "changechat.loss.words"} <= {
        *checked[0]
    }
    config = json.loads(Path("mine/model/config.json").read_text())
    assert config["sources"]["trained_on"] == "synthetic scenes and changechat"
    again = run("train", "finetune_nano_changechat.yaml", "-o", "mine", *here)
    assert again.exit_code == 2
    assert "mine holds a run; resume it with --resume" in one_line(again)
    done = run("train", "finetune_nano_changechat.yaml", "-o", "mine", "--resume", *here)
    assert done.exit_code == 0, done.stderr
    other = run("train", "finetune_nano_changechat.yaml", "-o", "mine", "--resume", *here, "--set", "seed=1")
    assert other.exit_code == 2
    assert "another configuration: seed (0, now 1)" in other.stderr.splitlines()[-1]


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


def start_process(config: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deltacli", "train", str(config), "-o", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def logged_losses(out: Path) -> list[float]:
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["words"] for line in lines if line.endswith("\n")]


def wait_for(out: Path, steps: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if (out / "log.jsonl").exists() and len(logged_losses(out)) >= steps:
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_run_resumes_after_sigterm_and_sigkill(made: Path, tmp_path: Path) -> None:
    """SIGTERM ends a run with a checkpoint and one line, SIGKILL loses the steps since the last checkpoint;
    the losses are those of an uninterrupted run."""
    config, out, reference = quick(made, tmp_path), tmp_path / "stopped", tmp_path / "reference"
    first = start_process(config, out)
    wait_for(out, 2, first)
    first.send_signal(signal.SIGTERM)
    stdout, stderr = first.communicate(timeout=60)
    assert first.returncode == 143
    assert stdout == ""
    errors = [line for line in stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert "stopped by SIGTERM at step" in errors[0]
    assert "with --resume" in errors[0]
    steps = len(logged_losses(out))
    second = start_process(config, out, "--resume")
    wait_for(out, steps + 5, second)
    second.kill()
    second.communicate()
    steps = len(logged_losses(out)) + 2
    train_until(steps, config, out, resume=True)
    train_until(steps, config, reference)
    assert logged_losses(out) == logged_losses(reference)
    assert len(logged_losses(out)) == steps


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process by SIGTERM at once")
def test_a_run_that_is_stopped_while_scenes_are_drawn_says_how_to_resume(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "render_scenes", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    result = run("train", quick(made, tmp_path), "-o", "x", "--set", "scenes={train: 2, validation: 2}")
    assert result.exit_code == 143
    assert one_line(result) == "Error: stopped by SIGTERM; continue x with --resume"


class Stopped(Exception):
    """End of a run in this process."""


def train_until(steps: int, config: Path, out: Path, *, resume: bool = False) -> None:
    """Train in this process, and stop without a checkpoint after that many steps."""

    def stop(phase: str, step: int, phase_steps: int, note: str) -> None:
        if step >= steps:
            raise Stopped

    with pytest.raises(Stopped):
        training.train(load(config, TrainConfig), out, training.RunOptions(resume=resume), stop)


# of adapt_nano.yaml, at which nothing is learnt
ADAPTED = sets(
    *("scenes.train=2", "scenes.validation=2", "scenes.ground=3", "log_every=1", "precision=fp32"),
    *("phases.heads.steps=2", "phases.heads.batch=2"),
)


@pytest.mark.slow
def test_nano_is_adapted_to_pairs_without_labels(run: Run, tmp_path: Path) -> None:
    """Tiles of the pairs, a run that resumes as the same, and a model that says where it comes from; only its
    dense head has changed."""
    pairs = write_pairs(tmp_path / "pairs", 6, chips=2)
    result = run("train", "--adapt", pairs, "-o", "mine", "--json", *ADAPTED)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"folder": "mine", "model": "mine/model", "phase": "heads", "step": 2}
    tiles = sorted(path.name for path in Path("mine/tiles/0.5m").glob("*.png"))
    assert sum(name.endswith(".after.png") for name in tiles) == 6
    assert len(tiles) == 18
    model = find_folder("mine/model")
    sources = read_config(model).sources
    assert sources["adapted_from"] == "scripted 0123456789abcdef"
    assert sources["adapted_to"] == "12 chips of list.csv, 6 taken as unchanged"
    assert sources["command"] == "deltavlm train --adapt adapt_nano.yaml"
    old, new = (checkpoint.load(folder)[1].half().state_dict() for folder in (find_folder("nano"), model))
    changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"dense"}
    again = run("train", "--adapt", pairs, "-o", "mine", *ADAPTED)
    assert again.exit_code == 2
    assert "exists, perhaps of a run" in again.stderr.splitlines()[-1]
    resumed = run("train", "--adapt", pairs, "-o", "mine", "--resume", *ADAPTED)
    assert resumed.exit_code == 0, resumed.stderr
    assert read_config(model).sources == sources


def test_pairs_that_cannot_be_adapted_to_are_one_line(run: Run, tmp_path: Path) -> None:
    """Exit code 2, and no folder."""
    few = write_pairs(tmp_path / "few", 3, chips=2)
    coarse = write_pairs(tmp_path / "far", 1, chips=9, transform=Affine(10, 0, 500_000, 0, -10, 5_000_000))
    empty = tmp_path / "empty.csv"
    empty.write_text("before,after\n")
    Path("taken/tiles").mkdir(parents=True)
    for arguments, message in (
        (["-o", "x"], "give CONFIG, or --adapt PAIRS"),
        (["train_nano.yaml", "-o", "x", "--bands", "3,2,1"], "flags of rasters are for the pairs of --adapt"),
        (["--adapt", few], "give -o DIR"),
        (["--adapt", few, "--dry-run"], "--dry-run cannot be combined with --adapt"),
        (["--adapt", "no.csv", "-o", "x"], "no.csv: no such file"),
        (["--adapt", empty, "-o", "x"], "empty.csv: holds no pairs"),
        (["--adapt", few, "-o", "x"], "6 full chips of 32 px with data at both dates, and 8 are needed"),
        (["--adapt", coarse, "-o", "x"], "p0: a pixel is 10 m, the model was trained at 0.5 m"),
        (["--adapt", few, "-o", "taken"], "taken/tiles exists"),
        (["--adapt", few, "-o", "x", "--bands", "1,2"], "is not one band or three"),
        (["--adapt", few, "-o", "x", "--set", "start=nowhere"], "no model 'nowhere'"),
        (["train_nano.yaml", "--adapt", few, "-o", "x"], "--adapt needs start and scenes.ground in CONFIG"),
    ):
        result = run("train", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr.splitlines()[-1], arguments
        assert not Path("x").exists()


def test_the_whole_configuration_is_printed(run: Run) -> None:
    result = run("train", "train_nano", "--print-config", "--set", "seed=7")
    assert result.exit_code == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["seed"] == 7
    assert config["phases"]["masks"]["betas"] == [0.9, 0.98]
    Path("again.yaml").write_text(result.stdout)
    assert run("train", "again.yaml", "--print-config").stdout == result.stdout


def test_a_dry_run_of_the_7b_says_what_is_missing(run: Run) -> None:
    """The plan goes to stdout, the reason why it cannot start to stderr."""
    result = run("train", shipped_config("train_stage2.yaml"), "--dry-run")
    assert result.exit_code == 2
    assert "no model 'runs/stage1/model'" in one_line(result)
    assert "trainable: 253,216,384 parameters: vision 50,500,352 of 985,897,344" in result.stdout
    assert "time: unknown, inputs are missing" in result.stdout
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_dry_run_measures_and_writes_nothing(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "MEASURED_STEPS", 2)
    result = run("train", quick(made, tmp_path), "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    phase = told["phases"]["read"]
    assert phase["seconds"] > 0
    assert phase["activation_bytes"] > 0
    assert phase["modules"]["vision"]["trainable"] == 0
    assert phase["modules"]["language"]["trainable"] == phase["modules"]["language"]["all"]
    assert phase["epochs"]["made"] > 1
    assert told["missing"] is None
    assert not list(Path().iterdir())


def test_bad_input_is_one_line_and_leaves_nothing(run: Run, made: Path, tmp_path: Path) -> None:
    config = quick(made, tmp_path)
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: nano\nphasez: {}\n")
    for arguments, message in (
        ([config], "give -o DIR"),
        (
            ["xyz.yaml", "-o", "x"],
            "no shipped config 'xyz.yaml'; known are adapt_nano.yaml, finetune_nano_ch",
        ),
        (["train_nan.yaml", "-o", "x"], "did you mean 'train_nano.yaml'?"),
        (
            ["nano.yaml", "-o", "x"],
            "nano.yaml: configures a model, not a run; give a run's, such as train_nano",
        ),
        (
            [config, "-o", "x", "--set", "model=xyz"],
            "known are deltavlm-7b.yaml, nano.yaml",
        ),
        ([broken, "-o", "x"], "unknown key 'phasez'; did you mean 'phases'?"),
        ([config, "-o", "x", "--set", "phases.read.stps=3"], "did you mean 'steps'"),
        ([config, "-o", "x", "--set", "start=nowhere"], "no model 'nowhere'"),
        ([config, "-o", "x", "--set", "model=deltavlm-7b"], "has another vision and qformer and"),
        ([config, "-o", "x", "--set", "sets.made.path=gone"], "sets.made: gone does not exist"),
        ([config, "-o", "x", "--set", "phases.read.micro=3"], "batch 2 does not divide"),
        ([config, "-o", "x", "--set", "phases.read.rates={visoin: 1}"], "no 'visoin'; did you mean 'vision'"),
        ([config, "-o", "x", "--set", "sharding=fsdp"], "fsdp needs several processes"),
        ([config, "-o", "x", "--resume"], "x holds no run"),
        ([config, "-o", config / "x"], "choose another -o"),
    ):
        result = run("train", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in one_line(result), arguments


def test_unusable_images_end_a_run_before_it_begins(run: Run, made: Path, tmp_path: Path) -> None:
    """One line for each, exit code 2, and nothing written; a truncated image ended a run at some step."""
    config = quick(made, tmp_path)
    images = Path(shutil.copytree(made / "images", tmp_path / "images"))
    (images / "train" / "A" / "train_1.png").unlink()
    truncated = images / "train" / "B" / "train_2.png"
    truncated.write_bytes(truncated.read_bytes()[:3000])
    for options in (["-o", "x"], ["--dry-run"]):
        result = run("train", config, *options, "--set", f"sets.made.images={images}")
        assert result.exit_code == 2
        warnings, errors = (
            [line for line in result.stderr.splitlines() if line.startswith(label)]
            for label in ("Warning:", "Error:")
        )
        assert "train_1.png is missing" in warnings[0]
        assert "train_2.png cannot be read: image file is truncated" in warnings[1]
        assert len(warnings) == 2
        assert len(errors) == 1
        assert "sets.made: 2 images of 4 pairs cannot be used, the first: " in errors[0]
        assert not Path("x").exists()
