"""Opening of files without following links, or waiting for pipes and devices; text of limited size."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import IO

from deltavlm.errors import InputError
from deltavlm.files.disk import format_bytes

__all__ = [
    "MAX_DATASET_BYTES",
    "MAX_TEXT_BYTES",
    "check_regular",
    "create_file",
    "describe_read_error",
    "names_folder",
    "open_regular",
    "read_text",
    "resolve_link",
    "special_kind",
]

MAX_TEXT_BYTES = 256 * 2**20
MAX_DATASET_BYTES = 2**30

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


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


def describe_read_error(path: Path, error: OSError) -> str:
    """Message about a file that cannot be read: `x.csv: no such file; check the name`, or the reason."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{path}: no such file; check the name"
    return f"cannot read {path}: {error.strerror or error}"


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


def names_folder(path: str | os.PathLike[str]) -> bool:
    """True for `folder/` and for an existing folder."""
    return os.fspath(path).endswith(("/", os.sep)) or Path(path).is_dir()
