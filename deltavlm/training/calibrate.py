"""Makes the yes/no score a probability: Platt's scaling of logit(yes) - logit(no) on held-out made pairs.

Beside the validation scenes there are as many hard negatives: nothing has changed, and season, light and
haze differ more than in training. Changed and unchanged pairs weigh the same in the fit, however many there
are of each, so P(yes) is the probability at even odds. A model that learns from a set of its own is fitted
on what that set holds out; the shipped one was never fitted on real pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from deltavlm.data.synthetic import SceneOptions
from deltavlm.data.synthetic.cache import open_cache, render_cache
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.model.config import Calibration
from deltavlm.model.predictor import Predictor
from deltavlm.scoring.inference import PairExamples, predict_batches
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS

HARD_SEED = 700_000_000
HARD_STRENGTH = 1.5


def fit(margins: Sequence[float], truth: Sequence[bool], steps: int = 50) -> Calibration:
    """Scale and offset of least log-loss, by Newton's method with a little pull towards scale 1, offset 0.

    Each class weighs a half.

    >>> found = fit([-2.0, -1.0, 0.5, 1.0, 2.0, 3.0], [False, False, True, False, True, True])
    >>> 0 < found.scale < 5
    True
    """
    x = np.stack([np.asarray(margins, float), np.ones(len(margins))], axis=1)
    y, home, w = np.asarray(truth, float), np.array([1.0, 0.0]), np.array([1.0, 0.0])
    share = np.clip(y.mean(), 0.5 / len(y), 1 - 0.5 / len(y))
    weight = 0.5 * np.where(y == 1, 1 / share, 1 / (1 - share))

    def loss(w: npt.NDArray[np.float64]) -> float:
        z = x @ w
        return float((weight * (np.logaddexp(0, z) - y * z)).mean() + 5e-4 * ((w - home) ** 2).sum())

    for _ in range(steps):
        p = 0.5 * (1 + np.tanh(x @ w / 2))
        slope = x.T @ (weight * (p - y)) / len(y) + 1e-3 * (w - home)
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x / len(y) + 1e-3 * np.eye(2)
        step = np.linalg.solve(curve, slope)
        while loss(w - step) > loss(w) and np.abs(step).max() > 1e-9:
            step /= 2
        w = w - step
    return Calibration(float(w[0]), float(w[1]))


def margins(model: Predictor, cache: Path, batch: int = 16) -> tuple[list[float], list[bool]]:
    """logit(yes) - logit(no) and the truth of every pair of a cache."""
    plain = replace(model, config=replace(model.config, calibration=Calibration()))
    pictures, truth = open_cache(cache)
    found: list[float] = []
    for start in range(0, len(pictures), batch):
        part = np.ascontiguousarray(pictures[start : start + batch].transpose(1, 0, 4, 2, 3))
        replies = plain.answer(plain.encode(part[0], part[1]), STANDARD_QUESTIONS[1:2])
        found += [float(torch.logit(torch.tensor(reply[0].score), eps=1e-7)) for reply in replies]
    return found, [facts_of(*maps).changed for maps in truth]


def margins_of_cases(
    model: Predictor, cases: Sequence[PairExamples], images: Path
) -> tuple[list[float], list[bool]]:
    """The same of a set's yes/no questions, against its change flags."""
    plain = replace(model, config=replace(model.config, calibration=Calibration()))
    asked = [
        replace(case, examples=tuple(one for one in case.examples if one.task == "change")[:1])
        for case in cases
    ]
    flags = {one.id: one.changed for case in asked for one in case.examples}
    found: list[float] = []
    truth: list[bool] = []
    asked = [case for case in asked if case.examples]
    for predictions, _ in predict_batches(plain, asked, images, batch_size=16):
        for one in predictions:
            if one.score is not None:
                found.append(float(torch.logit(torch.tensor(one.score), eps=1e-7)))
                truth.append(flags[one.id])
    return found, truth


def calibrated(model: Predictor, validation: Path, hard: Path) -> Calibration:
    """Fitted on the validation scenes and as many hard negatives, which are drawn into `hard`."""
    number = len(open_cache(validation)[0])
    render_cache(hard, number, seed=HARD_SEED, options=SceneOptions(change=0.0, strength=HARD_STRENGTH))
    one, other = margins(model, validation), margins(model, hard)
    return fit(one[0] + other[0], one[1] + other[1])
