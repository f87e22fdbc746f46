"""Figures as functions of sums, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deltavlm.metrics import binary, counts, sets
from deltavlm.metrics.bootstrap import Metric, mean_metric


def test_an_interval_is_the_same_for_the_same_seed_and_holds_the_figure() -> None:
    values = np.random.default_rng(5).normal(10, 2, 400)
    tally = mean_metric(values)
    low, high = tally.confidence_interval(seed=3) or (0.0, 0.0)
    assert (low, high) == tally.confidence_interval(seed=3)
    assert (low, high) != tally.confidence_interval(seed=4)
    assert low < values.mean() < high
    # the width that theory gives for a mean: 2 x 1.96 standard errors
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.15)


def test_an_interval_is_of_whole_examples() -> None:
    """Draws take an example with all its parts: a ratio of two equal parts never strays from 1."""
    rows = np.repeat(np.arange(1.0, 9.0)[:, None], 2, axis=1)
    assert Metric(rows, lambda sums: float(sums[0] / sums[1])).confidence_interval() == (1.0, 1.0)


def test_nothing_has_no_figure_and_no_interval() -> None:
    assert math.isnan(mean_metric([]).value())
    assert mean_metric([]).confidence_interval() is None
    assert mean_metric([1.0]).confidence_interval(rounds=0) is None
    numbers = counts.compute_metrics([None, None], [1, 2])
    assert math.isnan(numbers["mae"].value())
    assert numbers["exact"].value() == 0.0


def test_an_unreadable_answer_is_a_wrong_one() -> None:
    found = {
        name: tally.value() for name, tally in binary.compute_metrics([None, None], [True, False]).items()
    }
    assert (found["fn"], found["fp"], found["accuracy"]) == (1, 1, 0)
    cells = sets.compute_metrics([None], [()], labels=9, empty=1.0)
    assert (cells["subset"].value(), cells["jaccard"].value(), cells["hamming"].value()) == (0, 0, 0)


def test_calibration_is_the_function_that_was_there() -> None:
    rng = np.random.default_rng(1)
    scores = [*rng.random(200).tolist(), 0.0, 1.0]
    truth = [*(rng.random(200) < 0.4).tolist(), False, True]
    expected = binary.calibration_error(scores, truth)
    assert binary.calibration_metric(scores, truth).value() == pytest.approx(expected, abs=1e-12)
