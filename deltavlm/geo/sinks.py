"""Feature sinks: atomic writers of vector files in the format of the suffix, or GeoJSON on stdout."""

from __future__ import annotations

import io
import itertools
import os
import sqlite3
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import (
    NamedPath,
    atomic_file,
    create_file,
    fsync_file,
    open_regular,
    resolve_link,
    scratch_name,
    write_atomic,
)
from deltavlm.geo.features import Feature, Layer
from deltavlm.geo.geojson import FeatureCollection, FeatureLines, WriteText
from deltavlm.geo.geopackage import (
    is_open_elsewhere,
    prepare_replacement,
    sqlite_sidecars,
    write_geopackage,
)
from deltavlm.geo.lonlat import to_lonlat
from deltavlm.geo.qml import SIGNATURE
from deltavlm.geo.styles import layer_style
from deltavlm.geo.tables import Tables, write_flatgeobuf, write_geoparquet

if TYPE_CHECKING:
    from rasterio.crs import CRS
    from shapely.geometry.base import BaseGeometry

__all__ = [
    "SUFFIXES",
    "FeatureSink",
    "check_can_hold",
    "check_output",
    "files_of_output",
    "geojson_text",
    "is_in_lonlat",
    "open_sink",
    "write_output",
]

TABLE_WRITERS = {".gpkg": write_geopackage, ".fgb": write_flatgeobuf, ".parquet": write_geoparquet}
TEXT_WRITERS: dict[str, type[FeatureCollection | FeatureLines]] = {
    ".geojson": FeatureCollection,
    ".geojsonl": FeatureLines,
    ".ndjson": FeatureLines,
}
SUFFIXES = (*TABLE_WRITERS, *TEXT_WRITERS)

PIXEL_COORDINATES = "no CRS: pixels of the earlier image, x right and y down"

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, invalid UTF-8, line separators
LONGEST_SUFFIX = "-journal"  # of SQLite; other files next to an output have shorter names

WRITE_ERRORS = (OSError, RuntimeError, sqlite3.Error, pa.ArrowException)  # pyogrio's are RuntimeErrors


class FeatureSink(Protocol):
    """Destination of features of named layers; a format with one layer ignores the others."""

    def write(self, layer: str, features: Iterable[Feature]) -> None: ...


def check_output(path: Path | None, overwrite: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check, before any work, that an output can be written; changes nothing. None or `-` is stdout.

    Raises:
        OutputError: unknown suffix, no such folder, not writable, exists already, or open in another program;
            or a name that is too long or cannot be printed.
    """
    path = _file_path(path)
    if path is None:
        return
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
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is a pipe or a device; choose another name")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; add `overwrite=True` or choose another name")
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
    if path.suffix.lower() == ".gpkg" and is_open_elsewhere(path):
        raise OutputError(f"{path}: is open in another program, perhaps QGIS; close it there")


def files_of_output(name: str, path: Path) -> list[NamedPath]:
    """Files that writing the output `path` may write: itself, SQLite's next to a GeoPackage, or the style."""
    suffix = path.suffix.lower()
    if suffix == ".gpkg":
        return [(name, path), *((f"{each.name} next to {name}", each) for each in sqlite_sidecars(path))]
    style = [(f"the style of {name}", path.with_suffix(".qml"))] if suffix in SUFFIXES else []
    return [(name, path), *style]


def is_in_lonlat(path: Path | None) -> bool:
    """True for an output whose format has longitudes and latitudes only: GeoJSON, also on standard output."""
    path = _file_path(path)
    return path is None or path.suffix.lower() in TEXT_WRITERS


def check_can_hold(
    path: Path | None,
    layers: Sequence[Layer],
    crs: CRS | None,
    polygons: Sequence[BaseGeometry],
    *,
    only_layer: str | None = None,
) -> None:
    """Check, before any work, that the format of an output can hold these layers in this CRS.

    A GeoPackage needs locks, which some network drives lack; a CRS without an EPSG code is written on trial
    to a scratch file. `polygons` are some of those of the features, in `crs`.

    Raises:
        OutputError: it cannot.
    """
    path = _file_path(path)
    suffix = "" if path is None else path.suffix.lower()
    if path is None or is_in_lonlat(path):
        try:
            lonlat = to_lonlat(crs)
        except OutputError as error:
            raise OutputError(f"{path or '-'}: {error}") from error
        if all(lonlat(polygon).is_empty for polygon in polygons):
            raise OutputError(
                f"{path or '-'}: GeoJSON needs longitudes and latitudes, and the CRS of the raster has none; "
                "write .gpkg instead"
            )
        return
    if suffix == ".gpkg":
        _check_database(path, max(len(layer.fields) for layer in layers))
    if crs is not None and crs.to_epsg() is None:
        chosen = [layer for layer in layers if layer.name == (only_layer or layers[0].name)]
        tables = Tables(layers if suffix == ".gpkg" and only_layer is None else chosen)
        for name in tables.layers:
            tables.write(name, [Feature(polygon) for polygon in polygons])
        with _trial_file(path) as scratch, _wrap_trial_errors(path):
            TABLE_WRITERS[suffix](scratch, tables, crs, {})


def _check_database(path: Path, columns: int) -> None:
    """Create an SQLite database with that many columns next to `path`, and remove it. Raises: OutputError."""
    names = ", ".join(f"column_{number}" for number in range(columns))
    with (
        _trial_file(path) as scratch,
        _wrap_trial_errors(path),
        closing(sqlite3.connect(scratch, timeout=1)) as database,
    ):
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"CREATE TABLE trial ({names})")
        database.commit()


