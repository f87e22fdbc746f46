"""Margins of a model on synthetic scenes, to which its score is calibrated."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltavlm.data.synthetic.cache import render_cache
from deltavlm.model.predictor import Predictor, load_model
from deltavlm.scoring.synthetic import predict_scenes, score_scenes
from deltavlm.training.calibrate import scene_margins
from tests.tiny import tiny_checkpoint


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
