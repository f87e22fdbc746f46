"""What a run has found so far, on disk, so that it can be stopped anywhere and gone on with.

A header, then a line for each chip, in groups: the batches of the model. A group that was being written when
the run was stopped is dropped (`lines.py`). Groups are cut from the order of the chips alone: a run that is
gone on with asks the same batches as an unbroken one, and says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.model.interface import Reply
from deltavlm.pipeline.answers import read_answer
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.lines import PLACING, Lines, open_lines
from deltavlm.pipeline.sidecar import Ticket
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "FAILED",
    "FINISHED",
    "VERSION",
    "Journal",
    "Key",
    "chip_line",
    "chip_result",
    "journal_path",
    "open_journal",
]

FAILED = ("unreadable", "error")
FINISHED = {"finished": True}  # the line of a run whose output is there
VERSION = 1

Key = tuple[int, int]  # row and column of a chip in the grid


@dataclass
class Journal:
    """The results of chips by their place in the grid; of two lines for one chip the later counts."""

    lines: Lines
    specs: Sequence[QuestionSpec]
    grid: ChipGrid
    places: dict[Key, int] = field(default_factory=dict)  # where the line of a chip begins
    failed: set[Key] = field(default_factory=set)
    limit: int | None = None  # only the first chips of the grid are asked
    retry: bool = False  # whether chips that failed are asked again
    finished: bool = False  # whether everything was asked, and the output written
    batch_size: int | None = None  # what the last group was asked with

    def __len__(self) -> int:
        return len(self.places)

    @property
    def path(self) -> Path:
        return self.lines.path

    def earlier(self) -> Iterator[ChipResult]:
        """What need not be asked again, in the order of the grid."""
        return (result for result in self.results() if self.known(result.chip))

    def known(self, chip: Chip) -> bool:
        """Whether the chip need not be asked again."""
        key = (chip.row, chip.col)
        return key in self.places and not (self.retry and key in self.failed)

    def finish(self) -> None:
        """The output is there: the journal goes, or stays for those that failed. Raises: OSError."""
        if self.failed:
            self.lines.append([FINISHED])
        else:
            self.lines.unlink()

    def add(self, results: Sequence[ChipResult], batch_size: int) -> None:
        """A whole group. Raises: WriteError; what was there before is whole."""
        self.lines.keep(ticket for result in results for ticket in (result.mask, result.holes))
        group = [chip_line(result) for result in results]
        group[-1]["end"] = batch_size
        for line, place in zip(group, self.lines.append(group), strict=True):
            self._know(line, place)
        self.batch_size = batch_size

    def results(self) -> Iterator[ChipResult]:
        """What is known, in the order of the grid."""
        for chip in islice(self.grid, self.limit):
            result = self.result(chip)
            if result is not None:
                yield result

    def result(self, chip: Chip) -> ChipResult | None:
        """What is known of a chip, if it is not behind the limit."""
        place = self.places.get((chip.row, chip.col))
        if self.limit is not None and (chip.row, chip.col) not in self._first:
            return None
        return None if place is None else chip_result(self.lines.at(place), self.grid, self.specs)

    @cached_property
    def _first(self) -> set[Key]:
        return {(chip.row, chip.col) for chip in islice(self.grid, self.limit)}

    def read(self) -> None:
        """Take in what the file holds, up to the last whole group; the rest is cut off."""
        for group in self.lines.groups():
            for place, line in group:
                if line == FINISHED:
                    self.finished = True
                elif PLACING not in line:
                    self._know(line, place)
                    self.batch_size = line.get("end", self.batch_size)

    def _know(self, line: Mapping[str, Any], place: int) -> None:
        key = (line["row"], line["col"])
        self.places[key] = place
        (self.failed.add if line["status"] in FAILED else self.failed.discard)(key)


def chip_line(result: ChipResult) -> dict[str, Any]:
    """A result as plain values, ready for JSON."""
    more: dict[str, Any] = {"picture": result.picture} if result.picture else {}
    for name, ticket in (("mask", result.mask), ("holes", result.holes)):
        if ticket is not None and ticket.place is not None:
            more[name] = ticket.place
    return more | {
        "chip_id": result.chip.chip_id,
        "row": result.chip.row,
        "col": result.chip.col,
        "status": result.status,
        "valid_fraction": result.valid_fraction,
        "reason": result.reason,
        "answers": {name: [answer.text, answer.score] for name, answer in result.answers.items()},
    }


def chip_result(
    line: Mapping[str, Any], grid: ChipGrid, specs: Sequence[QuestionSpec], pair: str = ""
) -> ChipResult:
    """The result that `chip_line` has made a line of."""
    by_name = {spec.name: spec for spec in specs}
    return ChipResult(
        grid[line["row"], line["col"]],
        line["status"],
        line["valid_fraction"],
        {
            name: read_answer(by_name[name], Reply(text, float("nan") if score is None else score))
            for name, (text, score) in line["answers"].items()
        },
        line["reason"],
        pair,
        line.get("picture", ""),
        *(Ticket(place=tuple(line[name])) if name in line else None for name in ("mask", "holes")),
    )


def journal_path(output: Path) -> Path:
    """Beside the output: `out.gpkg` -> `out.gpkg.journal.jsonl`."""
    return output.with_name(output.name + ".journal.jsonl")


@contextmanager
def open_journal(
    path: Path,
    settings: Mapping[str, Any],
    specs: Sequence[QuestionSpec],
    grid: ChipGrid,
    *,
    afresh: bool = False,
    retry: bool = False,
    limit: int | None = None,
    masks: bool = False,
) -> Iterator[Journal]:
    """The journal of a run with these settings, gone on with if it is there, or begun `afresh`.

    That of a finished run is begun afresh too, unless the chips that failed in it are to be tried again;
    then the files may have changed, and what was answered stays.

    `masks`: keep what chips have of them, beside it.

    Raises:
        OutputError: it is of a run with other settings, or cannot be read or written.
    """
    header = {"deltavlm_journal": VERSION, "settings": settings, "questions": [asdict(one) for one in specs]}
    whatever = "files" if retry else "-"  # a file that was cut off may have been copied again
    with open_lines(path, header, afresh=afresh, whatever=whatever, beside=masks) as lines:
        journal = Journal(lines, specs, grid, limit=limit, retry=retry)
        journal.read()
        if journal.finished and not retry:
            lines.clear()
            journal = Journal(lines, specs, grid, limit=limit)
        try:
            yield journal
        finally:
            if not journal.places:
                lines.unlink()
