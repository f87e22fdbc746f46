"""What a run has come to: chips by status, what was found, and where the seconds went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from deltavlm.pipeline.layers import ChipResult, Status

__all__ = ["ChangedChip", "Progress", "Stages", "Summary"]

_MOST_CHANGED = 10


@dataclass(slots=True)
class Stages:
    """Seconds of a run by what they went into.

    Chips are read while others are answered, so that the stages may add up to more than the run took; of the
    reading, only `waited` holds it up. Batches that are asked side by side count their seconds each. On a GPU
    the end of encoding is counted as answering.
    """

    read: float = 0.0  # files opened and chips read
    waited: float = 0.0  # nothing was there to ask, for it was still being read
    encode: float = 0.0
    answer: float = 0.0
    write: float = 0.0  # the journal and the output

    @contextmanager
    def timed(self, stage: Literal["read", "waited", "encode", "answer", "write"]) -> Iterator[None]:
        """Add the seconds inside the `with` to a stage, also where it ends in an error."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started)

    def include(self, other: Stages) -> None:
        """Add the seconds of another run."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, after each group of chips."""

    done: int
    changed: int
    failed: int
    chips_per_s: float
    summary: Summary  # of the run, which goes on


@dataclass(frozen=True, slots=True)
class ChangedChip:
    """A chip that the model calls changed, and the middle of its footprint in the raster's CRS."""

    score: float
    chip_id: str
    x: float
    y: float
    caption: str
    pair: str = ""  # of a run over many pairs, the id of the chip's


@dataclass(slots=True)
class Summary:
    """What a run has come to; `first_failure` says why the first failed chip failed."""

    statuses: Counter[Status] = field(default_factory=Counter)
    earlier: int = 0  # of the chips, those that an earlier run had answered
    changed: int = 0
    repeated: int = 0  # chips with a picture that was asked about before in this run
    unread: int = 0  # chips whose answer is neither yes nor no
    polygons: int = 0  # of what changed, where they were wished
    seconds: float = 0.0
    batch_size: int = 0
    first_failure: str = ""
    most_changed: list[ChangedChip] = field(default_factory=list)  # largest score first
    stages: Stages = field(default_factory=Stages)

    @property
    def chips(self) -> int:
        return self.statuses.total()

    def include(self, other: Summary, pair: str) -> None:
        """Add what a run over one of many pairs has come to."""
        self.statuses.update(other.statuses)
        self.earlier += other.earlier
        self.changed += other.changed
        self.repeated += other.repeated
        self.unread += other.unread
        self.polygons += other.polygons
        self.batch_size = other.batch_size
        self.first_failure = self.first_failure or other.first_failure
        for chip in other.most_changed:
            self.found(replace(chip, pair=pair))
        self.stages.include(other.stages)

    def add(self, result: ChipResult) -> None:
        """Count a chip."""
        self.statuses[result.status] += 1
        if result.status in ("unreadable", "error") and not self.first_failure:
            self.first_failure = result.reason
        change, caption = result.of_task("change"), result.of_task("caption")
        self.unread += change is not None and change.value is None
        if change is None or change.value is not True:
            return
        self.changed += 1
        middle = result.chip.footprint.centroid
        said = caption.text if caption else ""
        score = change.score if change.score is not None else 0.0
        self.found(ChangedChip(score, result.chip.chip_id, middle.x, middle.y, said, result.pair))

    def found(self, changed: ChangedChip) -> None:
        """Remember a chip that changed, if few have done so more surely."""
        chips = sorted([*self.most_changed, changed], key=lambda chip: -chip.score)
        self.most_changed = chips[:_MOST_CHANGED]

    @property
    def failed(self) -> int:
        return self.statuses["unreadable"] + self.statuses["error"]

    @property
    def progress(self) -> Progress:
        return Progress(self.chips, self.changed, self.failed, self.chips_per_s, self)

    @property
    def chips_per_s(self) -> float:
        return (self.chips - self.earlier) / self.seconds if self.seconds > 0 else 0.0
