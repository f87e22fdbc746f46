"""Sets of labels against the truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PRF:
    precision: float
    recall: float
    f1: float


def micro(said: Sequence[Iterable[str]], truth: Sequence[Iterable[str]]) -> PRF:
    """Precision, recall and F1 over all labels of all examples together; 0 where nothing was said or true.

    >>> micro([{"a", "b"}, set()], [{"a"}, {"c"}])
    PRF(precision=0.5, recall=0.5, f1=0.5)
    """
    hits = given = wanted = 0
    for labels, facts in zip(said, truth, strict=True):
        one, other = set(labels), set(facts)
        hits, given, wanted = hits + len(one & other), given + len(one), wanted + len(other)
    precision = hits / given if given else 0.0
    recall = hits / wanted if wanted else 0.0
    return PRF(precision, recall, 2 * hits / (given + wanted) if given + wanted else 0.0)
