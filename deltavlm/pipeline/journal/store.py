"""Journal of a run as a store of its results, from which the run resumes.

A line for each chip, keyed by pair, row and column; batches of the model are transactions (`file`).
When a pair is opened, a line records what it is; a pair that cannot be opened has a line with the reason. A
pair with all of its chips is not opened again. Batches depend on the order of the chips alone, so a resumed
run asks the same batches as an uninterrupted one, and its output has the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deltavlm.config import from_mapping
from deltavlm.errors import ConfigError
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.geo.pair_reader import MAX_CHIPS, PairReader
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.file import (
    COMMIT,
    JournalFile,
    check_journal_header,
    first_line,
    last_line,
    open_journal_file,
)
from deltavlm.pipeline.journal.lines import check_chip_line, line_of, result_of
from deltavlm.pipeline.journal.pairs import ChipKey, PairFailure, PairState, address_of, refuse_another
from deltavlm.pipeline.pair_record import PairIdentity, PairRecord
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.provenance import job_settings
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.schema import ANALYZED_STATUSES, FAILED_STATUSES

__all__ = ["Journal", "check_journal", "check_journal_pair", "open_journal"]

logger = logging.getLogger(__name__)

FINISHED = {"finished": True}  # line of a run whose output has been written

_MAX_REQUESTS = 16  # at a time


@dataclass
class Journal:
    """Results of a job on disk. A later line of a chip or pair replaces an earlier one."""

    file: JournalFile
    job: AnalyzeJob
    states: dict[str, PairState] = field(default_factory=dict)  # by the pair's id
    failures: dict[str, PairFailure] = field(default_factory=dict)  # pairs that did not open
    finished: bool = False  # True once the output has been written
    batch_size: int | None = None  # of the last batch

    @property
    def retries(self) -> bool:
        """True if failed pairs and chips are tried again."""
        return self.job.output.retry_failed

    def __len__(self) -> int:
        """Number of chips with a result."""
        return sum(len(state.offsets) for state in self.states.values())

    @property
    def completed_chips(self) -> int:
        """Number of chips with a result that is kept."""
        failed = sum(len(state.failed) for state in self.states.values()) if self.retries else 0
        return len(self) - failed

    def completed(self) -> Iterator[ChipResult]:
        """Results that are kept, in the order of the pairs and their chip grids."""
        for result in self.results():
            if self._is_done(result.pair, (result.chip.row, result.chip.col)):
                yield result

    def record_of(self, pair: Pair) -> PairRecord | str | None:
        """Record of a pair whose chips are complete, the reason why it failed in an earlier run, or None."""
        if self.job.one_pair_per_output:
            return None  # it must open, also when its chips are complete
        state = self.states.get(pair.id)
        if state is None:
            return None if self.retries or pair.id not in self.failures else self.failures[pair.id].reason
        is_complete = len(state.offsets) >= state.record.chips and not (self.retries and state.failed)
        return state.record if is_complete else None

    def is_done(self, pair: Pair, chip: Chip) -> bool:
        """True if the chip need not be asked again."""
        return self._is_done(pair.id, (chip.row, chip.col))

    def _is_done(self, pair: str, key: ChipKey) -> bool:
        state = self.states.get(pair)
        return state is not None and key in state.offsets and not (self.retries and key in state.failed)

    def _address_of(self, pair: Pair) -> str:
        return address_of(pair, self.job.read, self.file.key)

    def begin_pair(self, pair: Pair, record: PairRecord) -> None:
        """Record an opened pair. Raises: OutputError where an earlier run found it to be another."""
        state, address = self.states.get(pair.id), self._address_of(pair)
        if state is None:
            self.file.append([{"pair": pair.id, "record": asdict(record), "address": address}])
            self._begin(pair.id, record, address)
        else:
            refuse_another(self.file.path, self.job, pair, (state.record, state.address), (record, address))

    def fail_pair(self, pair: Pair, reason: str) -> None:
        """Record that the pair cannot be opened, or was written over while it was read; its results are
        dropped. A journal of one pair then has nothing to keep."""
        if self.job.one_pair_per_output:
            self.states.pop(pair.id, None)
            return
        failure = PairFailure(reason, PairIdentity.of(pair, self.job.read), self._address_of(pair))
        line = {"failed": reason, "identity": asdict(failure.identity), "address": failure.address}
        self.file.append([{"pair": pair.id, **line}])
        self._fail(pair.id, failure)

    def add(self, results: Sequence[ChipResult], batch_size: int) -> None:
        """Append a batch of results, of one pair or several. Raises: WriteError."""
        blobs = [blob for result in results for blob in (result.mask, result.valid) if blob is not None]
        self.file.write_blobs(blobs)  # first: lines hold their addresses
        lines = [line_of(result) for result in results]
        lines[-1]["end"] = batch_size
        for line, offset in zip(lines, self.file.append(lines), strict=True):
            self._index(line, offset)
        self.batch_size = batch_size

    def results(self) -> Iterator[ChipResult]:
        """All results up to the limit, in the order of the pairs and their chip grids.

        `ground_share` is that among these results: ground belongs to answered chips where there are some.
        """
        remaining = self.job.options.limit
        for pair in self.job.pairs.pairs:
            state = self.states.get(pair.id)
            if state is not None:
                keys = sorted(state.offsets)[:remaining]
                remaining = None if remaining is None else remaining - len(keys)
                yield from self._results_of(state, keys)

    def _results_of(self, state: PairState, keys: Sequence[ChipKey]) -> Iterator[ChipResult]:
        grid = self._grid_of(state)
        shares = None
        if len(keys) < state.record.chips or state.unanswered:
            present = np.zeros((grid.rows, grid.cols), bool)
            present[*np.array(keys, int).reshape(-1, 2).T] = True
            answered = present.copy()
            answered[*np.array([*state.unanswered], int).reshape(-1, 2).T] = False
            shares = grid.shares_among(present, answered)
        for key in keys:
            result = self._result_at(state.offsets[key], grid)
            if shares is not None:
                result = replace(result, chip=replace(result.chip, ground_share=float(shares[key])))
            yield result

    def lookup(self, pair: Pair) -> Callable[[Chip], ChipResult | None]:
        """Function from a chip of an opened pair to its result; None beyond the limit."""
        state = self.states[pair.id]
        offsets, limit = state.offsets, self.job.options.limit
        if limit is not None:
            before = sum(len(self.states[each].offsets) for each in self._opened_before(pair))
            offsets = {key: offsets[key] for key in sorted(offsets)[: max(0, limit - before)]}
        grid = self._grid_of(state)

        def result(chip: Chip) -> ChipResult | None:
            offset = offsets.get((chip.row, chip.col))
            return None if offset is None else self._result_at(offset, grid)

        return result

    def _opened_before(self, pair: Pair) -> Iterator[str]:
        for each in self.job.pairs.pairs:
            if each.id == pair.id:
                return
            if each.id in self.states:
                yield each.id

    def _grid_of(self, state: PairState) -> ChipGrid:
        return state.record.chip_grid(*self.job.options.grid)

    def _result_at(self, offset: int, grid: ChipGrid) -> ChipResult:
        return result_of(self.file.read_at(offset), grid, self.job)

    def finish(self) -> None:
        """Remove the journal once the output is written, or keep it for what failed. Raises: OSError."""
        if self.failures or any(state.failed for state in self.states.values()):
            self.file.append([FINISHED])
        else:
            self.file.unlink()

    def read(self) -> None:
        """Read the file up to the last complete transaction.

        A pair of a list whose files have changed since starts over; so does a pair that failed and changed.

        Raises: OutputError for a line that no run has written.
        """
        for group in self.file.transactions():
            for offset, line in group:
                try:
                    self._read_line(line, offset)
                except (ValueError, ConfigError) as error:
                    raise self.file.refusal(offset, str(error)) from None
        listed = {pair.id: pair for pair in self.job.pairs.pairs}
        self.states = {name: state for name, state in self.states.items() if name in listed}
        self.failures = {name: failure for name, failure in self.failures.items() if name in listed}
        known = [(name, each.identity, each.address) for name, each in self.failures.items()]
        if not self.job.one_pair_per_output:  # else `begin_pair` refuses a pair that has changed
            known += [(name, each.record.identity, each.address) for name, each in self.states.items()]
        with ThreadPoolExecutor(_MAX_REQUESTS) as pool:  # a remote image costs a request
            same = pool.map(lambda each: self._is_same(listed[each[0]], *each[1:]), known)
            changed = [name for (name, *_), is_same in zip(known, same, strict=True) if not is_same]
        for name in changed:
            self.failures.pop(name, None)
            if self.states.pop(name, None) is not None:
                logger.warning(
                    "pair %s: its files have changed since the interrupted run; it starts over", name
                )

    def _read_line(self, line: Mapping[str, Any], offset: int) -> None:
        """Raises: ValueError or ConfigError for a line that no run has written."""
        if line == FINISHED:
            self.finished = True
        elif COMMIT in line:
            pass
        elif "row" in line:
            check_chip_line(line, [spec.name for spec in self.job.questions])
            self._index(line, offset)
            self.batch_size = line.get("end", self.batch_size)
        elif not all(isinstance(line.get(key), str) for key in ("pair", "address")):
            raise ValueError("neither a chip nor a pair")
        elif "record" in line:
            record = PairRecord.from_dict(line["record"])
            grid = record.chip_grid(*self.job.options.grid)
            if record.chips > grid.rows * grid.cols or grid.rows * grid.cols > MAX_CHIPS:
                raise ValueError(f"{record.chips} chips of {grid.rows} x {grid.cols}")
            self._begin(line["pair"], record, line["address"])
        elif isinstance(line.get("failed"), str):
            identity = from_mapping(PairIdentity, line.get("identity"), "identity")
            self._fail(line["pair"], PairFailure(line["failed"], identity, line["address"]))
        else:
            raise ValueError("neither a chip nor a pair")

    def _is_same(self, pair: Pair, identity: PairIdentity, address: str) -> bool:
        return address == self._address_of(pair) and identity.matches(pair, self.job.read)

    def _begin(self, pair: str, record: PairRecord, address: str) -> None:
        self.failures.pop(pair, None)
        self.states[pair] = PairState(record, address)

    def _fail(self, pair: str, failure: PairFailure) -> None:
        self.states.pop(pair, None)
        self.failures[pair] = failure

    def _index(self, line: Mapping[str, Any], offset: int) -> None:
        state, key = self.states.get(line["pair"]), (line["row"], line["col"])
        if state is None:
            raise ValueError(f"a chip of pair {line['pair']!r}, which was not opened")
        grid = self._grid_of(state)
        if key[0] >= grid.rows or key[1] >= grid.cols:
            raise ValueError(f"chip {key} of {grid.rows} x {grid.cols}")
        state.offsets[key] = offset
        status = line["status"]
        (state.failed.add if status in FAILED_STATUSES else state.failed.discard)(key)
        (state.unanswered.discard if status in ANALYZED_STATUSES else state.unanswered.add)(key)


def _questions(job: AnalyzeJob) -> dict[str, Any]:
    return {"questions": [asdict(spec) for spec in job.questions]}


def check_journal(path: Path, job: AnalyzeJob) -> None:
    """Check, before the model is loaded, that a journal at `path` is of this job. Raises: OutputError."""
    check_journal_header(path, {"settings": job_settings(job), **_questions(job)}, ignored=("model",))


def check_journal_pair(path: Path, job: AnalyzeJob, reader: PairReader) -> None:
    """Check, before the model is loaded, that a journal at `path` is of this opened pair, the only one of the
    job. Raises: OutputError."""
    (pair,), (key, line) = job.pairs.pairs, first_line(path)
    is_begun = line.get("pair") == pair.id and {"record", "address"} <= line.keys()
    if not job.output.resume or not is_begun or (last_line(path) == FINISHED and not job.output.retry_failed):
        return
    with suppress(ConfigError):  # of a damaged line, which is reported when the journal is opened
        earlier = PairRecord.from_dict(line["record"]), line["address"]
        now = PairRecord.of(pair, reader, reader.chips(*job.options.grid)), address_of(pair, job.read, key)
        refuse_another(path, job, pair, earlier, now)


@contextmanager
def open_journal(path: Path, job: AnalyzeJob, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """Journal of a job at `path`: resumed if it is there and `job.output.resume`, else started anew.

    The journal of a finished run is started anew too, unless what failed in it is to be tried again. Pairs
    that are no longer listed are dropped. `settings` is all that answers depend on apart from the pairs and
    questions. A journal without results is removed at the end.

    Raises: OutputError where it is of a run with other settings, or cannot be read or written.
    """
    header = {"settings": settings, **_questions(job)}
    fresh, blobs = not job.output.resume, job.options.masks
    with open_journal_file(path, header, fresh=fresh, blobs=blobs) as file:
        journal = Journal(file, job)
        journal.read()
        if journal.finished and not journal.retries:
            file.clear()
            journal = Journal(file, job)
        try:
            yield journal
        finally:
            if not len(journal) and not journal.failures:
                file.unlink()
