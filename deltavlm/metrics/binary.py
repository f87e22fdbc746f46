"""Metrics of yes/no answers: accuracy, precision, recall, F1, AUC, calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deltavlm.metrics.bootstrap import Metric

MIN_BANDWIDTH = 0.01  # of the kernels of `best_cutoff`


def accuracy(predicted: Sequence[bool], truth: Sequence[bool]) -> float:
    """Share of correct answers; nan without answers."""
    return float(np.mean(np.asarray(predicted) == np.asarray(truth))) if len(truth) else float("nan")


def balanced_accuracy(predicted: Sequence[bool], truth: Sequence[bool]) -> float:
    """Mean of the accuracies on true yes and on true no; nan when one of them is empty.

    >>> balanced_accuracy([True, True, False, True], [True, True, True, False])
    0.3333333333333333
    """
    answers, labels = np.asarray(predicted, bool), np.asarray(truth, bool)
    if labels.all() or not labels.any():
        return float("nan")
    return float((answers[labels].mean() + (~answers[~labels]).mean()) / 2)


def auc(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """Area under the ROC curve: probability that a true yes scores above a true no; ties count half.

    >>> auc([0.9, 0.4, 0.6, 0.1], [True, True, False, False])
    0.75
    """
    values, labels = np.asarray(scores, float), np.asarray(truth, bool)
    yes, no = values[labels], values[~labels]
    if not len(yes) or not len(no):
        return float("nan")
    ordered = np.sort(no)
    below = sum(np.searchsorted(ordered, yes, side).mean() for side in ("left", "right")) / 2
    return float(below / len(no))


def auc_interval(area: float, yes: int, no: int) -> tuple[float, float]:
    """Interval of 95 % of an AUC from this number of true yes and true no.

    Hanley, McNeil: The meaning and use of the area under a ROC curve, Radiology 143, 1982.

    >>> [round(end, 2) for end in auc_interval(0.8, 20, 40)]
    [0.67, 0.93]
    """
    first, second = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    variance = (area * (1 - area) + (yes - 1) * first + (no - 1) * second) / (yes * no)
    margin = 1.96 * math.sqrt(max(0.0, variance))
    return max(0.0, area - margin), min(1.0, area + margin)


def best_cutoff(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """Cutoff of scores on a scale without ends, such as logits, that is best by balanced accuracy.

    Both distributions are smoothed by Gaussian kernels of Silverman's bandwidth, so that few scores do not
    decide alone. Source: Fluss, Faraggi, Reiser: Estimation of the Youden index and its associated cutoff
    point, Biometrical Journal 47, 2005.

    >>> round(best_cutoff([-3.0, -2.5, -2.0, 1.0, 2.0, 3.0], [False, False, False, True, True, True]), 1)
    -1.0
    """
    from scipy.special import ndtr  # slow to import

    values, labels = np.asarray(scores, float), np.asarray(truth, bool)
    cutoffs = np.linspace(values.min(), values.max(), 501)
    gain = np.zeros(len(cutoffs))  # of balanced accuracy, times 2
    for sign, group in ((1, values[~labels]), (-1, values[labels])):
        low, high = np.percentile(group, (25, 75))
        spread = min(filter(None, (group.std(ddof=1), (high - low) / 1.34)), default=0.0)
        bandwidth = max(0.9 * spread * len(group) ** -0.2, MIN_BANDWIDTH)
        gain += sign * np.array([ndtr((cutoff - group) / bandwidth).mean() for cutoff in cutoffs])
    return float(np.median(cutoffs[gain > gain.max() - 1e-6]))


def compute_metrics(predicted: Sequence[bool | None], truth: Sequence[bool]) -> dict[str, Metric]:
    """Accuracy, precision, recall and F1 of "yes", and the confusion matrix.

    None is an answer that cannot be parsed; it counts as the wrong one. A ratio with denominator 0 is 0,
    as in scikit-learn's `precision_recall_fscore_support(..., zero_division=0)`.

    >>> metrics = compute_metrics([True, None, False], [True, True, False])
    >>> {name: metric.value() for name, metric in metrics.items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'accuracy': 0.6666666666666666, 'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666,
     'tp': 1.0, 'fp': 0.0, 'fn': 1.0, 'tn': 1.0}
    """
    rows = np.zeros((len(truth), 4))  # tp, fp, fn, tn
    for row, answer, label in zip(rows, predicted, truth, strict=True):
        is_correct = answer is not None and answer == label
        row[(0 if is_correct else 2) if label else (3 if is_correct else 1)] = 1

    def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Metric:
        above, below = np.asarray(numerator, float), np.asarray(denominator, float)
        return Metric(rows, lambda sums: float(sums @ above / (sums @ below)) if sums @ below else 0.0)

    def total(column: int) -> Metric:
        return Metric(rows, lambda sums: float(sums[column]))

    return {
        "accuracy": ratio((1, 0, 0, 1), (1, 1, 1, 1)),
        "precision": ratio((1, 0, 0, 0), (1, 1, 0, 0)),
        "recall": ratio((1, 0, 0, 0), (1, 0, 1, 0)),
        "f1": ratio((2, 0, 0, 0), (2, 1, 1, 0)),
        **{name: total(column) for column, name in enumerate(("tp", "fp", "fn", "tn"))},
    }


def calibration_error(scores: Sequence[float], truth: Sequence[bool], bins: int = 10) -> Metric:
    """Expected calibration error: |mean score - share of yes| of each bin, weighted by its size.

    Naeini, Cooper, Hauskrecht: Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
    """
    rows = np.zeros((len(truth), bins + 1))
    for row, score, label in zip(rows, scores, truth, strict=True):
        row[min(int(score * bins), bins - 1)] = score - label
        row[bins] = 1
    return Metric(rows, lambda sums: float(np.abs(sums[:bins]).sum() / sums[bins]))
