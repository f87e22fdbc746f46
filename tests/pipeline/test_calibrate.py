"""Calibration to labelled chips, or to chips taken as unchanged: fits, their figures, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deltavlm.errors import ConfigError, InputError
from deltavlm.pipeline import calibrate
from deltavlm.pipeline.calibrate import ScoredChips, fit_calibration


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def chips_of(
    scores: Any,
    labels: Any = None,
    groups: Any = None,
    *,
    source: str = "out.gpkg",
    fingerprint: str = "a" * 16,
) -> ScoredChips:
    scores = np.asarray(scores, float)
    labels = (
        [None] * len(scores) if labels is None else [None if each is None else bool(each) for each in labels]
    )
    groups = [f"pair {index}" for index in range(len(scores))] if groups is None else groups
    return ScoredChips(source, "nano", fingerprint, scores, tuple(labels), tuple(groups))


@pytest.mark.parametrize(("scale", "offset"), [(1.0, -2.0), (0.5, 1.0), (2.0, 0.0)])
def test_a_known_shift_is_recovered(scale: float, offset: float) -> None:
    """Scores that are off by it call changed and unchanged chips alike; held-out calls are right again."""
    rng = np.random.default_rng(4)
    truth = rng.random(3000) < 0.5
    margins = rng.normal(0, 1.5, 3000) + np.where(truth, 1.5, -1.5)  # log odds are 4/3 of them
    shown = (margins * 4 / 3 - offset) / scale
    fit = fit_calibration([chips_of(sigmoid(shown), truth)])
    assert fit.calibration.scale == pytest.approx(scale, rel=0.1)
    assert fit.calibration.offset == pytest.approx(offset, abs=0.2)
    assert fit.calibration.threshold == pytest.approx(0.5, abs=0.1)
    assert (fit.calibration.changed, fit.calibration.unchanged) == (truth.sum(), (~truth).sum())
    right = np.mean((margins > 0) == truth)
    assert fit.after.balanced_accuracy == pytest.approx(right, abs=0.01)
    if offset:
        assert fit.before.balanced_accuracy < right - 0.03  # type: ignore[operator]
    assert fit.warnings() == []


@pytest.mark.parametrize("share", [0.01, 0.05, 0.29, 0.5])
@pytest.mark.parametrize("count", [100, 317])
def test_the_quantile_has_the_share_of_false_alarms(share: float, count: int) -> None:
    scores = np.random.default_rng(count).beta(1, 3, count)
    fit = fit_calibration([chips_of(scores)], false_alarms=share)
    found = np.mean(scores >= fit.calibration.threshold)
    assert share - 1 / count < found <= share + 1e-9
    assert fit.after.false_alarms == pytest.approx(found)
    assert (fit.calibration.scale, fit.calibration.offset, fit.calibration.method) == (1, 0, "quantile")
    assert fit.auc is None


def test_equal_scores_are_all_above_the_threshold_or_all_below() -> None:
    fit = fit_calibration([chips_of([0.1] * 50 + [0.8] * 50)], false_alarms=0.1)
    assert 0.8 < fit.calibration.threshold < 1
    assert fit.after.false_alarms == 0
    with pytest.raises(InputError, match="have the highest score, so no threshold"):
        fit_calibration([chips_of([0.1] * 50 + [1 - 1e-9] * 50)], false_alarms=0.1)


def test_with_labels_the_share_is_of_the_unchanged_chips() -> None:
    rng = np.random.default_rng(5)
    truth = np.arange(400) < 100
    scores = sigmoid(rng.normal(0, 1, 400) + np.where(truth, 2.0, 0.0))
    fit = fit_calibration([chips_of(scores, truth)], false_alarms=0.1)
    called = sigmoid(fit.calibration.scale * np.log(scores / (1 - scores)) + fit.calibration.offset)
    assert np.mean(called[~truth] >= fit.calibration.threshold) == pytest.approx(0.1)
    assert fit.after.false_alarms == pytest.approx(0.1, abs=0.03)
    assert fit.calibration.false_alarms == 0.1


def test_chips_of_one_pair_are_held_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The label of a pair is that of all its chips, which are alike: the fit to others must not know them."""
    rng = np.random.default_rng(6)
    pairs = np.repeat(np.arange(30), 5)
    scores, labels = sigmoid(rng.normal(0, 1, 150) + pairs % 2), pairs % 2 == 1
    fits: list[set[float]] = []
    real = calibrate.fit_platt
    monkeypatch.setattr(
        calibrate, "fit_platt", lambda margins, changed: fits.append({*margins}) or real(margins, changed)
    )
    fit_calibration([chips_of(scores, labels, [f"pair {each}" for each in pairs])])
    margins = calibrate.logits(scores)
    assert len(fits) == 11
    for known in fits[1:]:
        held_out = {int(pair) for pair, margin in zip(pairs, margins, strict=True) if margin not in known}
        assert len(held_out) == 3
        assert not known & {float(margin) for margin in margins[np.isin(pairs, [*held_out])]}


