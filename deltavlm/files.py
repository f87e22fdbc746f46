"""Atomic file and folder writes, locks, append-only JSON lines, and free disk space.

Names of files that lie beside an output can be foreseen, so in a shared folder another user may have put a
link or a pipe there: they are opened by `create_file` and `open_regular`, which follow no link.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from deltavlm.errors import InputError, OutputError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)

__all__ = [
    "JsonLines",
    "NamedPath",
    "atomic_file",
    "atomic_folder",
    "check_distinct_files",
    "check_regular",
    "create_file",
    "drop_what_stderr_refuses",
    "folder_bytes",
    "format_bytes",
    "free_bytes",
    "fsync_file",
    "fsync_folder",
    "lock",
    "lock_path",
    "names_folder",
    "open_regular",
    "parse_json",
    "read_text",
    "remove_scratch_files",
    "resolve_link",
    "scratch_name",
    "special_kind",
    "staged_folder",
    "write_atomic",
]


MAX_TEXT_BYTES = 256 * 2**20
MAX_DATASET_BYTES = 2**30


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Text of a UTF-8 file, without a byte order mark; never more than `max_bytes` are read.

    Raises: InputError for a pipe or a device, OSError (EFBIG for a larger file), UnicodeDecodeError.
    """
    check_regular(path)
    with path.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {format_bytes(max_bytes)}", str(path))
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig") as text:
        return text.read()


def parse_json(text: str | bytes) -> Any:
    """Value of JSON text. Raises: ValueError, for nesting that is too deep too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class _LossyFile(io.FileIO):
    """File that drops what cannot be written: the disk is full, the pipe is closed or would block."""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written  # None: a non-blocking pipe is full


def drop_what_stderr_refuses() -> None:
    """Make stderr drop what cannot be written, by whatever library: a log that is full ends no run."""
    if sys.stderr is sys.__stderr__ and (os.name != "nt" or sys.stderr is None or not sys.stderr.isatty()):
        raw = _LossyFile(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )


def names_folder(path: str | os.PathLike[str]) -> bool:
    """True for `folder/` and for an existing folder."""
    return os.fspath(path).endswith(("/", os.sep)) or Path(path).is_dir()


def scratch_name(output: Path, suffix: str | None = None) -> str:
    """Name of a hidden, unique scratch file for `output`; ends in `suffix`, else in that of `output`.

    `lock` recognizes such names and removes those that a killed process left behind.
    """
    return f"{_scratch_prefix(output)}{secrets.token_hex(8)}{output.suffix if suffix is None else suffix}"


def _scratch_prefix(output: Path) -> str:
    return f".deltavlm-{zlib.crc32(output.name.encode('utf-8', 'surrogateescape')):08x}-"


def create_file(path: Path) -> IO[bytes]:
    """New file, open for reading and writing. Raises: OSError where the name is taken, by a link too."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666), "wb+")


def open_regular(path: Path, *, writable: bool = False) -> IO[bytes]:
    """Existing regular file, open for reading, or for both.

    Raises: OSError where there is none; for a link, pipe, device or folder one that says so.
    """
    _check_regular(path, path.lstat().st_mode)
    handle = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | _NO_FOLLOW)
    try:
        _check_regular(path, os.fstat(handle).st_mode)  # it may have been replaced since
        return os.fdopen(handle, "rb+" if writable else "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a pipe or a device", str(path))


def resolve_link(path: Path) -> Path:
    """Target of `path` where it is a symbolic link, else `path` itself."""
    return path.resolve() if path.is_symlink() else path


