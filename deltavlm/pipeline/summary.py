"""Counts and timings of a run, its most changed chips, and its progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Literal

from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.schema import ChipStatus

__all__ = ["ChangedChip", "StageTimes", "Summary"]

_MOST_CHANGED = 10
_ADDED = (  # fields that `Summary.add` updates
    *("statuses", "changed", "unparsed", "unsupported", "conflicts", "conflicting", "first_failure"),
    *("most_changed", "with_shift", "unreadable_answers"),
)


@dataclass(slots=True)
class StageTimes:
    """Seconds spent in each stage of a run.

    Chips are read while others are answered, so the sum may exceed the duration of the run; of reading, only
    `waited` delays it. Batches that are asked in parallel count their seconds each. On a GPU the end of
    encoding is counted as answering.
    """

    read: float = 0.0  # opening files and reading chips
    waited: float = 0.0  # the prefetch queue was empty
    encode: float = 0.0
    answer: float = 0.0
    write: float = 0.0  # journal and output

    @contextmanager
    def timed(self, stage: Literal["read", "waited", "encode", "answer", "write"]) -> Iterator[None]:
        """Add the seconds inside the `with` to a stage, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)

    def include(self, other: StageTimes) -> None:
        """Add the seconds of another run."""
        for stage in fields(self):
            setattr(self, stage.name, getattr(self, stage.name) + getattr(other, stage.name))


@dataclass(frozen=True, slots=True)
class ChangedChip:
    """Chip that the model calls changed, with the centroid of its footprint."""

    score: float  # probability of change, 0 to 1
    chip_id: str
    x: float  # centroid in the CRS of the pair, or in pixels if it has none
    y: float
    caption: str
    pair: str = ""  # id of its pair; empty in a run over one pair
    lonlat: tuple[float, float] | None = None  # centroid in degrees, if the CRS leads there
    conflicts: tuple[str, ...] = ()  # names of the consistency rules that its answers break


@dataclass(slots=True)
class Summary:
    """Counts of the chips of a run, updated while it goes on."""

    statuses: Counter[ChipStatus] = field(default_factory=Counter)
    resumed: int = 0  # chips answered by an earlier run
    changed: int = 0
    deduplicated: int = 0  # chips whose pixels equal those of a chip answered before in this run
    unparsed: int = 0  # chips whose answer to the yes/no question is neither
    unreadable_answers: Counter[str] = field(default_factory=Counter)  # other than yes and no, by question
    unsupported: Counter[str] = field(
        default_factory=Counter
    )  # answers that a model was not taught, by question
    conflicts: Counter[str] = field(default_factory=Counter)  # chips by consistency rule that they break
    conflicting: int = 0  # chips that break at least one
    with_shift: int = 0  # chips in which the shift between the dates could be measured
    polygons: int = 0  # polygons of change, if they were requested
    seconds: float = 0.0
    batch_size: int = 0
    first_failure: str = ""  # error message of the first failed chip
    most_changed: list[ChangedChip] = field(default_factory=list)  # without conflicts first
    stages: StageTimes = field(default_factory=StageTimes)

    @property
    def chips(self) -> int:
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """Chips that could not be read or answered."""
        return self.statuses["unreadable"] + self.statuses["error"]

    @property
    def chips_per_s(self) -> float:
        """Chips per second, without those of an earlier run."""
        return (self.chips - self.resumed) / self.seconds if self.seconds > 0 else 0.0

    def counts(self) -> Summary:
        """Copy of the counts, for `restore`."""
        return deepcopy(self)

    def restore(self, earlier: Summary) -> None:
        """Set what `add` counts to what it was."""
        for name in _ADDED:
            setattr(self, name, deepcopy(getattr(earlier, name)))

    def add(self, result: ChipResult, conflicts: Sequence[str] = ()) -> None:
        """Count a chip, which breaks the consistency rules `conflicts`."""
        self.statuses[result.status] += 1
        self.with_shift += result.shift_px is not None
        if result.failed and not self.first_failure:
            self.first_failure = result.reason
        change, caption = result.of_task("change"), result.of_task("caption")
        self.conflicts.update(conflicts)
        self.conflicting += bool(conflicts)
        unsupported = [name for name, answer in result.answers.items() if answer.status == "unsupported"]
        self.unsupported.update(unsupported)
        self.unreadable_answers.update(
            name
            for name, answer in result.answers.items()
            if answer.task != "change" and answer.value is None and answer.status == "answered"
        )
        self.unparsed += change is not None and change.value is None and change.status == "answered"
        if change is None or change.value is not True:
            return
        self.changed += 1
        centroid = result.chip.footprint.centroid
        chip = ChangedChip(
            score=change.score if change.score is not None else 0.0,
            chip_id=result.chip.chip_id,
            x=centroid.x,
            y=centroid.y,
            caption=caption.text if caption else "",
            pair=result.pair,
            conflicts=tuple(conflicts),
        )
        ranked = sorted([*self.most_changed, chip], key=lambda each: (bool(each.conflicts), -each.score))
        self.most_changed = ranked[:_MOST_CHANGED]
