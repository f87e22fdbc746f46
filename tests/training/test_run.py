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

from deltavlm.config import dump, load, shipped_config
from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES
from deltavlm.errors import InputError, OutputError
from deltavlm.model import checkpoint
from deltavlm.model.config import Calibration, DeltaVLMConfig
from deltavlm.model.kinds import load_model
from deltavlm.model.predictor import Predictor
from deltavlm.training import __main__ as command
from deltavlm.training import build, export
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
    """Each phase starts from the EMA weights of the one before; the exported model answers."""
    out = tmp_path / "run"
    assert command.main([str(recipe), "-o", str(out), "--phase", "masks"]) == 0
    assert not (out / "model").exists()
    assert command.main([str(recipe), "-o", str(out)]) == 2  # the folder holds a run
    assert command.main([str(recipe), "-o", str(out), "--resume"]) == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    names = [*load(recipe, TrainConfig).phases]
    assert [(record["phase"], record["step"]) for record in log] == [
        (name, step) for name in names for step in (1, 2)
    ]
    assert {"mask", "density", "lr", "norm"} <= {*log[0]}
    model = load_model(str(out / "model"), device="cpu", dtype="fp32")
    assert isinstance(model, Predictor)
    assert model.config.calibration != Calibration()
    assert model.config.sources["trained_on"] == "synthetic scenes"
    last = final_weights(out, names[-1], best=False)
    weights = model.model.state_dict()
    for name, tensor in last.items():
        torch.testing.assert_close(weights[name], tensor.half().float(), msg=name)
    # modules that are frozen in the phase `words` have the EMA weights of the phase before it
    before, after = (final_weights(out, name, best=False) for name in ("masks", "words"))
    frozen = [name for name in before if name.startswith(("vision.", "difference."))]
    assert frozen
    for name in frozen:  # the average of one value is that value, up to rounding
        torch.testing.assert_close(after[name], before[name], msg=name)


@pytest.mark.parametrize(("start_weight", "added"), [(0.0, 1.0), (0.25, 0.75)])
def test_the_exported_model_has_its_share_of_the_start(
    start_weight: float, added: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the start: 0.75 of a trained weight and 0.25 of the one before, also of tied ones."""
    start = tmp_path / "start"
    start.mkdir()
    tiny_checkpoint(start)
    model_config, model = checkpoint.load(start)
    expected = {name: tensor + added for name, tensor in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    config = load(shipped_config("train_nano.yaml"), TrainConfig)
    config = replace(config, start=str(start), start_weight=start_weight)
    monkeypatch.setattr(export, "_calibrate", lambda *arguments: Calibration())
    inputs = build.RunInputs(model_config, start, ())
    export.export_model(model, config, inputs, {}, tmp_path / "run", tmp_path / "model")
    _, exported = checkpoint.load(tmp_path / "model")
    for name, parameter in exported.named_parameters():
        torch.testing.assert_close(parameter, expected[name], msg=name, atol=2e-3, rtol=1e-3)  # fp16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start_weight": 0.5}, "needs a start"),
        ({"start_weight": 0.5, "start": "nano", "fresh": ("qformer",)}, "no fresh modules"),
        ({"start_weight": 1.0, "start": "nano"}, "below 1"),
        ({"start_weight": -0.5, "start": "nano"}, "at least 0"),
    ],
)
def test_a_mean_with_no_start_is_refused(values: dict[str, Any], message: str) -> None:
    config = load(shipped_config("train_nano.yaml"), TrainConfig)
    with pytest.raises(ValueError, match=message):
        replace(config, **values)


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
