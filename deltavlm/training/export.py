"""From the checkpoints of a run to a model folder: averaged weights, tokenizers, calibrated yes and no."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltavlm.model import checkpoint
from deltavlm.model.config import Calibration, DeltaVLMConfig
from deltavlm.model.deltavlm import DeltaVLM
from deltavlm.model.folder import QUESTION_TOKENIZER, SENTENCEPIECE, TOKENIZER, WEIGHTS
from deltavlm.model.predictor import Predictor, load_model
from deltavlm.training.calibrate import calibrated, fit, margins_of_cases
from deltavlm.training.changechat_dataset import Split
from deltavlm.training.config import TrainConfig

LEAST = 20  # held-out answers of each kind from which on yes and no are calibrated on a set


def commit() -> str:
    """The commit of the working tree, "+" behind it where files were changed, "unknown" outside of one."""
    try:
        words = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def export(
    run: Path,
    model: DeltaVLM,
    config: DeltaVLMConfig,
    recipe: TrainConfig,
    about: dict[str, str],
    folder: Path,
    start: Path | None,
    sets: Sequence[Split],
) -> Calibration:
    """Writes `folder`; returns the calibration of yes and no: fitted on what a set holds out where that is
    enough, else on the validation scenes, else left as it was.

    A language model that `start` has in files of its own, and that was held still, is linked, not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = replace(config, calibration=Calibration(), files={})
    weights = model.state_dict()
    links = sorted(start.glob("language-*.safetensors")) if start else []
    if links or config.language.folder:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("language.")}
        for path in links:
            _link(path, folder / path.name)
        plain = replace(plain, files={name: sum_ for name, sum_ in config.files.items() if name != WEIGHTS})
    plain = replace(plain, sources={**config.sources, **about})
    checkpoint.save(folder, plain, weights, provenance=about)
    for name in (TOKENIZER, SENTENCEPIECE, QUESTION_TOKENIZER):
        if (run / name).is_file() and folder != run:
            shutil.copyfile(run / name, folder / name)
    found = _calibration(run, folder, recipe, sets) or config.calibration
    checkpoint.save_config(folder, replace(plain, calibration=found))
    return found


def _calibration(run: Path, folder: Path, recipe: TrainConfig, sets: Sequence[Split]) -> Calibration | None:
    device = "auto" if recipe.device == "auto" else recipe.device
    if not any(held.held_out for held in sets) and recipe.scenes is None:
        return None
    model = load_model(str(folder.resolve()), device=device if recipe.scenes is None else "cpu")
    assert isinstance(model, Predictor)
    margins: list[float] = []
    truth: list[bool] = []
    for held in sets:
        one, other = margins_of_cases(model, held.held_out, held.images)
        margins, truth = margins + one, truth + other
    if min(sum(truth), len(truth) - sum(truth)) >= LEAST:
        return fit(margins, truth)
    if recipe.scenes is not None:
        return calibrated(model, run / "validation", run / "hard")
    return None


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the disk has none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
