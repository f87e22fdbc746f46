"""Run from scratch: scenes drawn, tokenizer trained, all phases of the shipped nano, model exported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltavlm.config import dump, from_mapping, load, shipped_config, to_mapping
from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES
from deltavlm.errors import ConfigError, InputError, OutputError
from deltavlm.model import checkpoint
from deltavlm.model.config import Calibration, DeltaVLMConfig
from deltavlm.model.graphs import export_graphs
from deltavlm.model.kinds import load_model
from deltavlm.model.predictor import Predictor
from deltavlm.training import __main__ as command
from deltavlm.training import build, checkpoints
from deltavlm.training.changechat_dataset import Split
from deltavlm.training.checkpoints import final_weights, load_state, open_folder
from deltavlm.training.collate import TrainBatch
from deltavlm.training.config import Phase, RecordSet, TrainConfig
from deltavlm.training.export import write_model_folder
from deltavlm.training.loop import Trainer
from tests.tiny import TINY, tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent

assert TINY.dense is not None
MODEL = replace(TINY, dense=replace(TINY.dense, classes=CHANGE_CLASSES))


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The shipped recipe at reduced size."""
    shipped_run = load(shipped_config("train_nano.yaml"), TrainConfig)

    def load_small(path: Path, kind: type) -> object:
        return MODEL if kind is DeltaVLMConfig else load(path, kind)

    monkeypatch.setattr(build, "load", load_small)
    assert shipped_run.scenes is not None
    small = replace(
        shipped_run,
        scenes=replace(
            shipped_run.scenes,
            **{"train": 6, "validation": 4, "far": 3, "stormy": 3, "rich": 3, "size_px": 64},
            **{"ground": 0, "ground_folder": None},
        ),
        phases={
            name: replace(phase, steps=2, batch=2, ground=0.0, rates={})
            for name, phase in shipped_run.phases.items()
        },
        log_every=1,
        device="cpu",
    )
    path = tmp_path / "small.yaml"
    path.write_text(dump(small))
    return path


