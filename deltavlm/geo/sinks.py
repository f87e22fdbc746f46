"""Where features go: a file that is whole or not there, in the format of its suffix, or lines on stdout."""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import fsync_folder, scratch_name
from deltavlm.geo.features import Feature, Layer
from deltavlm.geo.geojson import FeatureCollection, FeatureLines, Put, to_lonlat
from deltavlm.geo.geopackage import companions, is_open_elsewhere, settle, write_geopackage
from deltavlm.geo.qml import MADE_HERE
from deltavlm.geo.styles import layer_style
from deltavlm.geo.tables import Tables, write_flatgeobuf, write_geoparquet

if TYPE_CHECKING:
    from rasterio.crs import CRS

__all__ = ["SUFFIXES", "FeatureSink", "check_output", "geojson_text", "open_sink", "write_output"]

TABLE_WRITERS = {".gpkg": write_geopackage, ".fgb": write_flatgeobuf, ".parquet": write_geoparquet}
TEXT_WRITERS: dict[str, type[FeatureCollection | FeatureLines]] = {
    ".geojson": FeatureCollection,
    ".geojsonl": FeatureLines,
    ".ndjson": FeatureLines,
}
SUFFIXES = (*TABLE_WRITERS, *TEXT_WRITERS)

PIXELS = "no CRS: pixels of the earlier image, x right and y down"

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, what is not UTF-8, ends of lines
LONGEST_ENDING = "-journal"  # of SQLite; what else lies beside an output has shorter names

WRITE_ERRORS = (OSError, RuntimeError, sqlite3.Error, pa.ArrowException)  # pyogrio's are RuntimeErrors


class FeatureSink(Protocol):
    """Takes features of named layers; a format with one layer leaves those of the others out."""

    def write(self, layer: str, features: Iterable[Feature]) -> None: ...


