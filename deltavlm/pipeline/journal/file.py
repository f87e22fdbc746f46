"""Write-ahead log of a run in JSON lines with transactions, and a file of binary blobs next to it.

The first line is a header. Lines of chips come in groups, which are transactions: the last line of a group
has the key "end". Any other line is a transaction of its own. An incomplete group at the end of the file
(the process was killed) is truncated when the file is read.

Blobs (compressed masks) are written and synced before the line that points to them. A line holds offset, size
and CRC-32 of its blobs; one whose blobs are missing or damaged was written while the power failed, and is
truncated too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import JsonLines, create_file, fsync_folder, open_regular, parse_json
from deltavlm.pipeline.journal.blobs import Blob, BlobFile, blob_path
from deltavlm.pipeline.journal.header import MAGIC, check_header, header_line, key_of

__all__ = [
    "COMMIT",
    "JournalFile",
    "check_journal_header",
    "files_in_commit",
    "first_line",
    "journal_files",
    "journal_path",
    "last_line",
    "open_journal_file",
]

COMMIT = "commit"  # key of the line written before the files next to the output get their names
SYNC_S = 5.0  # seconds of work that a power failure may lose
_TAIL_BYTES = 65_536  # the commit line is shorter
_MAX_LINE_BYTES = 2**26

Line = dict[str, Any]


def journal_path(output: Path) -> Path:
    """Path of the journal of an output: `out.gpkg` -> `out.gpkg.journal.jsonl`."""
    return output.with_name(output.name + ".journal.jsonl")


def journal_files(output: Path) -> tuple[Path, Path]:
    """Journal of an output, and the file of blobs next to it."""
    path = journal_path(output)
    return path, blob_path(path)


@dataclass
class JournalFile:
    """Open journal file; an offset is the byte at which a line begins."""

    lines: JsonLines
    begin: int  # offset behind the header
    key: bytes = field(repr=False)  # of its digests
    blobs: BlobFile | None = None  # only in a run that keeps masks
    synced_s: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> Path:
        return self.lines.path

    def write_blobs(self, blobs: Iterable[Blob]) -> None:
        """Append blobs, before the lines that point to them. Raises: WriteError."""
        if self.blobs is not None:
            with _wrap_write_errors(self.blobs.path):
                self.blobs.write(blobs)

    def append(self, records: Iterable[Line]) -> list[int]:
        """Append one transaction and return the offset of each line.

        Raises: WriteError; the transactions before are intact.
        """
        with _wrap_write_errors(self.path):
            offsets = self.lines.append(records, sync=False)
            if time.monotonic() - self.synced_s > SYNC_S:
                self._sync()
        return offsets

    def commit(self, outputs: Iterable[Path]) -> None:
        """Note that these files next to the output are about to get their names. Raises: WriteError."""
        self.append([{COMMIT: [str(path.absolute()) for path in outputs]}])
        with _wrap_write_errors(self.path):
            self._sync()

    def _sync(self) -> None:
        if self.blobs is not None:
            os.fsync(self.blobs.stream.fileno())
        self.lines.sync()
        self.synced_s = time.monotonic()

    def read_at(self, offset: int) -> Line:
        """Line that begins at `offset`."""
        return self.lines.read_at(offset)

    def read_blob(self, blob: Blob) -> bytes:
        """Bytes of a blob; only in a run that keeps masks."""
        assert self.blobs is not None
        return self.blobs.read(blob)

    def transactions(self) -> Iterator[list[tuple[int, Line]]]:
        """Complete transactions from the start, each line with its offset; at the end, truncate the rest.

        Raises: OutputError for a line with an impossible address of a blob.
        """
        stream = self.lines.stream
        offset = complete = stream.seek(self.begin)
        group: list[tuple[int, Line]] = []
        for text in iter(lambda: stream.readline(_MAX_LINE_BYTES), b""):
            try:
                line = parse_json(text) if text.endswith(b"\n") else None
            except ValueError:
                break
            is_chip = isinstance(line, dict) and "row" in line
            if not isinstance(line, dict) or (is_chip and not {"pair", "col", "status"} <= line.keys()):
                break
            try:
                if self.blobs is not None and not self.blobs.is_intact(line):
                    break
            except ValueError as error:
                raise self.refusal(offset, str(error)) from None
            group.append((offset, line))
            offset += len(text)
            if not is_chip or "end" in line:
                yield group
                complete, group = offset, []
        stream.truncate(complete)

    def refusal(self, offset: int, problem: str) -> OutputError:
        """Error about the line at `offset`, which is complete and holds what no run has written."""
        self.lines.stream.seek(0)
        number = 1 + self.lines.stream.read(offset).count(b"\n")
        return OutputError(
            f"{self.path}, line {number}: was not written by a run ({problem}); `resume=False` starts over"
        )

    def clear(self) -> None:
        """Remove everything but the header."""
        self.lines.stream.truncate(self.begin)
        if self.blobs is not None:
            self.blobs.stream.truncate(0)

    def unlink(self) -> None:
        """Remove the file and its blobs. Raises: OSError."""
        self.path.unlink(missing_ok=True)
        blob_path(self.path).unlink(missing_ok=True)


@contextmanager
def open_journal_file(
    path: Path, header: Mapping[str, Any], *, fresh: bool = False, blobs: bool = False
) -> Iterator[JournalFile]:
    """Open the journal at `path`, or begin one with this header; `fresh` begins anew in any case.

    `blobs` opens the file of blobs too. A link in the place of either is not followed, but removed with
    `fresh`, and refused without it.

    Raises:
        OutputError: the file is no journal, has another header or version, or cannot be read or written.
    """
    masks = blob_path(path)
    with ExitStack() as stack:
        with _open_error(path):
            is_new = _begins_anew(path, fresh)
        if is_new:
            with _open_error(masks):
                masks.unlink(missing_ok=True)
        with _open_error(path):
            if is_new:
                path.unlink(missing_ok=True)
            stream = create_file(path) if is_new else open_regular(path, writable=True)
            stack.callback(_close, stream)
            if is_new:
                stream.write(header_line(header))
                stream.flush()
                os.fsync(stream.fileno())
                fsync_folder(path.parent)
                stream.seek(0)
        key = check_header(path, stream.readline(_MAX_LINE_BYTES), header)
        blob_file = None
        if blobs:
            with _open_error(masks):
                exists = os.path.lexists(masks)
                blob_stream = open_regular(masks, writable=True) if exists else create_file(masks)
            stack.callback(_close, blob_stream)
            blob_file = BlobFile(masks, blob_stream)
        yield JournalFile(JsonLines(path, stream), stream.tell(), key, blob_file)


def _close(stream: IO[bytes]) -> None:
    with suppress(OSError):  # a full disk has been reported by `append`
        stream.close()


def _begins_anew(path: Path, fresh: bool) -> bool:
    """True where there is no journal, or one that was killed in its first line, or `fresh` discards it.

    Raises: OutputError for a file that is no journal; OSError for what is no file.
    """
    try:
        with open_regular(path) as stream:
            head = stream.readline(_MAX_LINE_BYTES)
    except FileNotFoundError:
        return True
    except OSError:
        if fresh and not path.is_dir():
            return True  # a link or a pipe, which goes
        raise
    if not MAGIC.startswith(head[: len(MAGIC)]):
        raise OutputError(f"{path}: is no journal of deltavlm; move it away, or choose another output")
    return fresh or not head.endswith(b"\n")


@contextmanager
def _wrap_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path}: writing failed ({error.strerror}); free some space, and the same command resumes"
        ) from error


def check_journal_header(path: Path, header: Mapping[str, Any], ignored: Collection[str] = ()) -> None:
    """Check the header of the journal at `path`, if there is one, as `open_journal_file` does.

    Settings with `ignored` names, which are not known yet, need not be equal. Raises: OutputError.
    """
    with _open_error(path):
        if _begins_anew(path, fresh=False):
            return
        with open_regular(path) as stream:
            text = stream.readline(_MAX_LINE_BYTES)
    check_header(path, text, header, ignored)


@contextmanager
def _open_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be read and written ({error.strerror}); move it away, or choose another output"
        ) from error


def files_in_commit(path: Path) -> set[str]:
    """Files next to the output that a run had begun to rename when it was killed."""
    paths = last_line(path).get(COMMIT)
    return {each for each in paths if isinstance(each, str)} if isinstance(paths, list) else set()


def last_line(path: Path) -> Line:
    """Last line of the journal at `path`, if it is a short one; empty where there is none."""
    try:
        with open_regular(path) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            last = parse_json(stream.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return last if isinstance(last, dict) else {}


def first_line(path: Path) -> tuple[bytes, Line]:
    """Key of the digests of the journal at `path`, and its first line behind the header; empty where there is
    none."""
    try:
        with open_regular(path) as stream:
            header, line = (parse_json(stream.readline(_MAX_LINE_BYTES)) for _ in range(2))
        return key_of(header), line if isinstance(line, dict) else {}
    except (OSError, ValueError, TypeError, LookupError):
        return b"", {}