def test_after_learning_counts_from_a_set_the_language_model_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sets teach the mask head, by which nano counts, nothing; a start that is kept counts as before."""
    phases = {"words": Phase(part="language", steps=1, batch=1, lr=1e-4)}
    config = TrainConfig("nano", phases, start="nano", sets={"made": RecordSet(Path("set"))})

    def counts_by(task: str, *, learned: bool) -> list[str]:
        pair: Any = SimpleNamespace(examples=[SimpleNamespace(task=task)])
        monkeypatch.setattr(build, "load_split", lambda *of_set: Split("made", tmp_path, (pair,), ()))
        inputs = build.load_inputs(config)
        model = build.build_initial_model(config, inputs)
        if learned:
            next(model.language.parameters()).data += 0.01
        exported = write_model_folder(model, inputs, {}, tmp_path, tmp_path / "model")
        return [inputs.model.decoding.counts, exported.decoding.counts]

    assert counts_by("count", learned=True) == ["language", "language"]
    assert counts_by("count", learned=False) == ["language", "dense"]
    assert counts_by("caption", learned=True) == ["dense", "dense"]


def test_weights_of_an_earlier_run_are_not_continued_without_a_word(recipe: Path, tmp_path: Path) -> None:
    """Its configuration is gone, so that nobody knows what they are of."""
    config = load(recipe, TrainConfig)
    state = tmp_path / f"{[*config.phases][-1]}.pt"
    state.touch()
    with pytest.raises(OutputError, match=rf"{state.name} without the config\.yaml of its run"):
        open_folder(tmp_path, config, resume=False)
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.slow
def test_the_recipe_of_nano_runs_from_scratch(recipe: Path, tmp_path: Path) -> None:
    """Each phase starts from the EMA weights of the one before, the last ends with the mean of these and its
    own, and the exported model answers."""
    out = tmp_path / "run"
    assert command.main([str(recipe), "-o", str(out), "--phase", "masks"]) == 0
    assert not (out / "model").exists()
    assert command.main([str(recipe), "-o", str(out)]) == 2  # the folder holds a run
    assert command.main([str(recipe), "-o", str(out), "--resume"]) == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    phases = load(recipe, TrainConfig).phases
    names = [*phases]
    assert [(record["phase"], record["step"]) for record in log] == [
        (name, step) for name in names for step in (1, 2)
    ]
    assert {"mask", "density", "lr", "norm"} <= {*log[0]}
    # a finished run exports once more, beside the graphs of `weights export`
    export_graphs(checkpoint.load(out / "model")[1], out / "model")
    assert command.main([str(recipe), "-o", str(out), "--resume"]) == 0
    model = load_model(str(out / "model"), device="cpu", dtype="fp32", runtime="torch")
    assert isinstance(model, Predictor)
    assert model.config.calibration != Calibration()
    assert model.config.sources["trained_on"] == "synthetic scenes"
    start, last = (final_weights(out, name, best=False) for name in names[-2:])
    weights = model.model.state_dict()
    for name, tensor in last.items():
        if tensor.is_floating_point():
            tensor = torch.lerp(tensor, start[name], phases[names[-1]].start_weight)
        torch.testing.assert_close(weights[name], tensor.half().float(), msg=name)
    # modules that are frozen in the phase `words` have the EMA weights of the phase before it
    before, after = (final_weights(out, name, best=False) for name in ("masks", "words"))
    frozen = [name for name in before if name.startswith(("vision.", "difference."))]
    assert frozen
    for name in frozen:  # the average of one value is that value, up to rounding
        torch.testing.assert_close(after[name], before[name], msg=name)


@pytest.mark.parametrize(
    ("start_weights", "expected"),
    [((0.0, 0.0), 2.0), ((0.25, 0.0), 2.0), ((0.0, 0.5), 1.5), ((0.25, 0.5), 1.375)],
)
@pytest.mark.parametrize("phase", ["", "words"])
def test_a_phase_ends_with_its_share_of_the_weights_it_started_from(
    phase: str, start_weights: tuple[float, float], expected: float, tmp_path: Path
) -> None:
    """Phases end 1 and 2 above the start: with a quarter of 0 the first at 0.75, with half of that the second
    at 1.375. So do tied weights."""
    start, out = tmp_path / "start", tmp_path / "run"
    start.mkdir()
    tiny_checkpoint(start)
    model_config, model = checkpoint.load(start)
    of_start = {name: tensor.clone() for name, tensor in model.named_parameters()}
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    config = load(shipped_config("train_nano.yaml"), TrainConfig)
    names = ("masks", "words")
    phases = {
        name: replace(config.phases[name], start_weight=share)
        for name, share in zip(names, start_weights, strict=True)
    }
    out.mkdir()
    for added, name in enumerate(names, start=1):
        moved = {
            key: tensor + added if tensor.is_floating_point() else tensor for key, tensor in weights.items()
        }
        checkpoints.save_state(out, name, {"mean": moved})
    config = replace(config, start=str(start), phases=phases)
    built = build.build_model(config, build.RunInputs(model_config, start, ()), out, phase)
    added = expected if phase == "" else 1 - start_weights[0]
    for name, parameter in built.named_parameters():
        torch.testing.assert_close(parameter, of_start[name] + added, msg=name)


@pytest.mark.parametrize(
    ("values", "share", "message"),
    [
        ({}, 0.5, "phase masks starts from random weights"),
        ({"start": "nano", "fresh": ["qformer"]}, 0.5, "phase masks starts from random weights"),
        ({"start": "nano"}, 1.0, "below 1"),
        ({"start": "nano"}, -0.5, "at least 0"),
    ],
)
def test_a_mean_with_random_weights_is_refused(values: dict[str, Any], share: float, message: str) -> None:
    recipe = to_mapping(load(shipped_config("train_nano.yaml"), TrainConfig)) | values
    recipe["phases"]["masks"]["start_weight"] = share
    with pytest.raises(ConfigError, match=message):
        from_mapping(TrainConfig, recipe, "recipe.yaml")


@pytest.mark.slow
def test_checkpoints_of_a_run_with_a_start_lack_frozen_weights(tmp_path: Path) -> None:
    """A phase that freezes the vision encoder saves its batch-norm statistics but not its weights."""
    scenes = {"train": 2, "validation": 2}
    phases = {"read": {"part": "language", "steps": 1, "batch": 1, "lr": 0.001, "micro": 1}}
    path = tmp_path / "started.yaml"
    path.write_text(json.dumps({"model": "nano", "start": "nano", "scenes": scenes, "phases": phases}))
    assert command.main([str(path), "-o", str(tmp_path / "run"), "--phase", "read"]) == 0
    weights = load_state(tmp_path / "run" / "read.pt")["weights"]
    assert not any(name.startswith("model.vision") and name.endswith("weight") for name in weights)
    assert any(name.startswith("model.language") for name in weights)
    assert {name.rpartition(".")[2] for name in weights if name.startswith("model.vision")} == {
        *("running_mean", "running_var", "num_batches_tracked")
    }


@pytest.mark.slow
def test_a_time_limit_stops_with_a_checkpoint(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert command.main([str(recipe), "-o", str(out), "--minutes", "0"]) == 0
    assert "stopped by its time limit at step 0 of masks" in capsys.readouterr().err
    assert (out / "masks.pt").exists()


@pytest.mark.slow
def test_an_image_that_vanishes_ends_a_run_with_a_checkpoint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_step = Trainer.load_step

    def fail(trainer: Trainer, step: int) -> list[TrainBatch]:
        if step == 1:
            raise InputError("a.png is missing")
        return load_step(trainer, step)

    monkeypatch.setattr(Trainer, "load_step", fail)
    out = tmp_path / "run"
    assert command.main([str(recipe), "-o", str(out)]) == 2
    assert "Error: a.png is missing" in capsys.readouterr().err
    assert load_state(out / "masks.pt")["step"] == 1


@pytest.mark.slow
def test_training_needs_no_geo_package_and_no_launcher() -> None:
    """torch, numpy, transformers, timm, safetensors and pillow are enough."""
    absent = ["rasterio", "geopandas", "shapely", "pyproj", "pyogrio", "pyarrow", "accelerate", "tensorboard"]
    absent += ["pycocoevalcap", "sentencepiece", "typer", "rich"]
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport deltavlm.training.__main__"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
