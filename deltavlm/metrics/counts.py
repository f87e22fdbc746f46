"""Metrics of counts: MAE, RMSE, share of exact answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltavlm.metrics.bootstrap import Metric, mean_metric


def mae(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """Mean absolute error; nan without answers.

    >>> mae([1, 4], [2, 2])
    1.5
    """
    return float(np.mean(np.abs(np.asarray(predicted) - np.asarray(truth)))) if len(truth) else float("nan")


def compute_metrics(predicted: Sequence[int | None], truth: Sequence[int]) -> dict[str, Metric]:
    """MAE and RMSE of the answers that are numbers, and the share of exact ones among all answers.

    None is an answer that cannot be parsed: it has no error to average, and is not exact.

    >>> {name: tally.value() for name, tally in compute_metrics([2, None, 4], [2, 1, 1]).items()}
    {'mae': 1.5, 'rmse': 2.1213203435596424, 'exact': 0.3333333333333333}
    """
    errors = np.asarray([a - b for a, b in zip(predicted, truth, strict=True) if a is not None], float)
    squared = mean_metric(errors**2)
    return {
        "mae": mean_metric(np.abs(errors)),
        "rmse": Metric(squared.rows, lambda sums: float(np.sqrt(squared.finish(sums)))),
        "exact": mean_metric([a == b for a, b in zip(predicted, truth, strict=True)]),
    }
