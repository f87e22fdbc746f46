"""JSON lines on disk in groups that count whole or not at all: the file under a journal.

A header, then lines. Those of chips come in groups, whose last line has the key "end"; any other line stands
for itself. What follows the last whole group was being written when the run was stopped, and is cut off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import fsync_folder
from deltavlm.pipeline.sidecar import Sidecar, Ticket, sidecar_path

__all__ = ["PLACING", "Lines", "being_placed", "differences", "open_lines"]

PLACING = "placing"  # the key of a line before outputs beside the first take their names
_TAIL_BYTES = 65_536  # that line is shorter
SYNC_S = 5.0  # at most so many seconds of work are lost where the power fails

Line = dict[str, Any]


@dataclass
class Lines:
    """An open file of lines; a place is where a line begins, in bytes."""

    path: Path
    stream: IO[bytes] = field(repr=False)
    begin: int  # where the header ends
    sidecar: Sidecar | None = None  # where a run keeps masks too
    synced: float = field(default_factory=time.monotonic)

    def keep(self, tickets: Iterable[Ticket | None]) -> None:
        """Write what lines will point to. Raises: WriteError."""
        if self.sidecar is not None:
            self.sidecar.keep(ticket for ticket in tickets if ticket is not None)

    def append(self, group: Iterable[Mapping[str, Any]]) -> list[int]:
        """Write a group at the end; the places of its lines.

        Raises: WriteError; what was there before is whole.
        """
        told = [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in group]
        place = self.stream.seek(0, os.SEEK_END)
        with self._translated():
            self.stream.write(b"".join(told))
            self.stream.flush()
            if time.monotonic() - self.synced > SYNC_S:
                self.sync()
        places = []
        for text in told:
            places.append(place)
            place += len(text)
        return places

    def sync(self) -> None:
        """Make what is written outlast a power cut, what lines point to first. Raises: OSError."""
        if self.sidecar is not None:
            self.sidecar.sync()
        os.fsync(self.stream.fileno())
        self.synced = time.monotonic()

    def begin_placing(self, outputs: Iterable[Path]) -> None:
        """These outputs beside the first are about to take their names. Raises: WriteError."""
        self.append([{PLACING: [str(path.absolute()) for path in outputs]}])
        with self._translated():
            self.sync()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"{self.path}: writing failed ({error.strerror}); make room, and the same command goes on"
            ) from error

    def at(self, place: int) -> Line:
        """The line that begins there."""
        self.stream.seek(place)
        line: Line = json.loads(self.stream.readline())
        return line

    def groups(self) -> Iterator[list[tuple[int, Line]]]:
        """The whole groups, each line with its place; at the end, what follows them is cut off."""
        place = whole = self.stream.seek(self.begin)
        group: list[tuple[int, Line]] = []
        for text in iter(self.stream.readline, b""):
            try:
                line = json.loads(text) if text.endswith(b"\n") else None
                of_a_chip = isinstance(line, dict) and "row" in line
                if not isinstance(line, dict) or (of_a_chip and not {"col", "status"} <= line.keys()):
                    break
                if self.sidecar is not None and not self.sidecar.holds(line):
                    break
            except (ValueError, TypeError):
                break
            group.append((place, line))
            place += len(text)
            if not of_a_chip or "end" in line:
                yield group
                whole, group = place, []
        self.stream.truncate(whole)

    def clear(self) -> None:
        """Only the header stays."""
        self.stream.truncate(self.begin)
        if self.sidecar is not None:
            self.sidecar.clear()

    def unlink(self) -> None:
        """The file goes, and what lies beside it. Raises: OSError."""
        self.path.unlink(missing_ok=True)
        sidecar_path(self.path).unlink(missing_ok=True)


@contextmanager
def open_lines(
    path: Path, header: Mapping[str, Any], *, afresh: bool = False, whatever: str = "-", beside: bool = False
) -> Iterator[Lines]:
    """The lines behind this header, begun `afresh` or gone on with if they are there; keys of the header that
    begin with `whatever` may differ. `beside`: with a sidecar.

    Raises:
        OutputError: the file has another header, or cannot be read or written.
    """
    told = json.loads(json.dumps(header, default=str))  # as it will be read again
    sidecar = None
    try:
        if afresh or not path.exists() or not _whole_header(path):
            sidecar_path(path).unlink(missing_ok=True)
            with path.open("wb") as new:
                new.write(json.dumps(told).encode() + b"\n")
                new.flush()
                os.fsync(new.fileno())
            fsync_folder(path.parent)
        stream = path.open("rb+")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another output") from error
    try:
        try:
            known = json.loads(stream.readline())
        except ValueError:
            known = {}
        differs = sorted(key for key in differences(known, told) if not key.startswith(whatever))
        if differs:
            raise OutputError(
                f"{path}: is of a run with other settings ({', '.join(differs[:3])}); --no-resume begins "
                "anew, or choose another output"
            )
        if beside:
            sidecar = _opened(sidecar_path(path))
        yield Lines(path, stream, stream.tell(), sidecar)
    finally:
        for one in (stream, sidecar):
            with suppress(OSError):  # what a full disk did not take is told already
                if one is not None:
                    one.close()


def _opened(path: Path) -> Sidecar:
    """Raises: OutputError."""
    try:
        path.touch()
        return Sidecar(path, path.open("rb+"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another output") from error


def being_placed(path: Path) -> set[str]:
    """The outputs beside the first that a run has begun to give their names, and was killed then."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            last = json.loads(stream.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return set()
    return {*last[PLACING]} if isinstance(last, dict) and PLACING in last else set()


def _whole_header(path: Path) -> bool:
    """A run that was stopped while it wrote its first line has found nothing yet."""
    with path.open("rb") as stream:
        return stream.readline().endswith(b"\n")


def differences(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """The keys at which two JSON values differ, such as `model.fingerprint`."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other}:
            yield from differences(
                one.get(key), other.get(key), f"{at}.{key}".removeprefix(".settings").strip(".")
            )
    elif one != other:
        yield at or "format"
