"""Counts against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mae(said: Sequence[int], truth: Sequence[int]) -> float:
    """Mean absolute error.

    >>> mae([1, 4], [2, 2])
    1.5
    """
    return float(np.mean(np.abs(np.asarray(said) - np.asarray(truth)))) if len(truth) else float("nan")


def rmse(said: Sequence[int], truth: Sequence[int]) -> float:
    """Root of the mean squared error."""
    return (
        float(np.sqrt(np.mean((np.asarray(said) - np.asarray(truth)) ** 2.0))) if len(truth) else float("nan")
    )
