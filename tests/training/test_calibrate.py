"""Platt's scaling: finds the curve that made the answers, and says so in the checkpoint's own terms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltavlm.data.synthetic.cache import render_cache
from deltavlm.model.predictor import Predictor, load_model
from deltavlm.scoring.synthetic import predict_scenes, score_scenes
from deltavlm.training.calibrate import fit, margins
from tests.tiny import tiny_checkpoint


def test_the_curve_is_found() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1, 3, 4000)
    y = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * x - 1)))
    found = fit(x.tolist(), y.tolist())
    odds = np.log(y.mean() / (1 - y.mean()))  # taken out: the fit is at even odds
    assert found.scale == pytest.approx(0.5, abs=0.06)
    assert found.offset == pytest.approx(-1 - odds, abs=0.15)


def test_each_class_weighs_a_half() -> None:
    """Ten times as many negatives of the same kind move nothing."""
    rng = np.random.default_rng(1)
    yes, no = rng.normal(1, 2, 500).tolist(), rng.normal(-1, 2, 500).tolist()
    even = fit(yes + no, [True] * 500 + [False] * 500)
    odd = fit(yes + no * 10, [True] * 500 + [False] * 5000)
    assert odd.scale == pytest.approx(even.scale, abs=0.01)
    assert odd.offset == pytest.approx(even.offset, abs=0.01)


def test_perfect_answers_do_not_run_away() -> None:
    found = fit([-3.0, -2.0, 2.0, 3.0], [False, False, True, True])
    assert np.isfinite([found.scale, found.offset]).all()
    assert found.scale > 0


@pytest.mark.slow
def test_margins_and_scores_of_a_drawn_set(tmp_path: Path) -> None:
    """Margins come out for every pair; scores name the measures of the model card."""
    tiny_checkpoint(tmp_path / "model")
    model = load_model(str(tmp_path / "model"), device="cpu")
    assert isinstance(model, Predictor)
    render_cache(tmp_path / "scenes", 4, seed=3, size_px=64, workers=1)
    found, truth = margins(model, tmp_path / "scenes", batch=3)
    assert len(found) == len(truth) == 4
    table = score_scenes(*predict_scenes(model, tmp_path / "scenes", batch_size=3))
    assert table["pairs"] == 4
    wanted = {"yes_no_balanced", "count_mae_all", "cell_f1_buildings", "caption_exact"}
    assert wanted <= set(table)
    assert 0 <= table["unreadable"] <= 12
