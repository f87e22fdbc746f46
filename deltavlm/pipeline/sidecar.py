"""What is too large for a line of a journal: bytes in a file beside it, which the lines point into.

Bytes are written before the line that points to them, and synced before it is. A line says how long its bytes
are and what they sum to: one that points to bytes that are not there, or others, was written when the power
failed, and does not count.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from deltavlm.errors import WriteError

__all__ = ["Sidecar", "Ticket", "sidecar_path"]

KEYS = ("mask", "holes")  # of a line, whose values are places

Place = tuple[int, int, int]  # where the bytes begin, how many there are, their crc32


@dataclass(eq=False, slots=True)
class Ticket:
    """Bytes of a chip: themselves until they are written, then their place. Chips that show the same share
    one."""

    data: bytes | None = None
    place: Place | None = None


@dataclass
class Sidecar:
    """The open file."""

    path: Path
    stream: IO[bytes] = field(repr=False)

    def keep(self, tickets: Iterable[Ticket]) -> None:
        """Write what is not written yet at the end. Raises: WriteError."""
        place = self.stream.seek(0, os.SEEK_END)
        try:
            for ticket in tickets:
                if ticket.data is not None and ticket.place is None:
                    self.stream.write(ticket.data)
                    ticket.place = (place, len(ticket.data), zlib.crc32(ticket.data))
                    place += len(ticket.data)
                    ticket.data = None
            self.stream.flush()
        except OSError as error:
            raise WriteError(
                f"{self.path}: writing failed ({error.strerror}); make room, and the same command goes on"
            ) from error

    def at(self, ticket: Ticket) -> bytes:
        """The bytes of a ticket."""
        if ticket.data is not None:
            return ticket.data
        assert ticket.place is not None
        self.stream.seek(ticket.place[0])
        return self.stream.read(ticket.place[1])

    def holds(self, line: Mapping[str, Any]) -> bool:
        """Whether what a line points to is there, as it was."""
        for key in KEYS:
            if key in line:
                place = tuple(line[key])
                found = self.at(Ticket(place=place))
                if (len(found), zlib.crc32(found)) != place[1:]:
                    return False
        return True

    def sync(self) -> None:
        """Make what is written outlast a power cut. Raises: OSError."""
        os.fsync(self.stream.fileno())

    def clear(self) -> None:
        """Nothing stays."""
        self.stream.truncate(0)

    def close(self) -> None:
        self.stream.close()


def sidecar_path(journal: Path) -> Path:
    """Beside the journal: `out.gpkg.journal.jsonl` -> `out.gpkg.journal.masks`."""
    return journal.with_suffix(".masks")
