"""Yes/no answers against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
