"""Platt scaling recovers the curve that generated the answers; files of calibrations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltavlm.errors import InputError
from deltavlm.model.calibration import fit_platt, logits, read_calibration, write_calibration
from deltavlm.model.config import Calibration, ScoreCalibration
from deltavlm.model.interface import Question
from deltavlm.model.kinds import load_model
from tests.tiny import tiny_checkpoint

SCORE = ScoreCalibration(
    model="tiny",
    fingerprint="0123456789abcdef",
    method="platt",
    scale=0.5,
    offset=-1.0,
    threshold=0.5,
    changed=12,
    unchanged=30,
)


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


def test_few_separable_answers_do_not_make_the_fit_certain() -> None:
    """Platt's targets: 12 chips of each kind that a gap parts are no proof of probabilities 0 and 1."""
    fits = [fit_platt([-2.0] * n + [2.0] * n, [False] * n + [True] * n) for n in (12, 1200)]
    few, many = (1 / (1 + np.exp(-(2 * fit.scale + fit.offset))) for fit in fits)
    assert few == pytest.approx(13 / 14, abs=0.01)
    assert few < many < 1


def test_a_file_is_read_back(tmp_path: Path) -> None:
    write_calibration(tmp_path / "c.json", SCORE)
    assert read_calibration(tmp_path / "c.json") == SCORE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        ("[1]", "expected keys with values"),
        ("{}", "'model' is missing"),
        ('{"scale": "x"}', "scale"),
        (json.dumps({"type": "FeatureCollection"}), "unknown key 'type'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_calibration(path)
    assert str(path) in str(caught.value)
    assert "deltavlm calibrate" in str(caught.value)


@pytest.mark.parametrize("values", [{"scale": -1.0}, {"threshold": 1.5}, {"offset": float("nan")}])
def test_values_that_no_fit_gives_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        replace(SCORE, **values)


def test_a_model_answers_with_the_calibrated_score(tmp_path: Path) -> None:
    """On top of the calibration of its checkpoint; that of another model is refused, no weights are read."""
    tiny_checkpoint(tmp_path)
    question = Question("change", "Please judge whether these two images have changed.", yes_no=True)
    images = np.random.default_rng(3).integers(0, 256, (2, 1, 3, 64, 64), dtype=np.uint8)
    plain = load_model(str(tmp_path), device="cpu", dtype="fp32")
    fitted = replace(SCORE, fingerprint=plain.fingerprint)
    model = load_model(str(tmp_path), device="cpu", dtype="fp32", calibration=fitted)
    before, after = (each.answer(each.encode(*images), [question])[0][0].score for each in (plain, model))
    assert logits(after) == pytest.approx(0.5 * logits(before) - 1, abs=1e-4)
    assert after != pytest.approx(before, abs=1e-3)
    assert model.details["calibration"]["offset"] == -1
    assert plain.details["calibration"] is None
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"the calibration is of tiny \(0123456789abcdef\), not of"):
        load_model(str(tmp_path), device="cpu", calibration=SCORE)


def test_calibrations_are_applied_one_after_the_other() -> None:
    both = SCORE.after(Calibration(2.0, 4.0))
    assert (both.scale, both.offset) == (1.0, 1.0)
