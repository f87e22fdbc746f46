"""The journal of a run over many pairs: as that of one pair, and its lines know their pair.

When a pair is begun, a line says what it is; chips that stand before that line are not of it any more. A pair
that cannot be opened has a line with the reason. A pair whose chips are all there is not opened again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from deltavlm.errors import OutputError
from deltavlm.geo.grid import Chip
from deltavlm.pipeline.journal import FAILED, FINISHED, VERSION, Key, chip_line, chip_result
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.lines import PLACING, Lines, differences, open_lines
from deltavlm.pipeline.many import PairMark, PairRecord
from deltavlm.pipeline.pairs import Pair
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["PairJournal", "open_pair_journal"]

logger = logging.getLogger(__name__)


@dataclass
class _Kept:
    """What the file holds of a pair that could be opened."""

    record: PairRecord
    places: dict[Key, int] = field(default_factory=dict)  # where the line of a chip begins
    failed: set[Key] = field(default_factory=set)


@dataclass
class PairJournal:
    """The results of the pairs of a list; of two lines for one chip the later counts."""

    lines: Lines
    specs: Sequence[QuestionSpec]
    pairs: Sequence[Pair]
    cut: tuple[int, int]  # side and overlap of chips, px
    limit: int | None = None  # only the first chips of the run are asked
    retry: bool = False  # whether pairs and chips that failed are tried again
    kept: dict[str, _Kept] = field(default_factory=dict)
    refusals: dict[str, tuple[str, PairMark]] = field(default_factory=dict)  # pairs that could not be opened
    finished: bool = False  # whether everything was asked, and the output written
    batch_size: int | None = None  # what the last group was asked with

    def __len__(self) -> int:
        return sum(len(kept.places) for kept in self.kept.values())

    def settled(self, pair: Pair) -> str | PairRecord | None:
        """Of a pair that need not be opened: its record, or why it failed in an earlier run; else None."""
        kept = self.kept.get(pair.id)
        if kept is None:
            return None if self.retry or pair.id not in self.refusals else self.refusals[pair.id][0]
        whole = len(kept.places) >= kept.record.chips and not (self.retry and kept.failed)
        return kept.record if whole else None

    def opened(self, pair: Pair, record: PairRecord) -> None:
        """The pair is begun, or gone on with.

        Raises: OutputError where it was something else when it was begun.
        """
        kept = self.kept.get(pair.id)
        if kept is None:
            self.lines.append([{"pair": pair.id, "record": asdict(record)}])
            self._begin(pair.id, record)
            return
        known, found = (
            {**asdict(one), "notes": None, "inputs": json.loads(one.inputs)} for one in (kept.record, record)
        )
        differs = sorted(differences(known, found))
        if differs:
            raise OutputError(
                f"{self.lines.path}: holds a part of pair {pair.id!r} with another {', '.join(differs[:3])}; "
                "--no-resume begins anew, or choose another output"
            )

    def refused(self, pair: Pair, reason: str) -> None:
        """The pair cannot be opened; what was known of it is not of it any more."""
        mark = PairMark.of(pair)
        self.lines.append([{"pair": pair.id, "failed": reason, "mark": asdict(mark)}])
        self._refuse(pair.id, reason, mark)

    def knows(self, pair: Pair, chip: Chip) -> bool:
        """Whether the chip need not be asked again."""
        return self._is_done(self.kept.get(pair.id), (chip.row, chip.col))

    def _is_done(self, kept: _Kept | None, key: Key) -> bool:
        return kept is not None and key in kept.places and not (self.retry and key in kept.failed)

    def add(self, results: Sequence[ChipResult], batch_size: int) -> None:
        """A whole group, of one pair or several. Raises: WriteError; what was there before is whole."""
        self.lines.keep(ticket for result in results for ticket in (result.mask, result.holes))
        group = [{"pair": result.pair, **chip_line(result)} for result in results]
        group[-1]["end"] = batch_size
        for line, place in zip(group, self.lines.append(group), strict=True):
            self._know(line, place)
        self.batch_size = batch_size

    def earlier(self) -> Iterator[ChipResult]:
        """What need not be asked again, in the order of the list and of the grids."""
        for result in self.results():
            if self._is_done(self.kept[result.pair], (result.chip.row, result.chip.col)):
                yield result

    def results(self) -> Iterator[ChipResult]:
        """What is known, in the order of the list and of the grids."""
        return islice((result for pair in self.pairs for result in self._of(pair)), self.limit)

    def _of(self, pair: Pair) -> Iterator[ChipResult]:
        kept = self.kept.get(pair.id)
        if kept is not None:
            grid = kept.record.grid(*self.cut)
            for key in sorted(kept.places):
                yield chip_result(self.lines.at(kept.places[key]), grid, self.specs, pair.id)

    def results_of(self, pair: Pair) -> Callable[[Chip], ChipResult | None]:
        """What is known of the chips of a pair that was opened, those behind the limit left out."""
        kept = self.kept[pair.id]
        places = kept.places
        if self.limit is not None:
            before = sum(len(self.kept[one.id].places) for one in self._listed_before(pair))
            places = {key: places[key] for key in sorted(places)[: max(0, self.limit - before)]}
        grid = kept.record.grid(*self.cut)

        def result(chip: Chip) -> ChipResult | None:
            place = places.get((chip.row, chip.col))
            return None if place is None else chip_result(self.lines.at(place), grid, self.specs, pair.id)

        return result

    def _listed_before(self, pair: Pair) -> Iterator[Pair]:
        for one in self.pairs:
            if one.id == pair.id:
                return
            if one.id in self.kept:
                yield one

    def finish(self) -> None:
        """The output is there: the journal goes, or stays for what failed. Raises: OSError."""
        if self.refusals or any(kept.failed for kept in self.kept.values()):
            self.lines.append([FINISHED])
        else:
            self.lines.unlink()

    def read(self) -> None:
        """Take in what the file holds of the listed pairs, up to the last whole group; the rest is cut off.

        A pair whose files or line of the list have changed since is begun anew, and tried again if it failed.
        """
        for group in self.lines.groups():
            for place, line in group:
                if line == FINISHED:
                    self.finished = True
                elif PLACING in line:
                    continue
                elif "record" in line:
                    self._begin(line["pair"], PairRecord.read(line["record"]))
                elif "failed" in line:
                    self._refuse(line["pair"], line["failed"], PairMark(**line["mark"]))
                else:
                    self._know(line, place)
                    self.batch_size = line.get("end", self.batch_size)
        listed = {pair.id: pair for pair in self.pairs}
        self.kept = {one: kept for one, kept in self.kept.items() if one in listed}
        self.refusals = {
            one: (reason, mark)
            for one, (reason, mark) in self.refusals.items()
            if one in listed and mark.is_still(listed[one])
        }
        for one in [one for one, kept in self.kept.items() if not kept.record.mark.is_still(listed[one])]:
            logger.warning("pair %s: is not what it was when the run was stopped; it is begun anew", one)
            del self.kept[one]

    def _begin(self, pair: str, record: PairRecord) -> None:
        self.refusals.pop(pair, None)
        self.kept[pair] = _Kept(record)

    def _refuse(self, pair: str, reason: str, mark: PairMark) -> None:
        self.kept.pop(pair, None)
        self.refusals[pair] = (reason, mark)

    def _know(self, line: Mapping[str, Any], place: int) -> None:
        kept, key = self.kept[line["pair"]], (line["row"], line["col"])
        kept.places[key] = place
        (kept.failed.add if line["status"] in FAILED else kept.failed.discard)(key)


@contextmanager
def open_pair_journal(
    path: Path,
    settings: Mapping[str, Any],
    specs: Sequence[QuestionSpec],
    pairs: Sequence[Pair],
    cut: tuple[int, int],
    *,
    afresh: bool = False,
    retry: bool = False,
    limit: int | None = None,
    masks: bool = False,
) -> Iterator[PairJournal]:
    """The journal of a run over these pairs, gone on with if it is there, or begun `afresh`.

    That of a finished run is begun afresh too, unless what failed in it is to be tried again. Pairs that the
    list has lost are left out, new ones are asked. `masks`: keep what chips have of them, beside it.

    Raises:
        OutputError: it is of a run with other settings, or cannot be read or written.
    """
    header = {"deltavlm_journal": VERSION, "settings": settings, "questions": [asdict(one) for one in specs]}
    with open_lines(path, header, afresh=afresh, beside=masks) as lines:
        journal = PairJournal(lines, specs, pairs, cut, limit=limit, retry=retry)
        journal.read()
        if journal.finished and not retry:
            lines.clear()
            journal = PairJournal(lines, specs, pairs, cut, limit=limit)
        try:
            yield journal
        finally:
            if not journal.kept and not journal.refusals:
                lines.unlink()
