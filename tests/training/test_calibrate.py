"""Margins of a model on synthetic scenes, to which its score is calibrated."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from deltavlm.data.synthetic.cache import render_cache
from deltavlm.model.calibration import fit_platt
from deltavlm.model.kinds import load_model
from deltavlm.model.predictor import Predictor
from deltavlm.scoring.synthetic import predict_scenes, score_scenes
from deltavlm.training import calibrate
from deltavlm.training.calibrate import scene_margins
from tests.tiny import tiny_checkpoint


def test_on_real_ground_one_chip_in_five_is_taken_to_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bayes' rule: the log-odds of a score are those of even odds, and log(0.2 / 0.8)."""
    margins, changed = [-2.0, -1.0, 0.5, 1.0, 2.0, 3.0], [False, False, True, False, True, True]
    monkeypatch.setattr(calibrate, "scene_margins", lambda model, folder: (margins, changed))
    even, fitted = fit_platt(margins, changed), calibrate.calibrate_on_ground(Mock(), Mock(count=6))
    assert fitted.scale == even.scale
    assert fitted.offset - even.offset == pytest.approx(-1.3863, abs=1e-4)


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
