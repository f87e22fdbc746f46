"""Feature sinks: atomic writers of vector files in the format of the suffix, or GeoJSON on stdout."""

from __future__ import annotations

import io
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deltavlm.errors import OutputError
from deltavlm.files import create_file, resolve_link, scratch_name
from deltavlm.geo.features import Feature, Layer
from deltavlm.geo.geojson import FeatureCollection, FeatureLines, WriteText
from deltavlm.geo.geopackage import sqlite_sidecars, write_geopackage
from deltavlm.geo.lonlat import to_lonlat
from deltavlm.geo.output_files import (
    WRITE_ERRORS,
    atomic_output,
    check_output,
    file_path,
    wrap_write_errors,
)
from deltavlm.geo.styles import layer_style
from deltavlm.geo.tables import Tables, write_flatgeobuf, write_geoparquet

if TYPE_CHECKING:
    from rasterio.crs import CRS
    from shapely.geometry.base import BaseGeometry

__all__ = [
    "FeatureSink",
    "check_can_hold",
    "geojson_text",
    "is_in_lonlat",
    "open_sink",
]

TABLE_WRITERS = {".gpkg": write_geopackage, ".fgb": write_flatgeobuf, ".parquet": write_geoparquet}
TEXT_WRITERS: dict[str, type[FeatureCollection | FeatureLines]] = {
    ".geojson": FeatureCollection,
    ".geojsonl": FeatureLines,
    ".ndjson": FeatureLines,
}

PIXEL_COORDINATES = "no CRS: pixels of the earlier image, x right and y down"


class FeatureSink(Protocol):
    """Destination of features of named layers; a format with one layer ignores the others."""

    def write(self, layer: str, features: Iterable[Feature]) -> None: ...


def is_in_lonlat(path: Path | None) -> bool:
    """True for an output whose format has longitudes and latitudes only: GeoJSON, also on standard output."""
    path = file_path(path)
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
    path = file_path(path)
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
    path = file_path(path)
    if path is None:
        yield FeatureLines(_write_stdout, chosen[0], to_lonlat(crs), provenance)
        return
    check_output(path, overwrite)
    suffix = path.suffix.lower()
    style = None if suffix == ".gpkg" else layer_style(chosen[0])
    if suffix in TEXT_WRITERS:
        lonlat = to_lonlat(crs)
        with atomic_output(path, overwrite, style) as scratch, _text_writer(scratch, path) as write_text:
            sink = TEXT_WRITERS[suffix](write_text, chosen[0], lonlat, provenance)
            yield sink
            sink.close()
    else:
        tables = Tables(layers if suffix == ".gpkg" and only_layer is None else chosen)
        yield tables
        with atomic_output(path, overwrite, style) as scratch, wrap_write_errors(path):
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


def _write_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _text_writer(scratch: Path, path: Path) -> Iterator[WriteText]:
    """Function that writes text to `scratch` and flushes it; its errors name `path`."""
    with wrap_write_errors(path):
        stream = io.TextIOWrapper(create_file(scratch), encoding="utf-8", newline="\n")

    def write_text(text: str) -> None:
        with wrap_write_errors(path):
            stream.write(text)
            stream.flush()

    try:
        yield write_text
    finally:
        with suppress(OSError):  # only text whose write failed already is left to flush
            stream.close()
