"""Comparison of files, however their paths are spelled: none is written twice, or written and read."""

from __future__ import annotations

import os
import stat
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from deltavlm.errors import OutputError

__all__ = ["NamedPath", "check_distinct_files"]

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