@contextmanager
def _trial_file(path: Path) -> Iterator[Path]:
    """Name of a scratch file next to `path`, which is removed at the end with what SQLite keeps beside it."""
    target = resolve_link(path)
    scratch = target.with_name(scratch_name(path))
    try:
        yield scratch
    finally:
        for file in (scratch, *sqlite_sidecars(scratch)):
            file.unlink(missing_ok=True)


@contextmanager
def _wrap_trial_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (*WRITE_ERRORS, ValueError) as error:
        message = str(error).partition("\n")[0]
        raise OutputError(
            f"{path}: a {path.suffix.lower()} cannot hold the result there ({message}); "
            "choose another suffix, or a folder on a local disk"
        ) from error


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
    """Open a sink for `layers`, whose geometries are in `crs`; None or `-` writes GeoJSON lines to stdout.

    The file is written atomically: it gets its name when the `with` ends without an exception. A symbolic
    link stays one, and its target is replaced. A GeoPackage holds all layers, with their styles; other
    formats hold the first layer, with its QGIS style next to them as `out.qml`; `only_layer` picks another.
    JSON is in WGS 84, other formats in `crs`.

    Raises:
        OutputError: as `check_output`; or the layer is unknown.
        WriteError: writing fails, as on a full disk.
    """
    names = [layer.name for layer in layers]
    if only_layer is not None and only_layer not in names:
        raise OutputError(f"there is no layer {only_layer!r}; choose one of {', '.join(names)}")
    chosen = [layer for layer in layers if layer.name == (only_layer or names[0])]
    if crs is None:
        provenance = {**provenance, "coordinates": PIXEL_COORDINATES}
    path = _file_path(path)
    if path is None:
        yield FeatureLines(_write_stdout, chosen[0], to_lonlat(crs), provenance)
        return
    check_output(path, overwrite)
    suffix = path.suffix.lower()
    style = None if suffix == ".gpkg" else layer_style(chosen[0])
    if suffix in TEXT_WRITERS:
        lonlat = to_lonlat(crs)
        with _atomic_output(path, overwrite, style) as scratch, _text_writer(scratch, path) as write_text:
            sink = TEXT_WRITERS[suffix](write_text, chosen[0], lonlat, provenance)
            yield sink
            sink.close()
    else:
        tables = Tables(layers if suffix == ".gpkg" and only_layer is None else chosen)
        yield tables
        with _atomic_output(path, overwrite, style) as scratch, _wrap_write_errors(path):
            TABLE_WRITERS[suffix](scratch, tables, crs, provenance)


def geojson_text(
    layer: Layer, features: Iterable[Feature], crs: CRS | None, provenance: Mapping[str, object]
) -> str:
    """GeoJSON FeatureCollection as text, as `open_sink` writes it to a `.geojson`."""
    if crs is None:
        provenance = {**provenance, "coordinates": PIXEL_COORDINATES}
    chunks: list[str] = []
    collection = FeatureCollection(chunks.append, layer, to_lonlat(crs), provenance)
    collection.write(layer.name, features)
    collection.close()
    return "".join(chunks)


def write_output(path: Path, content: bytes, overwrite: bool) -> None:
    """Write a file of any kind atomically, by the rules of `open_sink`.

    Raises: OutputError and WriteError, as there.
    """
    suffixes = (path.suffix.lower(),)
    check_output(path, overwrite, suffixes)
    with (
        _atomic_output(path, overwrite, None, suffixes) as scratch,
        _wrap_write_errors(path),
        create_file(scratch) as stream,
    ):
        stream.write(content)


def _file_path(path: Path | None) -> Path | None:
    return None if path is None or str(path) == "-" else path


def _write_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _text_writer(scratch: Path, path: Path) -> Iterator[WriteText]:
    """Function that writes text to `scratch` and flushes it; its errors name `path`."""
    with _wrap_write_errors(path):
        stream = io.TextIOWrapper(create_file(scratch), encoding="utf-8", newline="\n")

    def write_text(text: str) -> None:
        with _wrap_write_errors(path):
            stream.write(text)
            stream.flush()

    try:
        yield write_text
    finally:
        with suppress(OSError):  # only text whose write failed already is left to flush
            stream.close()


@contextmanager
def _wrap_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except WRITE_ERRORS as error:
        message = str(error).partition("\n")[0]
        raise WriteError(
            f"{path}: writing failed ({message}) and left nothing behind; free some space or write elsewhere"
        ) from error


@contextmanager
def _atomic_output(
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
        with _wrap_write_errors(path):
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
