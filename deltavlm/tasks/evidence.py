"""Evidence: answers of another model about a pair, as values and as sentences for the model to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltavlm.messages import pluralize
from deltavlm.tasks.base import TaskName
from deltavlm.tasks.count import MAX_COUNT, Counts
from deltavlm.tasks.locate import LABELS, Cells

__all__ = ["EVIDENCE_TASKS", "Evidence"]

EVIDENCE_TASKS: tuple[TaskName, ...] = ("change", "count", "location")
"""Tasks whose answers are evidence."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Answers of another model about one pair; None for what it did not answer, or does not hold there."""

    changed: bool | None = None
    score: float | None = None  # probability that something changed, 0 to 1
    counts: Counts | None = None
    cells: Cells | None = None

    def sentences(self, model: str) -> str:
        """The evidence of the model of this name in plain words; empty if there is none.

        >>> cells = Cells(roads=("top-left",), buildings=("top-left", "center-center"))
        >>> Evidence(True, 0.834, Counts(0, 2), cells).sentences("nano")  # doctest: +NORMALIZE_WHITESPACE
        'Another model, nano, gives a probability of 0.83 that something changed, counts 0 new roads and
        2 new buildings, and names the cells with changed roads (top-left) and with changed buildings
        (top-left, center-center). It may be wrong.'
        """
        findings = []
        if self.score is not None:
            findings.append(f"gives a probability of {self.score:.2f} that something changed")
        elif self.changed is not None:
            findings.append(f"says that {'something' if self.changed else 'nothing'} changed")
        if self.counts is not None:
            roads, buildings = self.counts.roads, self.counts.buildings
            findings.append(
                f"counts {pluralize(roads, 'new road')} and {pluralize(buildings, 'new building')}"
            )
        if self.cells is not None:
            roads_in, buildings_in = (
                ", ".join(labels) or "none" for labels in (self.cells.roads, self.cells.buildings)
            )
            findings.append(
                f"names the cells with changed roads ({roads_in}) and with changed buildings ({buildings_in})"
            )
        if not findings:
            return ""
        comma = "," if len(findings) > 2 else ""
        listed = f"{comma} and ".join([", ".join(findings[:-1]), findings[-1]] if findings[1:] else findings)
        return f"Another model, {model}, {listed}. It may be wrong."

    def as_dict(self) -> dict[str, Any]:
        """Values ready for JSON: changed, score, new_roads, new_buildings, road_cells, building_cells."""
        counts, cells = self.counts, self.cells
        return {
            "changed": self.changed,
            "score": self.score,
            "new_roads": None if counts is None else counts.roads,
            "new_buildings": None if counts is None else counts.buildings,
            "road_cells": None if cells is None else list(cells.roads),
            "building_cells": None if cells is None else list(cells.buildings),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evidence:
        """Inverse of `as_dict`. Raises: ValueError for values that no model gives."""
        changed, score = values.get("changed"), values.get("score")
        if changed is not None and not isinstance(changed, bool):
            raise ValueError(f"evidence: changed is {changed!r}")
        if score is not None and not (
            isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
        ):
            raise ValueError(f"evidence: score is {score!r}")
        counts = [values.get(name) for name in ("new_roads", "new_buildings")]
        cells = [values.get(name) for name in ("road_cells", "building_cells")]
        return cls(
            changed,
            score,
            None if counts == [None, None] else Counts(*map(_count, counts)),
            None if cells == [None, None] else Cells(*map(_labels, cells)),
        )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"evidence: count is {value!r}")
    return value


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or not all(label in LABELS for label in value):
        raise ValueError(f"evidence: cells are {value!r}")
    return tuple(value)
