"""Export of a trained model: model folder with averaged weights, tokenizers, calibrated yes/no scores."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from deltavlm.data.synthetic import SceneOptions
from deltavlm.data.synthetic.cache import GROUND_VALIDATION_SEED, SceneCache
from deltavlm.model import checkpoint
from deltavlm.model.calibration import fit_platt
from deltavlm.model.config import Calibration, Decoding, DeltaVLMConfig
from deltavlm.model.deltavlm import DeltaVLM
from deltavlm.model.folder import QUESTION_TOKENIZER, SENTENCEPIECE, TOKENIZER, WEIGHTS, read_config
from deltavlm.model.kinds import load_model
from deltavlm.model.predictor import Predictor
from deltavlm.training.build import SCOPE, RunInputs
from deltavlm.training.calibrate import calibrate_on_ground, calibrate_on_scenes, record_margins
from deltavlm.training.changechat_dataset import Split
from deltavlm.training.config import TrainConfig

MIN_CLASS_ANSWERS = 20  # held-out answers of each class that a calibration on sets needs


def describe_commit() -> str:
    """Commit of the working tree, with "+" where files were changed; "unknown" outside of one."""
    try:
        command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def export_model(
    model: DeltaVLM,
    config: TrainConfig,
    inputs: RunInputs,
    provenance: Mapping[str, str],
    out: Path,
    folder: Path,
) -> Calibration:
    """Write the model folder `folder` of the run in `out`.

    Returns the calibration of yes/no scores: fitted on the held-out pairs of the sets where they are enough,
    else on the validation scenes, else unchanged.
    """
    model_config = write_model_folder(model, inputs, provenance, out, folder)
    calibration = _calibrate(out, folder, config, inputs.splits) or inputs.model.calibration
    checkpoint.save_config(folder, replace(model_config, calibration=calibration))
    return calibration


def write_model_folder(
    model: DeltaVLM, inputs: RunInputs, provenance: Mapping[str, str], out: Path, folder: Path
) -> DeltaVLMConfig:
    """Write a model folder without calibration; returns its config.

    A frozen language model that the start has in files of its own is linked, not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_config = replace(inputs.model, calibration=Calibration(), files={})
    weights = model.state_dict()
    language_files = sorted(inputs.start.glob("language-*.safetensors")) if inputs.start else []
    if language_files or inputs.model.language.folder:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("language.")}
        for path in language_files:
            _link_or_copy(path, folder / path.name)
        checksums = {name: checksum for name, checksum in inputs.model.files.items() if name != WEIGHTS}
        model_config = replace(model_config, files=checksums)
    if inputs.model.scope is not None and (out / SCOPE).is_file():
        weights |= checkpoint.scope_tensors(checkpoint.load_scope(out / SCOPE, inputs.model.scope))
    else:
        model_config = replace(model_config, scope=None)
    model_config = replace(
        model_config,
        decoding=_decoding(model, inputs),
        sources={**inputs.model.sources, **provenance},
    )
    checkpoint.save(folder, model_config, weights, provenance=provenance)
    for name in (TOKENIZER, SENTENCEPIECE, QUESTION_TOKENIZER):
        if (out / name).is_file() and folder != out:
            shutil.copyfile(out / name, folder / name)
    return model_config


def _decoding(model: DeltaVLM, inputs: RunInputs) -> Decoding:
    """Decoding of the run; that of the start where its language model was kept, which learned no counts."""
    decoding = inputs.model.decoding
    if inputs.start is None or (of_start := read_config(inputs.start).decoding) == decoding:
        return decoding
    _, start = checkpoint.load(inputs.start)
    kept, now = start.language.state_dict(), model.language.state_dict()
    is_kept = all(torch.equal(tensor.float(), now[name].float()) for name, tensor in kept.items())
    return of_start if is_kept else decoding


def _calibrate(out: Path, folder: Path, config: TrainConfig, splits: Sequence[Split]) -> Calibration | None:
    if not any(split.held_out for split in splits) and config.scenes is None:
        return None
    device = config.device if config.scenes is None else "cpu"
    model = load_model(str(folder.resolve()), device=device, runtime="torch")  # graphs may lie there already
    assert isinstance(model, Predictor)
    margins: list[float] = []
    is_changed: list[bool] = []
    for split in splits:
        split_margins, split_is_changed = record_margins(model, split.held_out, split.image_folder)
        margins += split_margins
        is_changed += split_is_changed
    if min(sum(is_changed), len(is_changed) - sum(is_changed)) >= MIN_CLASS_ANSWERS:
        return fit_platt(margins, is_changed)
    if config.scenes is not None and config.scenes.ground:
        options = SceneOptions(change=0.5)
        folder, tiles, size = out / "ground_validation", config.scenes.ground_folder, config.scenes.size_px
        cache = SceneCache(folder, config.scenes.validation, GROUND_VALIDATION_SEED, size, options, tiles)
        return calibrate_on_ground(model, cache)
    if config.scenes is not None:
        return calibrate_on_scenes(model, out / "validation", out / "hard")
    return None


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard link, or a copy where the file system has none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
