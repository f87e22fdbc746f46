"""From the last checkpoint of a run to a model folder: averaged weights, tokenizer, calibrated yes and no."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import torch

from deltavlm.errors import ModelError
from deltavlm.model import checkpoint
from deltavlm.model.config import Calibration, DeltaVLMConfig
from deltavlm.model.folder import TOKENIZER
from deltavlm.model.predictor import Predictor, load_model
from deltavlm.training.calibrate import calibrated


def commit() -> str:
    """The commit of the working tree, "+" behind it where files were changed, "unknown" outside of one."""
    try:
        words = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def export(run: Path, phase: str, config: DeltaVLMConfig, folder: Path, recipe: str) -> Calibration:
    """Writes `folder` from phase `phase` of the run in `run`; returns the calibration that it found.

    Raises: ModelError when the phase has left no checkpoint.
    """
    state = run / f"{phase}.pt"
    if not state.exists():
        raise ModelError(f"{run} has no checkpoint of phase {phase!r}; run it first")
    kept = torch.load(state, weights_only=True)
    about = {
        "trained_on": "synthetic scenes",
        "commit": commit(),
        "command": f"python -m deltavlm.training {recipe}",
        "steps": f"{phase} {kept['step']}",
    }
    plain = replace(config, calibration=Calibration())
    checkpoint.save(folder, plain, kept["mean"], provenance=about)
    if folder != run:
        shutil.copy(run / TOKENIZER, folder / TOKENIZER)
    model = load_model(str(folder.resolve()), device="cpu")
    assert isinstance(model, Predictor)
    found = calibrated(model, run / "validation", run / "hard")
    checkpoint.save(folder, replace(plain, calibration=found), kept["mean"], provenance=about)
    return found