def test_a_score_that_tells_nothing_is_warned_about() -> None:
    rng = np.random.default_rng(7)
    truth = np.arange(60) % 2 == 0
    scores = sigmoid(rng.normal(0, 1, 60) + 0.3 * truth)
    (warning,) = fit_calibration([chips_of(scores, truth)]).warnings()
    assert "no threshold helps" in warning
    with pytest.raises(InputError, match=r"score no higher than unchanged ones \(AUC 0\.\d\d\)"):
        fit_calibration([chips_of(1 - scores, truth)])


def test_calls_that_get_worse_are_warned_about() -> None:
    """The curve is bent by sure false alarms; all other chips were called right by the score itself."""
    scores = [0.99995] * 30 + [0.55] * 70 + [0.99995] * 10 + [0.45] * 90
    fit = fit_calibration([chips_of(scores, [True] * 100 + [False] * 100)])
    (warning,) = fit.warnings()
    assert "worse than before" in warning


def test_chips_without_a_label_are_left_out() -> None:
    rng = np.random.default_rng(8)
    truth = np.arange(80) % 2 == 0
    scores = sigmoid(rng.normal(0, 1, 80) + 2 * truth)
    labels = truth.tolist()
    alone = fit_calibration([chips_of(scores, labels)])
    more = fit_calibration([chips_of([*scores, 0.9, 0.8], [*labels, None, None])])
    parts = fit_calibration([chips_of(scores[:50], labels[:50]), chips_of(scores[50:], labels[50:])])
    assert more.calibration == alone.calibration == parts.calibration


@pytest.mark.parametrize(
    ("labels", "share", "words"),
    [
        (None, None, "has no labels; give verdicts"),
        ([True] * 40, None, "all labels are changed; a fit needs 10 unchanged chips too"),
        ([False] * 40, None, "all labels are unchanged; a fit needs 10 changed chips too"),
        ([True] * 9 + [False] * 31, None, "9 changed chips: a fit needs 10"),
        (None, 0.01, "40 unchanged chips: `false_alarms=0.01` needs 100"),
        ([True] * 25 + [False] * 15, 0.05, "15 unchanged chips: `false_alarms=0.05` needs 20"),
    ],
)
def test_too_few_labels_are_refused(labels: Any, share: float | None, words: str) -> None:
    scores = np.linspace(0.9, 0.1, 40)
    with pytest.raises(InputError, match=words):
        fit_calibration([chips_of(scores, labels)], false_alarms=share)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ConfigError, match="is not between 0 and 1"):
        fit_calibration([chips_of(np.linspace(0, 1, 40))], false_alarms=share)


def test_chips_of_two_models_are_not_mixed() -> None:
    first = chips_of(np.linspace(0, 1, 40))
    second = replace(first, source="b.gpkg", fingerprint="b" * 16)
    with pytest.raises(
        InputError, match=r"b.gpkg: is of model nano \(b{16}\), and out.gpkg of nano \(a{16}\)"
    ):
        fit_calibration([first, second], false_alarms=0.1)
