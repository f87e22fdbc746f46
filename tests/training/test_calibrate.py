"""Platt scaling: recovers the curve that generated the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltavlm.data.synthetic.cache import render_cache
from deltavlm.model.calibration import fit_platt
from deltavlm.model.predictor import Predictor, load_model
from deltavlm.scoring.synthetic import predict_scenes, score_scenes
from deltavlm.training.calibrate import scene_margins
from tests.tiny import tiny_checkpoint


def test_the_curve_is_recovered() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1, 3, 4000)
    y = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * x - 1)))
    calibration = fit_platt(x.tolist(), y.tolist())
    odds = np.log(y.mean() / (1 - y.mean()))  # subtracted, since the fit is at even odds
    assert calibration.scale == pytest.approx(0.5, abs=0.06)
    assert calibration.offset == pytest.approx(-1 - odds, abs=0.15)


def test_each_class_has_half_of_the_weight() -> None:
    """Ten times as many negatives of the same kind do not change the fit."""
    rng = np.random.default_rng(1)
    yes, no = rng.normal(1, 2, 500).tolist(), rng.normal(-1, 2, 500).tolist()
    even = fit_platt(yes + no, [True] * 500 + [False] * 500)
    odd = fit_platt(yes + no * 10, [True] * 500 + [False] * 5000)
    assert odd.scale == pytest.approx(even.scale, abs=0.01)
    assert odd.offset == pytest.approx(even.offset, abs=0.01)


def test_separable_answers_have_a_finite_fit() -> None:
    calibration = fit_platt([-3.0, -2.0, 2.0, 3.0], [False, False, True, True])
    assert np.isfinite([calibration.scale, calibration.offset]).all()
    assert calibration.scale > 0


@pytest.mark.slow
def test_margins_and_scores_of_a_drawn_set(tmp_path: Path) -> None:
    """Every pair has a margin; scores have the metrics of the model card."""
    tiny_checkpoint(tmp_path / "model")
    model = load_model(str(tmp_path / "model"), device="cpu")
    assert isinstance(model, Predictor)
    render_cache(tmp_path / "scenes", 4, seed=3, size_px=64, workers=1)
    margins, is_changed = scene_margins(model, tmp_path / "scenes", batch_size=3)
    assert len(margins) == len(is_changed) == 4
    table = score_scenes(*predict_scenes(model, tmp_path / "scenes", batch_size=3))
    assert table["pairs"] == 4
    expected = {"yes_no_balanced", "count_mae_all", "cell_f1_buildings", "caption_exact"}
    assert expected <= set(table)
    assert 0 <= table["unreadable"] <= 12
