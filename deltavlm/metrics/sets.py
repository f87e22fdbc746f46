"""Sets of labels against the truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from deltavlm.metrics.bootstrap import Metric, mean_metric


@dataclass(frozen=True, slots=True)
class PRF:
    precision: float
    recall: float
    f1: float


def micro_average(said: Sequence[Iterable[str]], truth: Sequence[Iterable[str]]) -> PRF:
    """Precision, recall and F1 over all labels of all examples together; 0 where nothing was said or true.

    >>> micro_average([{"a", "b"}, set()], [{"a"}, {"c"}])
    PRF(precision=0.5, recall=0.5, f1=0.5)
    """
    hits = given = wanted = 0
    for labels, facts in zip(said, truth, strict=True):
        one, other = set(labels), set(facts)
        hits, given, wanted = hits + len(one & other), given + len(one), wanted + len(other)
    precision = hits / given if given else 0.0
    recall = hits / wanted if wanted else 0.0
    return PRF(precision, recall, 2 * hits / (given + wanted) if given + wanted else 0.0)


def compute_metrics(
    said: Sequence[Iterable[str] | None], truth: Sequence[Iterable[str]], labels: int, empty: float
) -> dict[str, Metric]:
    """Micro precision, recall and F1; Jaccard by examples; subset accuracy; Hamming loss.

    said: None is an answer that cannot be read: it names nothing, and is no match even where nothing is true.
    labels: how many there are to choose from. empty: Jaccard of nothing with nothing, which is 0 in
    scikit-learn's `jaccard_score(..., average="samples")` and 1 by the definition of equal sets.

    Tsoumakas, Katakis: Multi-label classification: an overview, IJDWM 3 (2007).

    >>> found = compute_metrics([{"a", "b"}, set(), None], [{"a"}, set(), set()], labels=4, empty=1.0)
    >>> {name: round(tally.value(), 3) for name, tally in found.items()}
    {'precision': 0.5, 'recall': 1.0, 'f1': 0.667, 'jaccard': 0.5, 'subset': 0.333, 'hamming': 0.083}
    """
    rows = np.zeros((len(truth), 3))  # hit, named, true
    jaccard, subset, wrong = (np.zeros(len(truth)) for _ in range(3))
    for index, (answer, facts) in enumerate(zip(said, truth, strict=True)):
        one, other = set(answer or ()), set(facts)
        rows[index] = len(one & other), len(one), len(other)
        wrong[index] = len(one ^ other) / labels
        if answer is not None:
            jaccard[index] = len(one & other) / len(one | other) if one | other else empty
            subset[index] = one == other

    def ratio(up: float, *below: int) -> Metric:
        return Metric(rows, lambda s: float(up * s[0] / s[[*below]].sum()) if s[[*below]].sum() else 0.0)

    return {
        "precision": ratio(1, 1),
        "recall": ratio(1, 2),
        "f1": ratio(2, 1, 2),
        "jaccard": mean_metric(jaccard),
        "subset": mean_metric(subset),
        "hamming": mean_metric(wrong),
    }