def check_output(path: Path | None, overwrite: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Find out before any work whether the output can be written; changes nothing. None or `-` is stdout.

    Raises:
        OutputError: unknown suffix, no such folder, not writable, there already, or open in another program;
            or a name that is too long or cannot be printed.
    """
    path = _file(path)
    if path is None:
        return
    if any(unicodedata.category(char) in UNPRINTABLE for char in str(path)):
        raise OutputError(f"{str(path)!r}: has control characters in its name; choose another name")
    if not path.name:  # `.` or `/`
        raise OutputError(f"{path}: is a folder; name a file in it")
    try:
        for name in (path, path.with_name(path.name + LONGEST_ENDING)):
            with suppress(FileNotFoundError, NotADirectoryError):
                name.stat()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another name") from error
    if path.suffix.lower() not in suffixes:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file in it, for example {path / 'changes.gpkg'}")
        raise OutputError(f"{path}: suffix {path.suffix!r} is not one of {', '.join(suffixes)}")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; add --overwrite or choose another name")
    folder = _followed(path).parent
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
    if path.suffix.lower() == ".gpkg" and is_open_elsewhere(path):
        raise OutputError(f"{path}: is open in another program, QGIS perhaps; close it there")


@contextmanager
def open_sink(
    path: Path | None,
    layers: Sequence[Layer],
    crs: CRS | None,
    provenance: Mapping[str, object],
    *,
    overwrite: bool = False,
    only_layer: str | None = None,
) -> Iterator[FeatureSink]:
    """A sink for `layers`, whose geometries are in `crs`; None or `-` writes GeoJSON lines to stdout.

    The file appears under its name when the `with` ends without an exception, else nothing does; a symbolic
    link stays one, and what it leads to is replaced. A GeoPackage holds all layers, with their styles; other
    formats the first, whose style for QGIS lies beside them as `out.qml`; `only_layer` picks one. JSON is in
    WGS 84, others in `crs`.

    Raises:
        OutputError: as `check_output`; or the layer is unknown.
        WriteError: writing fails, as on a full disk.
    """
    names = [layer.name for layer in layers]
    if only_layer is not None and only_layer not in names:
        raise OutputError(f"there is no layer {only_layer!r}; choose one of {', '.join(names)}")
    chosen = [layer for layer in layers if layer.name == (only_layer or names[0])]
    if crs is None:
        provenance = {**provenance, "coordinates": PIXELS}
    path = _file(path)
    if path is None:
        yield FeatureLines(_to_stdout, chosen[0], to_lonlat(crs), provenance)
        return
    check_output(path, overwrite)
    suffix = path.suffix.lower()
    style = None if suffix == ".gpkg" else layer_style(chosen[0])
    if suffix in TEXT_WRITERS:
        lonlat = to_lonlat(crs)
        with _whole(path, overwrite, style) as part, _text(part, path) as put:
            sink = TEXT_WRITERS[suffix](put, chosen[0], lonlat, provenance)
            yield sink
            sink.close()
    else:
        tables = Tables(layers if suffix == ".gpkg" and only_layer is None else chosen)
        yield tables
        with _whole(path, overwrite, style) as part, _translated(path):
            TABLE_WRITERS[suffix](part, tables, crs, provenance)


def geojson_text(
    layer: Layer, features: Iterable[Feature], crs: CRS | None, provenance: Mapping[str, object]
) -> str:
    """Features as one GeoJSON object, as `open_sink` writes them to a `.geojson`."""
    if crs is None:
        provenance = {**provenance, "coordinates": PIXELS}
    pieces: list[str] = []
    collection = FeatureCollection(pieces.append, layer, to_lonlat(crs), provenance)
    collection.write(layer.name, features)
    collection.close()
    return "".join(pieces)


def write_output(path: Path, content: bytes, overwrite: bool) -> None:
    """A file of any other kind, whole or not at all, by the rules of `open_sink`.

    Raises: OutputError and WriteError, as there.
    """
    suffixes = (path.suffix.lower(),)
    check_output(path, overwrite, suffixes)
    with _whole(path, overwrite, None, suffixes) as part, _translated(path):
        part.write_bytes(content)


def _file(path: Path | None) -> Path | None:
    return None if path is None or str(path) == "-" else path


def _followed(path: Path) -> Path:
    """The file itself where `path` is a symbolic link to it."""
    return path.resolve() if path.is_symlink() else path


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _text(part: Path, path: Path) -> Iterator[Put]:
    """A function that writes text to `part` and tells at once, for `path`, when that fails."""
    with _translated(path):
        stream = part.open("w", encoding="utf-8", newline="\n")

    def put(text: str) -> None:
        with _translated(path):
            stream.write(text)
            stream.flush()

    try:
        yield put
    finally:
        with suppress(OSError):  # nothing is left to flush but what failed already
            stream.close()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except WRITE_ERRORS as error:
        words = str(error).partition("\n")[0]
        raise WriteError(
            f"{path}: writing failed ({words}) and left nothing behind; free some space or write elsewhere"
        ) from error


@contextmanager
def _whole(
    path: Path, overwrite: bool, style: str | None, suffixes: Sequence[str] = SUFFIXES
) -> Iterator[Path]:
    """A hidden neighbour to write to: it takes the name of `path` at the end, or goes on any exception."""
    target = _followed(path)
    part = target.with_name(scratch_name(path))
    try:
        yield part
        with _translated(path):
            with part.open("rb+") as stream:
                os.fsync(stream.fileno())
            try:
                check_output(path, overwrite, suffixes)  # hours may have passed
                if path.suffix.lower() == ".gpkg":
                    settle(target)
            except OutputError as error:
                kept = _free_name(target, path.suffix)
                part.replace(kept)
                raise OutputError(f"{error}; the results are in {kept}") from error
            with _style_beside(path, style):
                part.replace(target)
            fsync_folder(target.parent)
    finally:
        for left in (part, *companions(part)):
            left.unlink(missing_ok=True)


@contextmanager
def _style_beside(output: Path, style: str | None) -> Iterator[None]:
    """`out.qml`, there when the `with` has ended; one that was not written here stays: it is somebody's."""
    path = output.with_suffix(".qml")
    if style is None or not _is_free(path):
        yield
        return
    part = path.with_name(scratch_name(output))
    try:
        part.write_text(style, encoding="utf-8")
        yield
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _is_free(style: Path) -> bool:
    try:
        return MADE_HERE in style.read_text(encoding="utf-8")
    except FileNotFoundError:
        return not style.is_symlink()
    except (OSError, UnicodeDecodeError):
        return False


def _free_name(path: Path, suffix: str) -> Path:
    """`out.new.gpkg`, or `out.new2.gpkg` and so on, whichever is not taken."""
    endings = itertools.chain([""], itertools.count(2))
    names = (path.with_name(f"{path.stem}.new{ending}{suffix}") for ending in endings)
    return next(name for name in names if not any(map(os.path.lexists, (name, *companions(name)))))
