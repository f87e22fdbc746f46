"""Figures that are functions of sums over examples, so that one rule gives every one of them an interval."""

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
    """What each example adds, and what the sums come to.

    rows: (examples, parts); finish: the sums of the parts -> the figure.

    >>> mean_metric([1, 0, 1, 1]).value()
    0.75
    """

    rows: Array
    finish: Callable[[Array], float]

    def value(self) -> float:
        """The figure over all examples; nan where there are none."""
        return float(self.finish(self.rows.sum(axis=0))) if len(self.rows) else float("nan")

    def confidence_interval(
        self, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0, share: float = 0.95
    ) -> tuple[float, float] | None:
        """The percentile bootstrap's interval: examples drawn with replacement, `rounds` times.

        The same seed and number of examples give the same draws, so figures of one table can be compared.
        None where nothing can be drawn or the figure does not exist in any draw.

        Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
        """
        if not len(self.rows) or rounds < 1:
            return None
        draws = _draws(len(self.rows), rounds, seed)
        parts = np.array_split(draws, -(-rounds // 100))  # a few at a time, as they grow when made floats
        sums = np.concatenate([part.astype(np.float64) @ self.rows for part in parts])
        values = np.asarray([self.finish(row) for row in sums])
        values = values[~np.isnan(values)]
        if not len(values):
            return None
        low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
        return float(low), float(high)


def mean_metric(values: npt.ArrayLike) -> Metric:
    """The mean of one number an example."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return Metric(np.stack([flat, np.ones(len(flat))], axis=1), lambda sums: float(sums[0] / sums[1]))


@lru_cache(maxsize=4)
def _draws(number: int, rounds: int, seed: int) -> npt.NDArray[np.uint16]:
    """(rounds, number): how often each example is drawn."""
    rng = np.random.default_rng(seed)
    counts = np.empty((rounds, number), np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(number, size=number), minlength=number)
    return counts
