"""JSON lines: a file of JSON objects that is appended to, and repaired after a process was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from deltavlm.files.opening import create_file, open_regular, resolve_link

__all__ = ["JsonLines", "parse_json"]


def parse_json(text: str | bytes) -> Any:
    """Value of JSON text. Raises: ValueError, for nesting that is too deep too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@dataclass
class JsonLines:
    """Append-only file of JSON objects, one a line (UTF-8), open for reading and writing in binary mode."""

    path: Path
    stream: IO[bytes] = field(repr=False)

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, fresh: bool = False) -> Iterator[JsonLines]:
        """Open `path` for appending, creating it if missing; `fresh` empties it. A symbolic link is followed.

        An incomplete last line (the process was killed while writing) is removed; a complete JSON object
        that lacks only its newline (an editor removed it) is kept. Raises: OSError.
        """
        target = resolve_link(path)
        with open_regular(target, writable=True) if target.exists() else create_file(target) as stream:
            if fresh:
                stream.truncate(0)
            lines = cls(path, stream)
            lines.repair()
            yield lines

    def append(self, records: Iterable[Mapping[str, Any]], *, sync: bool = True) -> list[int]:
        """Write `records` at the end in one call and return the byte offset of each; `sync` also flushes
        them to disk. Raises: OSError."""
        encoded = [_encode_line(record) for record in records]
        offset = self.stream.seek(0, os.SEEK_END)
        self.stream.write(b"".join(encoded))
        self.stream.flush()
        if sync:
            self.sync()
        offsets = []
        for line in encoded:
            offsets.append(offset)
            offset += len(line)
        return offsets

    def read_at(self, offset: int) -> dict[str, Any]:
        """Record that begins at byte `offset`."""
        self.stream.seek(offset)
        record: dict[str, Any] = json.loads(self.stream.readline())
        return record

    def sync(self) -> None:
        """Flush to disk. Raises: OSError."""
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def repair(self) -> None:
        """Truncate an incomplete last line, or add its missing newline where the JSON is complete."""
        end = start = self.stream.seek(0, os.SEEK_END)
        tail, block = b"", 4096
        while start > 0 and b"\n" not in tail:  # blocks grow, since a line may hold a whole mask
            start, block = max(0, start - block), 2 * block
            self.stream.seek(start)
            tail = self.stream.read(end - start)
        last_line = tail[tail.rfind(b"\n") + 1 :]
        if not last_line:
            return
        try:
            parse_json(last_line)
        except ValueError:
            self.stream.truncate(end - len(last_line))
        else:
            self.stream.seek(0, os.SEEK_END)
            self.stream.write(b"\n")
        self.stream.flush()


def _encode_line(record: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate, as Python has it for a file name that is not UTF-8
        return (json.dumps(record) + "\n").encode()
