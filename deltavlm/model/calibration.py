"""Calibration of yes/no scores: Platt scaling, and the file of a calibration to somebody's own chips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltavlm.config import from_mapping, to_mapping
from deltavlm.errors import ConfigError, InputError, WriteError
from deltavlm.files import describe_read_error, parse_json, read_text, write_atomic
from deltavlm.model.config import Calibration, ScoreCalibration

__all__ = ["apply_calibration", "fit_platt", "logits", "read_calibration", "write_calibration"]

FloatArray = npt.NDArray[np.float64]

MAX_BYTES = 2**16
EPS = 1e-7  # scores closer to 0 or 1 than this have the logit of this
HINT = "give a file of deltavlm calibrate"


def logits(scores: npt.ArrayLike) -> FloatArray:
    """Logits of scores from 0 to 1; finite, as those of EPS and 1 - EPS are the outermost.

    >>> logits([0.5, 1.0]).round(2).tolist()
    [0.0, 16.12]
    """
    clipped = np.clip(np.asarray(scores, float), EPS, 1 - EPS)
    ratio: FloatArray = np.log(clipped) - np.log1p(-clipped)
    return ratio


def apply_calibration(calibration: Calibration | ScoreCalibration, margins: npt.ArrayLike) -> FloatArray:
    """Scores sigmoid(scale * margin + offset) of margins, which are logits."""
    z = calibration.scale * np.asarray(margins, float) + calibration.offset
    scores: FloatArray = 0.5 * (1 + np.tanh(z / 2))
    return scores


def fit_platt(margins: Sequence[float], is_changed: Sequence[bool], steps: int = 50) -> Calibration:
    """Scale and offset of minimum log loss, by Newton's method with a weak prior at scale 1, offset 0.

    Each class has half of the weight, so a score is a probability at even odds. Targets are (n + 1) / (n + 2)
    for the n changed and 1 / (m + 2) for the m unchanged in place of 1 and 0, so that a few separable answers
    do not make the fit certain. Source: Platt, Probabilistic outputs for support vector machines, 1999.

    >>> calibration = fit_platt([-2.0, -1.0, 0.5, 1.0, 2.0, 3.0], [False, False, True, False, True, True])
    >>> 0 < calibration.scale < 5
    True
    """
    x = np.stack([np.asarray(margins, float), np.ones(len(margins))], axis=1)
    y, prior, w = np.asarray(is_changed, bool), np.array([1.0, 0.0]), np.array([1.0, 0.0])
    share = np.clip(y.mean(), 0.5 / len(y), 1 - 0.5 / len(y))
    weight = 0.5 * np.where(y, 1 / share, 1 / (1 - share))
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))

    def loss(w: FloatArray) -> float:
        z = x @ w
        return float((weight * (np.logaddexp(0, z) - target * z)).mean() + 5e-4 * ((w - prior) ** 2).sum())

    for _ in range(steps):
        p = 0.5 * (1 + np.tanh(x @ w / 2))
        gradient = x.T @ (weight * (p - target)) / len(y) + 1e-3 * (w - prior)
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x / len(y) + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while loss(w - step) > loss(w) and np.abs(step).max() > 1e-9:
            step /= 2
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    return Calibration(float(w[0]), float(w[1]))


def read_calibration(path: Path) -> ScoreCalibration:
    """Calibration in a file that `write_calibration` wrote.

    Raises: InputError if it cannot be read, or is none.
    """
    try:
        return from_mapping(ScoreCalibration, parse_json(read_text(path, MAX_BYTES)), source=str(path))
    except ConfigError as error:
        raise InputError(f"{error}; {HINT}") from error
    except OSError as error:
        raise InputError(describe_read_error(path, error)) from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise InputError(f"{path}: is not valid JSON ({error}); {HINT}") from error


def write_calibration(path: Path, calibration: ScoreCalibration) -> None:
    """Write a calibration as a JSON object with the fields of the class. Raises: WriteError."""
    try:
        write_atomic(path, json.dumps(to_mapping(calibration), indent=1) + "\n")
    except OSError as error:
        raise WriteError(f"{path}: writing failed ({error.strerror})") from error
