"""Calibration of yes/no scores: Platt scaling of the margin logit(yes) - logit(no) on held-out pairs.

With tiles of real ground the fit is to pairs drawn on them, and the score is the probability of a change
where one chip in five has changed (`CHANGED_SHARE`). Without, as many hard negatives are added to the
validation scenes: scenes without a change, in which season, light and haze differ more than in training;
changed and unchanged pairs have the same weight in the fit, whatever their number, so the score is a
probability at even odds. A model trained on a set is calibrated on the held-out pairs of that set; the
shipped one was never fitted to real pairs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from deltavlm.data.synthetic import SceneOptions
from deltavlm.data.synthetic.cache import SceneCache, open_cache, render_cache
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.model.calibration import fit_platt
from deltavlm.model.config import Calibration
from deltavlm.model.predictor import Predictor
from deltavlm.scoring.inference import PairExamples, predict_batches
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS

log = logging.getLogger(__name__)

HARD_SEED = 700_000_000
CHANGED_SHARE = 0.2  # of the chips of a map
HARD_STRENGTH = 1.5  # of the differences in light, haze and season


def scene_margins(model: Predictor, cache: Path, batch_size: int = 16) -> tuple[list[float], list[bool]]:
    """Margins of all pairs of a scene cache, and whether they have changed."""
    uncalibrated = _without_calibration(model)
    images, truth = open_cache(cache)
    margins: list[float] = []
    for start in range(0, len(images), batch_size):
        dates = np.ascontiguousarray(images[start : start + batch_size].transpose(1, 0, 4, 2, 3))
        replies = uncalibrated.answer(uncalibrated.encode(dates[0], dates[1]), STANDARD_QUESTIONS[1:2])
        margins += [_margin(reply[0].score) for reply in replies]
    return margins, [facts_of(*maps).changed for maps in truth]


def record_margins(
    model: Predictor, pairs: Sequence[PairExamples], image_folder: Path
) -> tuple[list[float], list[bool]]:
    """Margins of a set's yes/no questions, one a pair, and their change flags."""
    uncalibrated = _without_calibration(model)
    questions = [
        replace(pair, examples=tuple(example for example in pair.examples if example.task == "change")[:1])
        for pair in pairs
    ]
    questions = [pair for pair in questions if pair.examples]
    flags = {example.id: example.changed for pair in questions for example in pair.examples}
    margins: list[float] = []
    is_changed: list[bool] = []
    for predictions, _ in predict_batches(uncalibrated, questions, image_folder, batch_size=16):
        for prediction in predictions:
            if prediction.score is not None:
                margins.append(_margin(prediction.score))
                is_changed.append(flags[prediction.id])
    return margins, is_changed


def calibrate_on_scenes(model: Predictor, validation: Path, hard: Path) -> Calibration:
    """Fit to the validation scenes and as many hard negatives, which are rendered into the cache `hard`."""
    options = SceneOptions(change=0.0, strength=HARD_STRENGTH)
    log.info("calibrating the yes/no score on the validation scenes and as many hard ones")
    render_cache(hard, len(open_cache(validation)[0]), seed=HARD_SEED, options=options)
    margins, is_changed = scene_margins(model, validation)
    hard_margins, hard_is_changed = scene_margins(model, hard)
    return fit_platt(margins + hard_margins, is_changed + hard_is_changed)


def calibrate_on_ground(model: Predictor, cache: SceneCache) -> Calibration:
    """Fit to scenes on real ground, which are rendered into the cache, at odds of CHANGED_SHARE.

    Unchanged ones show a tile twice under other light, weather and season, as real unchanged pairs do; on
    drawn ground alone they are too easy, and every second real one was called changed.
    """
    log.info("calibrating the yes/no score on %d pairs of real ground", cache.count)
    cache.render()
    even = fit_platt(*scene_margins(model, cache.folder))
    return replace(even, offset=even.offset + math.log(CHANGED_SHARE / (1 - CHANGED_SHARE)))


def _without_calibration(model: Predictor) -> Predictor:
    return replace(model, config=replace(model.config, calibration=Calibration()))


def _margin(score: float) -> float:
    """Logit of an uncalibrated score."""
    return float(torch.logit(torch.tensor(score), eps=1e-7))