def special_kind(path: Path) -> str | None:
    """Name of what a path is, if neither a file nor a folder: opening a pipe or a device may never end.

    Raises: OSError.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def check_regular(path: Path) -> None:
    """Refuse a pipe, a device or a socket before it is opened. Raises: InputError; OSError."""
    if kind := special_kind(path):
        raise InputError(f"{path}: is {kind}, which is not opened; give a file")


@contextmanager
def atomic_file(path: Path, *, suffix: str | None = None, owner: Path | None = None) -> Iterator[Path]:
    """Scratch file next to `path`: synced and renamed to `path` on success, removed on any exception.

    A symbolic link stays one; its target is replaced. `suffix` is the ending of the scratch name (default:
    that of `path`, which some writers use to pick a format). `owner` is the output whose `lock` removes the
    scratch file of a killed process (default: `path`).

    Raises: OSError.
    """
    target = resolve_link(path)
    scratch = target.with_name(scratch_name(owner or path, path.suffix if suffix is None else suffix))
    try:
        yield scratch
        fsync_file(scratch)
        scratch.replace(target)
        fsync_folder(target.parent)
    finally:
        scratch.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str, *, owner: Path | None = None) -> None:
    """Write a whole file (text as UTF-8, newlines as they are) by `atomic_file`. Raises: OSError."""
    with atomic_file(path, owner=owner) as scratch, create_file(scratch) as stream:
        stream.write(content if isinstance(content, bytes) else content.encode("utf-8"))


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Empty scratch folder next to `folder`, renamed to it on success and removed on any exception.

    `folder` must not exist, or be empty. Raises: OSError.
    """
    scratch = folder.with_name(scratch_name(folder, ""))
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.replace(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Scratch folder whose content is moved into `folder` on success, and removed on any exception.

    Unlike `atomic_folder`, `folder` may exist: files of the same name are replaced, others stay. The scratch
    folder lies in `folder` or in its nearest existing parent, so that moving is renaming.

    Raises: OutputError when one of the two cannot be written.
    """
    scratch = nearest_folder(folder) / scratch_name(
        folder, ""
    )  # named first: a signal may come right after `mkdir`
    try:
        scratch.mkdir()
        yield scratch
        folder.parent.mkdir(parents=True, exist_ok=True)
        _merge_into(scratch, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; check the path and the free disk space"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _merge_into(source: Path, target: Path) -> None:
    """Rename `source` to `target`; of two folders, rename the entries, in the order of their names."""
    if source.is_dir() and target.is_dir():
        for path in sorted(source.iterdir()):
            _merge_into(path, target / path.name)
    else:
        source.replace(target)


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raises: OutputError for the first path that exists."""
    for path in paths:
        if path.exists():
            raise OutputError(f"{path} exists; give another folder, or `overwrite=True` to replace it")


NamedPath = tuple[str, Path]
"""What a file is to the run, for messages, such as "the output", and its path."""


def check_distinct_files(written: Iterable[NamedPath], read: Iterable[NamedPath] = ()) -> None:
    """Check, before any work, that no file is written twice, or both read and written.

    Files are the same however their paths are spelled: relative, through symbolic or hard links, or in
    another letter case where the file system ignores it. Folders are not compared.

    Raises: OutputError naming both.
    """
    folders: dict[Path, object] = {}
    files: dict[_FileKey, NamedPath] = {}
    for file in written:
        for key in _file_keys(file[1], folders):
            if files.setdefault(key, file) is not file:
                _refuse_same_file(files[key], file)
    exists = any(isinstance(key[1], int) for key in files)
    names = {key[1] for key in files}
    for file in read:
        if exists or _fold(file[1].name) in names:  # else no key can be equal
            for key in _file_keys(file[1], folders):
                if key in files:
                    _refuse_same_file(files[key], file)


_FileKey = tuple[object, str | int]  # device and inode; or key of the folder, and name


def _file_keys(path: Path, folders: dict[Path, object]) -> list[_FileKey]:
    """Keys of which the same file has an equal one; none for a folder. `folders` caches those of parents."""
    try:
        path = Path(os.path.realpath(path)) if path.is_symlink() else path.absolute()
        if path.parent not in folders:
            status = _status(path.parent)
            folders[path.parent] = (
                os.path.realpath(path.parent) if status is None else (status.st_dev, status.st_ino)
            )
        status = _status(path)
    except ValueError:  # a null character
        return []
    key: _FileKey = folders[path.parent], _fold(path.name)
    if status is None:
        return [key]
    return [] if stat.S_ISDIR(status.st_mode) else [(status.st_dev, status.st_ino), key]


def _fold(name: str) -> str:
    """Name of a file as a file system compares it that ignores letter case."""
    return unicodedata.normalize("NFC", name).casefold()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _refuse_same_file(first: NamedPath, second: NamedPath) -> None:
    """Raises: OutputError, unless the paths differ in letter case and the file system heeds that."""
    paths = [Path(os.path.realpath(path)) for _, path in (first, second)]
    statuses = [_status(path) for path in paths]
    if statuses[0] is not None and statuses[1] is not None:
        is_same = os.path.samestat(statuses[0], statuses[1])
    else:
        names = {unicodedata.normalize("NFC", path.name) for path in paths}
        is_same = len(names) == 1 or _ignores_case(paths[0].parent)
    if is_same:
        raise OutputError(
            f"{second[1]}: would be both {first[0]} and {second[0]}; give one of them another name"
        )


def _ignores_case(folder: Path) -> bool:
    """True if the file system of `folder` ignores letter case; False if that cannot be tried."""
    try:
        with tempfile.NamedTemporaryFile(prefix="deltavlm", dir=folder) as file:
            path = Path(file.name)
            return path.with_name(path.name.swapcase()).exists()
    except OSError:
        return False


def fsync_file(path: Path) -> None:
    """Flush a closed file to disk. Raises: OSError."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def fsync_folder(folder: Path) -> None:
    """Flush new names in `folder` to disk; does nothing where the system has no such call (Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_path(output: Path) -> Path:
    """File of the lock on an output: `out.gpkg` -> `.out.gpkg.lock`."""
    return output.with_name(f".{output.name}.lock")


@contextmanager
def lock(output: Path) -> Iterator[None]:
    """Exclusive lock on `output`, held by at most one process; removes scratch files of a killed one.

    Raises: OutputError when another process holds it, or the folder is not writable.
    """
    from filelock import FileLock, Timeout  # not needed to show the help

    path = lock_path(output)
    file_lock = FileLock(path, timeout=0)
    was_killed = path.exists()  # every other end of a process removes the file
    try:
        file_lock.acquire()
    except Timeout:
        raise OutputError(
            f"{output}: another run is writing it; wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        if was_killed:
            remove_scratch_files(output)
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            path.unlink()
        file_lock.release()
        with suppress(OSError):
            if os.name == "nt":
                path.unlink()


def remove_scratch_files(output: Path) -> None:
    """Remove what killed processes left of `atomic_file(output)` and `atomic_folder(output)`; no process may
    be writing it."""
    for scratch in resolve_link(output).parent.glob(f"{_scratch_prefix(output)}*"):
        if scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch, ignore_errors=True)
            continue
        with suppress(OSError):
            scratch.unlink()


def nearest_folder(path: Path) -> Path:
    """The path itself if it exists, else its nearest parent that does."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where `folder` is, or would be created. Raises: OutputError."""
    existing = nearest_folder(folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError as error:
        raise OutputError(
            f"cannot read the free space of {existing}: {error.strerror}; choose another folder"
        ) from error


def folder_bytes(folder: Path) -> int:
    """Size of all files at the top of `folder`."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def format_bytes(size: int) -> str:
    """Size for people, in decimal units as on the Hugging Face Hub.

    >>> format_bytes(13_476_800_000), format_bytes(231_508), format_bytes(7)
    ('13.5 GB', '232 kB', '7 B')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.{1 if size < 100 * unit else 0}f} {name}"
    return f"{size} B"


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
