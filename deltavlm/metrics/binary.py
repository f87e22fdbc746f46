"""Yes/no answers against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltavlm.metrics.bootstrap import Metric


def accuracy(said: Sequence[bool], truth: Sequence[bool]) -> float:
    """Share of right answers; nan for no answers."""
    return float(np.mean(np.asarray(said) == np.asarray(truth))) if len(truth) else float("nan")


def balanced_accuracy(said: Sequence[bool], truth: Sequence[bool]) -> float:
    """Mean of the shares of right answers among the true yes and among the true no; nan if one of them is
    empty.

    >>> balanced_accuracy([True, True, False, True], [True, True, True, False])
    0.3333333333333333
    """
    answers, facts = np.asarray(said, bool), np.asarray(truth, bool)
    if facts.all() or not facts.any():
        return float("nan")
    return float((answers[facts].mean() + (~answers[~facts]).mean()) / 2)


def auc(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """Area under the ROC curve: the chance that a true yes scores above a true no, ties counting half.

    >>> auc([0.9, 0.4, 0.6, 0.1], [True, True, False, False])
    0.75
    """
    values, facts = np.asarray(scores, float), np.asarray(truth, bool)
    yes, no = values[facts], values[~facts]
    if not len(yes) or not len(no):
        return float("nan")
    above = (yes[:, None] > no[None, :]).mean() + 0.5 * (yes[:, None] == no[None, :]).mean()
    return float(above)


def calibration_error(scores: Sequence[float], truth: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: how far the mean score of a bin lies from its share of yes, weighted by
    size."""
    values, facts = np.asarray(scores, float), np.asarray(truth, bool)
    which = np.minimum((values * bins).astype(int), bins - 1)
    gaps = [
        (which == b).mean() * abs(values[which == b].mean() - facts[which == b].mean())
        for b in range(bins)
        if (which == b).any()
    ]
    return float(np.sum(gaps))


def compute_metrics(said: Sequence[bool | None], truth: Sequence[bool]) -> dict[str, Metric]:
    """Accuracy, precision, recall and F1 of yes, and the four counts they are made of.

    None is an answer that is neither; it counts as the wrong one. A ratio without a denominator is 0, as in
    scikit-learn's `precision_recall_fscore_support(..., zero_division=0)`.

    >>> metrics = compute_metrics([True, None, False], [True, True, False])
    >>> {name: metric.value() for name, metric in metrics.items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'accuracy': 0.6666666666666666, 'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666,
     'tp': 1.0, 'fp': 0.0, 'fn': 1.0, 'tn': 1.0}
    """
    rows = np.zeros((len(truth), 4))  # tp, fp, fn, tn
    for row, answer, fact in zip(rows, said, truth, strict=True):
        right = answer is not None and answer == fact
        row[(0 if right else 2) if fact else (3 if right else 1)] = 1

    def ratio(above: Sequence[float], below: Sequence[float]) -> Metric:
        up, down = np.asarray(above, float), np.asarray(below, float)
        return Metric(rows, lambda sums: float(sums @ up / (sums @ down)) if sums @ down else 0.0)

    def total(place: int) -> Metric:
        return Metric(rows, lambda sums: float(sums[place]))

    return {
        "accuracy": ratio((1, 0, 0, 1), (1, 1, 1, 1)),
        "precision": ratio((1, 0, 0, 0), (1, 1, 0, 0)),
        "recall": ratio((1, 0, 0, 0), (1, 0, 1, 0)),
        "f1": ratio((2, 0, 0, 0), (2, 1, 1, 0)),
        **{name: total(place) for place, name in enumerate(("tp", "fp", "fn", "tn"))},
    }


def calibration_metric(scores: Sequence[float], truth: Sequence[bool], bins: int = 10) -> Metric:
    """`calibration_error` as a tally: for each bin its size, its scores and its share of yes.

    Naeini, Cooper, Hauskrecht: Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
    """
    rows = np.zeros((len(truth), bins + 1))
    for row, score, fact in zip(rows, scores, truth, strict=True):
        row[min(int(score * bins), bins - 1)] = score - fact
        row[bins] = 1
    return Metric(rows, lambda sums: float(np.abs(sums[:bins]).sum() / sums[bins]))
