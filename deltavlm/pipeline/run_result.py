"""Result of a run: counts, the most changed chips, failures, and the files written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rasterio.crs import CRS

from deltavlm.errors import PartialFailure
from deltavlm.geo.geobox import lonlat_of
from deltavlm.messages import pluralize
from deltavlm.model.interface import ModelFacts
from deltavlm.pipeline.pair_record import PairResult
from deltavlm.pipeline.summary import ChangedChip, Summary
from deltavlm.pipeline.totals import Totals

__all__ = ["RunResult"]


@dataclass(repr=False)
class RunResult:
    """Result of a run, updated while it goes on."""

    is_single: bool = False  # True for a run over one pair that is not from a list
    pairs: dict[str, PairResult] = field(default_factory=dict)  # by id, in order; "" for a single pair
    summary: Summary = field(default_factory=Summary)
    totals: Totals = field(default_factory=Totals)  # ground, buildings and roads of what was written
    model: ModelFacts | None = None  # None where nothing was left to ask
    output: Path | None = None  # None: standard output
    files: dict[str, Path] = field(default_factory=dict)  # written next to it: mask, probability, polygons
    outputs_skipped: int = 0  # outputs of a folder that were complete already
    total: int | None = None  # of what progress counts: chips of a single pair, or pairs of a list
    load_seconds: float = 0.0
    warned: set[str] = field(default_factory=set, repr=False)  # kinds of warnings logged already

    def __repr__(self) -> str:
        counts = f"{pluralize(self.chips, 'chip')}, {self.changed} changed, {self.failed} failed"
        return f"<RunResult {counts}, output {self.output or 'on stdout'}>"

    @property
    def chips(self) -> int:
        """Number of chips, those of an earlier run included."""
        return self.summary.chips

    @property
    def changed(self) -> int:
        """Number of chips that the model calls changed."""
        return self.summary.changed

    @property
    def failed(self) -> int:
        """Number of chips that could not be read or answered."""
        return self.summary.failed

    @property
    def polygons(self) -> int:
        """Number of polygons of change, if they were requested."""
        return self.summary.polygons

    @property
    def failures(self) -> list[PairResult]:
        """Pairs that failed, or some of whose chips did."""
        return [pair for pair in self.pairs.values() if pair.record is None or pair.failed]

    @property
    def most_changed(self) -> list[ChangedChip]:
        """Ten changed chips with longitude and latitude: first those without conflicts, by falling score."""
        return [self._located(chip) for chip in self.summary.most_changed]

    def _located(self, chip: ChangedChip) -> ChangedChip:
        record = self.pairs[chip.pair].record
        crs = CRS.from_wkt(record.crs) if record is not None and record.crs else None
        return replace(chip, lonlat=lonlat_of(np.array([[chip.x, chip.y]]), crs)[0])

    def raise_if_partial(self, retry_hint: str = "") -> None:
        """Raise if a pair or chip failed; `retry_hint` ends the message.

        Raises: PartialFailure.
        """
        summary, failures = self.summary, self.failures
        if not failures:
            return
        first = f"{failures[0].pair.id}: {failures[0].failure}"
        if self.is_single:
            counts, first = (
                [f"{summary.failed} of {pluralize(summary.chips, 'chip')} failed"],
                summary.first_failure,
            )
        else:
            unopened = sum(pair.record is None for pair in failures)
            counts = []
            if unopened:
                counts.append(f"{unopened} of {pluralize(len(self.pairs), 'pair')} failed")
            if summary.failed:
                counts.append(f"{summary.failed} of {pluralize(summary.chips, 'chip')} failed")
        raise PartialFailure(f"{' and '.join(counts)}, the first because: {first}{retry_hint}")
