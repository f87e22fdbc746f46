"""Atomic writes: scratch files and folders that get their name when they are complete, and on disk."""

from __future__ import annotations

import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deltavlm.errors import OutputError
from deltavlm.files.disk import nearest_folder
from deltavlm.files.opening import create_file, resolve_link

__all__ = [
    "atomic_file",
    "atomic_folder",
    "fsync_file",
    "fsync_folder",
    "refuse_existing",
    "scratch_name",
    "scratch_prefix",
    "staged_folder",
    "write_atomic",
]


def scratch_name(output: Path, suffix: str | None = None) -> str:
    """Name of a hidden, unique scratch file for `output`; ends in `suffix`, else in that of `output`.

    `lock` recognizes such names and removes those that a killed process left behind.
    """
    return f"{scratch_prefix(output)}{secrets.token_hex(8)}{output.suffix if suffix is None else suffix}"


def scratch_prefix(output: Path) -> str:
    """First letters of the names of all scratch files of `output`."""
    return f".deltavlm-{zlib.crc32(output.name.encode('utf-8', 'surrogateescape')):08x}-"


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
