"""Metrics as functions of sums over examples, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["BOOTSTRAP_ROUNDS", "Array", "Metric", "mean_metric"]

Array = npt.NDArray[np.float64]
BOOTSTRAP_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """Metric that is a function of sums over examples.

    rows: summands of each example, (examples, columns). finish: sums of the columns -> value.

    >>> mean_metric([1, 0, 1, 1]).value()
    0.75
    """

    rows: Array
    finish: Callable[[Array], float]

    def value(self) -> float:
        """Value over all examples; nan without examples."""
        return float(self.finish(self.rows.sum(axis=0))) if len(self.rows) else float("nan")

    def confidence_interval(
        self, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0, level: float = 0.95
    ) -> tuple[float, float] | None:
        """Percentile bootstrap interval: examples are drawn with replacement, `rounds` times.

        The same seed and number of examples give the same draws, so the metrics of one table are comparable.
        None without examples, or where the metric is nan in every draw.

        Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
        """
        if not len(self.rows) or rounds < 1:
            return None
        draws = _draws(len(self.rows), rounds, seed)
        blocks = np.array_split(
            draws, -(-rounds // 100)
        )  # 100 at a time, as float64 takes four times as much
        sums = np.concatenate([block.astype(np.float64) @ self.rows for block in blocks])
        values = np.asarray([self.finish(row) for row in sums])
        values = values[~np.isnan(values)]
        if not len(values):
            return None
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def mean_metric(values: npt.ArrayLike) -> Metric:
    """Mean of one number per example."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return Metric(np.stack([flat, np.ones(len(flat))], axis=1), lambda sums: float(sums[0] / sums[1]))


@lru_cache(maxsize=4)
def _draws(number: int, rounds: int, seed: int) -> npt.NDArray[np.uint16]:
    """Number of times that each example is drawn, (rounds, number)."""
    rng = np.random.default_rng(seed)
    counts = np.empty((rounds, number), np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(number, size=number), minlength=number)
    return counts
