"""Metrics as functions of sums, and their bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deltavlm.metrics import binary, counts, sets
from deltavlm.metrics.bootstrap import Metric, mean_metric


def test_an_interval_is_the_same_for_the_same_seed_and_contains_the_value() -> None:
    values = np.random.default_rng(5).normal(10, 2, 400)
    metric = mean_metric(values)
    low, high = metric.confidence_interval(seed=3) or (0.0, 0.0)
    assert (low, high) == metric.confidence_interval(seed=3)
    assert (low, high) != metric.confidence_interval(seed=4)
    assert low < values.mean() < high
    # the width that theory gives for a mean: 2 x 1.96 standard errors
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.15)


def test_examples_are_drawn_with_all_their_columns() -> None:
    """The ratio of two equal columns is 1 in every draw."""
    rows = np.repeat(np.arange(1.0, 9.0)[:, None], 2, axis=1)
    assert Metric(rows, lambda sums: float(sums[0] / sums[1])).confidence_interval() == (1.0, 1.0)


def test_without_examples_there_is_no_value_and_no_interval() -> None:
    assert math.isnan(mean_metric([]).value())
    assert mean_metric([]).confidence_interval() is None
    assert mean_metric([1.0]).confidence_interval(rounds=0) is None
    numbers = counts.compute_metrics([None, None], [1, 2])
    assert math.isnan(numbers["mae"].value())
    assert numbers["exact"].value() == 0.0


def test_an_answer_that_cannot_be_parsed_is_wrong() -> None:
    values = {
        name: metric.value() for name, metric in binary.compute_metrics([None, None], [True, False]).items()
    }
    assert (values["fn"], values["fp"], values["accuracy"]) == (1, 1, 0)
    cells = sets.compute_metrics([None], [()], labels=9, empty=1.0)
    assert (cells["subset"].value(), cells["jaccard"].value(), cells["hamming"].value()) == (0, 0, 0)


def test_the_calibration_error_is_that_of_its_definition() -> None:
    """Distance of the mean score of a bin from its share of yes, weighted by its size."""
    rng = np.random.default_rng(1)
    scores = [*rng.random(200).tolist(), 0.0, 1.0]
    truth = [*(rng.random(200) < 0.4).tolist(), False, True]
    values, labels = np.asarray(scores), np.asarray(truth)
    bins = np.minimum((values * 10).astype(int), 9)
    gaps = [
        (bins == b).mean() * abs(values[bins == b].mean() - labels[bins == b].mean()) for b in np.unique(bins)
    ]
    assert binary.calibration_error(scores, truth).value() == pytest.approx(sum(gaps), abs=1e-12)
