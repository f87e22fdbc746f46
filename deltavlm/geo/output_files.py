"""Output files: checks before any work, atomic writing, and the QGIS style next to them."""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import (
    NamedPath,
    atomic_file,
    create_file,
    fsync_file,
    open_regular,
    resolve_link,
    write_atomic,
)
from deltavlm.geo.geopackage import is_open_elsewhere, prepare_replacement, sqlite_sidecars
from deltavlm.geo.qml import SIGNATURE

__all__ = [
    "SUFFIXES",
    "WRITE_ERRORS",
    "atomic_output",
    "check_output",
    "file_path",
    "files_of_output",
    "wrap_write_errors",
    "write_output",
]

SUFFIXES = (".gpkg", ".fgb", ".parquet", ".geojson", ".geojsonl", ".ndjson")  # of features

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, invalid UTF-8, line separators
LONGEST_SUFFIX = "-journal"  # of SQLite; other files next to an output have shorter names

WRITE_ERRORS = (OSError, RuntimeError, sqlite3.Error, pa.ArrowException)  # pyogrio's are RuntimeErrors


def check_output(path: Path | None, overwrite: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check, before any work, that an output can be written; changes nothing. None or `-` is stdout.

    Raises:
        OutputError: unknown suffix, no such folder, not writable, exists already, or open in another program;
            or a name that is too long or cannot be printed.
    """
    path = file_path(path)
    if path is None:
        return
    _check_name(path, suffixes)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is a pipe or a device; choose another name")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; add `overwrite=True` or choose another name")
    _check_folder(path)
    if path.suffix.lower() == ".gpkg" and is_open_elsewhere(path):
        raise OutputError(f"{path}: is open in another program, perhaps QGIS; close it there")


def _check_name(path: Path, suffixes: Sequence[str]) -> None:
    """Raises: OutputError for a name that is too long, cannot be printed, or has another suffix."""
    if any(unicodedata.category(char) in UNPRINTABLE for char in str(path)):
        raise OutputError(f"{str(path)!r}: has control characters in its name; choose another name")
    if not path.name:  # `.` or `/`
        raise OutputError(f"{path}: is a folder; name a file in it")
    try:
        for name in (path, path.with_name(path.name + LONGEST_SUFFIX)):
            with suppress(FileNotFoundError, NotADirectoryError):
                name.stat()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another name") from error
    if path.suffix.lower() not in suffixes:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file in it, for example {path / 'changes.gpkg'}")
        problem = f"suffix {path.suffix!r} is not one of" if path.suffix else "has no suffix; use one of"
        raise OutputError(f"{path}: {problem} {', '.join(suffixes)}")


def _check_folder(path: Path) -> None:
    """Raises: OutputError where the folder is missing, or no file can be created in it."""
    folder = resolve_link(path).parent
    if not folder.is_dir():
        raise OutputError(f"{path}: there is no folder {folder}; create it first")
    if "!" in str(folder) and path.suffix.lower() in (".gpkg", ".fgb"):
        raise OutputError(f"{path}: pyogrio cannot write where a folder has a ! in its name; choose another")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write in {folder} ({error.strerror}); choose another folder"
        ) from error


def files_of_output(name: str, path: Path) -> list[NamedPath]:
    """Files that writing the output `path` may write: itself, SQLite's next to a GeoPackage, or the style."""
    suffix = path.suffix.lower()
    if suffix == ".gpkg":
        return [(name, path), *((f"{each.name} next to {name}", each) for each in sqlite_sidecars(path))]
    style = [(f"the style of {name}", path.with_suffix(".qml"))] if suffix in SUFFIXES else []
    return [(name, path), *style]


def file_path(path: Path | None) -> Path | None:
    """Path of an output; None for stdout, which `-` names too."""
    return None if path is None or str(path) == "-" else path


def write_output(path: Path, content: bytes, overwrite: bool) -> None:
    """Write a file of any kind atomically, by the rules of `open_sink` (`sinks.py`).

    Raises: OutputError and WriteError, as there.
    """
    suffixes = (path.suffix.lower(),)
    check_output(path, overwrite, suffixes)
    with (
        atomic_output(path, overwrite, None, suffixes) as scratch,
        wrap_write_errors(path),
        create_file(scratch) as stream,
    ):
        stream.write(content)


@contextmanager
def atomic_output(
    path: Path, overwrite: bool, style: str | None, suffixes: Sequence[str] = SUFFIXES
) -> Iterator[Path]:
    """Scratch file that becomes `path` at the end, with its QGIS style next to it, or is removed on any
    exception. If `path` can no longer be written then, the results are kept under another name.

    Raises: OutputError, WriteError.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(atomic_file(path))
        stack.callback(_remove_sidecars, scratch)
        yield scratch
        with wrap_write_errors(path):
            try:
                check_output(path, overwrite, suffixes)  # hours may have passed since the first check
                if path.suffix.lower() == ".gpkg":
                    prepare_replacement(resolve_link(path))
            except OutputError as error:
                fsync_file(scratch)
                other_path = _free_name(resolve_link(path), path.suffix)
                scratch.replace(other_path)
                raise OutputError(f"{error}; the results are in {other_path}") from error
            style_path = path.with_suffix(".qml")
            if style is not None and _is_replaceable(style_path):
                write_atomic(style_path, style, owner=path)
            stack.close()  # renames the scratch file


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except WRITE_ERRORS as error:
        message = str(error).partition("\n")[0]
        raise WriteError(
            f"{path}: writing failed ({message}) and left nothing behind; free some space or write elsewhere"
        ) from error


def _remove_sidecars(database: Path) -> None:
    for sidecar in sqlite_sidecars(database):
        sidecar.unlink(missing_ok=True)


def _is_replaceable(style: Path) -> bool:
    """True for a style file that does not exist or was written by deltavlm; others are the user's."""
    try:
        with open_regular(style) as stream:
            return SIGNATURE.encode() in stream.read()
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _free_name(path: Path, suffix: str) -> Path:
    """First of `out.new.gpkg`, `out.new2.gpkg` and so on that does not exist."""
    numbers = itertools.chain([""], itertools.count(2))
    names = (path.with_name(f"{path.stem}.new{number}{suffix}") for number in numbers)
    return next(name for name in names if not any(map(os.path.lexists, (name, *sqlite_sidecars(name)))))
