"""What a run has found so far, on disk, so that it can be stopped anywhere and gone on with.

A header, then a line for each chip. Chips come in groups, the batches of the model; the last line of a group
says so. What follows the last whole group was being written when the run was stopped, and is dropped. Groups
are cut from the order of the chips alone: a run that is gone on with asks the same batches as an unbroken
one, and says the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from deltavlm.errors import OutputError, WriteError
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.model.interface import Reply
from deltavlm.pipeline.answers import read_answer
from deltavlm.pipeline.layers import ChipResult
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["FAILED", "Journal", "journal_path", "open_journal"]

FAILED = ("unreadable", "error")
SYNC_S = 5.0  # at most so many seconds of work are lost where the power fails
VERSION = 1

Key = tuple[int, int]  # row and column of a chip in the grid


@dataclass
class Journal:
    """The results of chips by their place in the grid; of two lines for one chip the later counts."""

    path: Path
    specs: Sequence[QuestionSpec]
    grid: ChipGrid
    stream: IO[bytes] = field(repr=False)
    places: dict[Key, int] = field(default_factory=dict)  # where the line of a chip begins
    failed: set[Key] = field(default_factory=set)
    limit: int | None = None  # only the first chips of the grid are asked
    retry: bool = False  # whether chips that failed are asked again
    finished: bool = False  # whether everything was asked, and the output written
    batch_size: int | None = None  # what the last group was asked with
    synced: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(self.places)

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
            self.stream.seek(0, os.SEEK_END)
            self.stream.write(b'{"finished": true}\n')
            self.stream.flush()
        else:
            self.path.unlink()

    def add(self, results: Sequence[ChipResult], batch_size: int) -> None:
        """A whole group. Raises: WriteError; what was there before is whole."""
        lines = [_line(result) for result in results]
        lines[-1]["end"] = batch_size
        told = [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines]
        start = self.stream.seek(0, os.SEEK_END)
        try:
            self.stream.write(b"".join(told))
            self.stream.flush()
            if time.monotonic() - self.synced > SYNC_S:
                os.fsync(self.stream.fileno())
                self.synced = time.monotonic()
        except OSError as error:
            raise WriteError(
                f"{self.path}: writing failed ({error.strerror}); make room, and the same command goes on"
            ) from error
        for result, text in zip(results, told, strict=True):
            self._know((result.chip.row, result.chip.col), start, result.status)
            start += len(text)
        self.batch_size = batch_size

    def results(self) -> Iterator[ChipResult]:
        """What is known, in the order of the grid."""
        for chip in islice(self.grid, self.limit):
            place = self.places.get((chip.row, chip.col))
            if place is not None:
                self.stream.seek(place)
                yield self._result(json.loads(self.stream.readline()))

    def _result(self, line: Mapping[str, Any]) -> ChipResult:
        specs = {spec.name: spec for spec in self.specs}
        return ChipResult(
            self.grid[line["row"], line["col"]],
            line["status"],
            line["valid_fraction"],
            {
                name: read_answer(specs[name], Reply(text, float("nan") if score is None else score))
                for name, (text, score) in line["answers"].items()
            },
            line["reason"],
        )

    def _know(self, key: Key, place: int, status: str) -> None:
        self.places[key] = place
        (self.failed.add if status in FAILED else self.failed.discard)(key)

    def _read(self) -> None:
        """What the file holds, up to the last whole group; the rest is cut off."""
        place = self.stream.seek(0)
        place += len(self.stream.readline())  # the header
        whole, group = place, []
        for text in iter(self.stream.readline, b""):
            try:
                line: Any = json.loads(text) if text.endswith(b"\n") else None
                if line == {"finished": True}:
                    self.finished = True
                    place += len(text)
                    whole = place
                    continue
                key, status = (line["row"], line["col"]), line["status"]
            except (ValueError, TypeError, KeyError):
                break
            group.append((key, place, status))
            place += len(text)
            if "end" in line:
                for one in group:
                    self._know(*one)
                whole, group, self.batch_size = place, [], line["end"]
        self.stream.truncate(whole)


def _line(result: ChipResult) -> dict[str, Any]:
    return {
        "chip_id": result.chip.chip_id,
        "row": result.chip.row,
        "col": result.chip.col,
        "status": result.status,
        "valid_fraction": result.valid_fraction,
        "reason": result.reason,
        "answers": {name: [answer.text, answer.score] for name, answer in result.answers.items()},
    }


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
) -> Iterator[Journal]:
    """The journal of a run with these settings, gone on with if it is there, or begun `afresh`.

    That of a finished run is begun afresh too, unless the chips that failed in it are to be tried again;
    then the files may have changed, and what was answered stays.

    Raises:
        OutputError: it is of a run with other settings, or cannot be read or written.
    """
    header = {"deltavlm_journal": VERSION, "settings": settings, "questions": [asdict(one) for one in specs]}
    told = json.loads(json.dumps(header, default=str))  # as it will be read again
    try:
        if afresh or not path.exists() or not _whole_header(path):
            with path.open("wb") as new:
                new.write(json.dumps(told).encode() + b"\n")
                os.fsync(new.fileno())
        stream = path.open("rb+")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another output") from error
    with stream:
        try:
            known = json.loads(stream.readline())
        except ValueError:
            known = {}
        differs = sorted(_differences(known, told))
        if retry:  # a file that was cut off may have been copied again
            differs = [key for key in differs if not key.startswith("files")]
        if differs:
            raise OutputError(
                f"{path}: is of a run with other settings ({', '.join(differs[:3])}); --no-resume begins "
                "anew, or choose another output"
            )
        journal = Journal(path, specs, grid, stream, limit=limit, retry=retry)
        end_of_header = stream.tell()
        journal._read()
        if journal.finished and not retry:
            stream.truncate(end_of_header)
            journal = Journal(path, specs, grid, stream, limit=limit)
        try:
            yield journal
        finally:
            if not journal.places:
                path.unlink(missing_ok=True)


def _whole_header(path: Path) -> bool:
    """A run that was stopped while it wrote its first line has found nothing yet."""
    with path.open("rb") as stream:
        return stream.readline().endswith(b"\n")


def _differences(one: Any, other: Any, at: str = "") -> Iterable[str]:
    """The keys at which two JSON values differ, such as `model.fingerprint`."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other}:
            yield from _differences(
                one.get(key), other.get(key), f"{at}.{key}".removeprefix(".settings").strip(".")
            )
    elif one != other:
        yield at or "format"
