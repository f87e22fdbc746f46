"""Interface of a store of results: the journal of an output file, or a stream on standard output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from deltavlm.geo.grid import Chip
from deltavlm.pipeline.pair_record import PairRecord
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.results import ChipResult

__all__ = ["ResultStore"]


class ResultStore(Protocol):
    """Store of the results of a run.

    `is_done` and `record_of` are called by the thread that reads chips, the other methods by the main thread.
    """

    def completed(self) -> Iterator[ChipResult]:
        """Results of an earlier run that are kept, in the order of the pairs and their chip grids."""
        ...

    def record_of(self, pair: Pair) -> PairRecord | str | None:
        """Record of a pair that need not be opened, the reason why it failed in an earlier run, or None."""
        ...

    def is_done(self, pair: Pair, chip: Chip) -> bool:
        """True if an earlier run has a result for this chip that is kept."""
        ...

    def begin_pair(self, pair: Pair, record: PairRecord) -> None:
        """Note that the pair was opened. Raises: OutputError if an earlier run had another pair here."""
        ...

    def fail_pair(self, pair: Pair, reason: str) -> None:
        """Note that the pair cannot be opened."""
        ...

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        """Store a batch of results, which was asked with this batch size. Raises: WriteError."""
        ...
