"""Metrics of sets of labels: micro precision, recall and F1, Jaccard, subset accuracy, Hamming loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from deltavlm.metrics.bootstrap import Metric, mean_metric


@dataclass(frozen=True, slots=True)
class PrecisionRecallF1:
    """Precision, recall and F1."""

    precision: float
    recall: float
    f1: float


def micro_average(predicted: Sequence[Iterable[str]], truth: Sequence[Iterable[str]]) -> PrecisionRecallF1:
    """Precision, recall and F1 over the labels of all examples together; 0 for a denominator of 0.

    >>> micro_average([{"a", "b"}, set()], [{"a"}, {"c"}])
    PrecisionRecallF1(precision=0.5, recall=0.5, f1=0.5)
    """
    hits = predictions = positives = 0
    for answer, reference in zip(predicted, truth, strict=True):
        answer_labels, true_labels = set(answer), set(reference)
        hits += len(answer_labels & true_labels)
        predictions += len(answer_labels)
        positives += len(true_labels)
    precision = hits / predictions if predictions else 0.0
    recall = hits / positives if positives else 0.0
    total = predictions + positives
    return PrecisionRecallF1(precision, recall, 2 * hits / total if total else 0.0)


def compute_metrics(
    predicted: Sequence[Iterable[str] | None], truth: Sequence[Iterable[str]], labels: int, empty: float
) -> dict[str, Metric]:
    """Micro precision, recall and F1; mean Jaccard index of the examples; subset accuracy; Hamming loss.

    predicted: None is an answer that cannot be parsed: an empty set that matches nothing, not even an empty
    set. labels: number of possible labels. empty: Jaccard index of two empty sets, which is 0 in
    scikit-learn's `jaccard_score(..., average="samples")`, and 1 by the definition of equal sets.

    Tsoumakas, Katakis: Multi-label classification: an overview, IJDWM 3 (2007).

    >>> metrics = compute_metrics([{"a", "b"}, set(), None], [{"a"}, set(), set()], labels=4, empty=1.0)
    >>> {name: round(metric.value(), 3) for name, metric in metrics.items()}
    {'precision': 0.5, 'recall': 1.0, 'f1': 0.667, 'jaccard': 0.5, 'subset': 0.333, 'hamming': 0.083}
    """
    rows = np.zeros((len(truth), 3))  # hits, predicted labels, true labels
    jaccard, subset, hamming = (np.zeros(len(truth)) for _ in range(3))
    for index, (answer, reference) in enumerate(zip(predicted, truth, strict=True)):
        answer_labels, true_labels = set(answer or ()), set(reference)
        hits, union = answer_labels & true_labels, answer_labels | true_labels
        rows[index] = len(hits), len(answer_labels), len(true_labels)
        hamming[index] = len(answer_labels ^ true_labels) / labels
        if answer is not None:
            jaccard[index] = len(hits) / len(union) if union else empty
            subset[index] = answer_labels == true_labels

    def ratio(factor: float, *columns: int) -> Metric:
        """Metric of factor * hits over the sum of `columns`."""
        return Metric(
            rows, lambda s: float(factor * s[0] / s[[*columns]].sum()) if s[[*columns]].sum() else 0.0
        )

    return {
        "precision": ratio(1, 1),
        "recall": ratio(1, 2),
        "f1": ratio(2, 1, 2),
        "jaccard": mean_metric(jaccard),
        "subset": mean_metric(subset),
        "hamming": mean_metric(hamming),
    }
