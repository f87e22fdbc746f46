"""Reader of one layer of a vector file: an output, areas to summarize by, or an area of interest.

The first bytes and the suffix of a file name its one driver. GeoJSON and GeoParquet are read without GDAL.
GDAL chooses a driver by itself, but is only given files whose first bytes hold nothing that another of its
drivers looks for.
"""

from __future__ import annotations

import json
import re
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from shapely.errors import ShapelyError

from deltavlm.errors import InputError
from deltavlm.files import check_regular
from deltavlm.geo.crs import grid_problem
from deltavlm.geo.geopackage_reader import check_geometries, geopackage_layers, plain_geopackage
from deltavlm.geo.wkb import MAX_DEPTH, check_depth

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["VectorLayer", "list_layers", "read_layer", "split_layer"]

FORMATS = "GeoPackage, GeoJSON, FlatGeobuf, GeoParquet or a shapefile"
SHAPEFILE_PARTS = (".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".idm")
MAX_FLATGEOBUF_HEADER = 2**24  # bytes; below this the size ends in a zero byte
CRS_NAME = re.compile(r"(urn:ogc:def:crs:)?[A-Za-z]+:[\w.]*:?\w+")
GEOJSON_ERRORS = (ValueError, TypeError, LookupError, AttributeError)  # of text that is not GeoJSON
READ_ERRORS = (RuntimeError, OSError, ShapelyError, sqlite3.Error, pa.ArrowException, *GEOJSON_ERRORS)
"""pyogrio's errors are RuntimeErrors."""

POLYGON_TYPES = ("polygon", "surface", "collection", "unknown", "geometry")
"""Parts of the names of geometry types that layers with polygons may have."""


@dataclass(frozen=True, slots=True)
class VectorLayer:
    """Rows of a layer, and the provenance that deltavlm has written to the file, if it has."""

    frame: GeoDataFrame
    provenance: Mapping[str, Any] | None


def split_layer(text: str) -> tuple[Path, str | None]:
    """`districts.gpkg:communes` as file and layer, unless there is a file with this very name."""
    file, colon, layer = text.rpartition(":")
    if colon and layer and not Path(text).exists() and Path(file).exists():
        return Path(file), layer
    return Path(text), None


def read_layer(
    path: Path, layer: str | None = None, advice: str = f"give {FORMATS}", *, polygons: bool = False
) -> VectorLayer:
    """Read a layer of a file; without a name the only one, or the first. Errors end with `advice`.

    With `polygons` a name is needed where several layers may have polygons.

    Raises:
        InputError: no such file or layer, another format, a file that is broken, or a CRS that names a grid.
    """
    with _read_errors(path, advice):
        match _format(path, advice):
            case "GeoJSON":
                return _read_geojson(path)
            case "GeoParquet":
                return _read_parquet(path)
        name = _choose_layer(path, layer, advice, polygons)
        if path.suffix.lower() != ".gpkg":
            return _read_with_gdal(path.absolute(), name)
        with plain_geopackage(path, name) as package:
            check_geometries(package, name)
            return _read_with_gdal(package.absolute(), name)


def list_layers(path: Path, advice: str = f"give {FORMATS}") -> tuple[str, ...]:
    """Names of the layers with geometries of a GeoPackage; none for a format with a single, unnamed layer.

    Errors end with `advice`.

    Raises:
        InputError: a file of another format, or a GeoPackage that is broken.
    """
    with _read_errors(path, advice):
        return tuple(geopackage_layers(path)) if _format(path, advice) == "GeoPackage" else ()


@contextmanager
def _read_errors(path: Path, advice: str) -> Iterator[None]:
    """Raises: InputError in place of the errors of the libraries that read vector files."""
    try:
        yield
    except READ_ERRORS as error:
        message = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({message}); {advice}") from error


def _format(path: Path, advice: str) -> str:
    """Name of the format of a file, by its signature, whose suffix agrees with it.

    Raises:
        InputError: no such file, a folder, a pipe or a device, another format, or another suffix.
    """
    if not path.exists() or path.is_dir():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; {advice}")
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(64)
        if head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\x1e \t\r\n").startswith(b"{"):
            return "GeoJSON"
        if head.startswith(b"PAR1"):
            return "GeoParquet"
        definition = b""
        if head.startswith(b"SQLite format 3\0"):
            name, suffix = "GeoPackage", ".gpkg"
        elif head.startswith(b"fgb\x03fgb") and int.from_bytes(head[8:12], "little") < MAX_FLATGEOBUF_HEADER:
            name, suffix = "FlatGeobuf", ".fgb"
            definition = head + file.read(int.from_bytes(head[8:12], "little"))
        elif head.startswith(b"\0\0\x27\x0a") and head[28:32] == b"\xe8\x03\0\0":
            name, suffix = "shapefile", ".shp"
            definition = _shapefile_crs(path)
        else:
            raise InputError(f"{path}: is none of {FORMATS}; {advice}")
    if path.suffix.lower() != suffix:
        raise InputError(f"{path}: is a {name} by its content; rename it to {suffix}")
    if ";" in path.name or "!" in str(path):  # pyogrio takes them for parts of a URL
        raise InputError(f"{path}: cannot be read with ! or ; in its name; rename it")
    if problem := grid_problem(definition):
        raise InputError(f"{path}: {problem}")
    return name


def _shapefile_crs(path: Path) -> bytes:
    """Content of the `.prj` of a shapefile. Raises: InputError where a part of it is a pipe or a device."""
    definition = b""
    for ending in SHAPEFILE_PARTS:
        for part in (path.with_suffix(ending), path.with_suffix(ending.upper())):
            with suppress(FileNotFoundError):
                check_regular(part)
                if ending == ".prj":
                    definition += part.read_bytes()
    return definition


def _choose_layer(path: Path, layer: str | None, advice: str, polygons: bool) -> str:
    """Name of the layer to read. Raises: InputError where there is no such layer, or no clear choice."""
    import pyogrio

    if path.suffix.lower() == ".gpkg":
        kinds = geopackage_layers(path)
    else:
        listed = pyogrio.list_layers(path.absolute())
        kinds = {str(name): str(kind) for name, kind in listed if kind is not None}
    if layer is not None:
        if layer not in kinds:
            raise InputError(
                f"{path}: has no layer {layer!r} (it has {', '.join(kinds) or 'none'}); {advice}"
            )
        return layer
    if not kinds:
        raise InputError(f"{path}: has no layer with geometries; {advice}")
    if not polygons or len(kinds) == 1:
        return next(iter(kinds))
    candidates = [name for name, kind in kinds.items() if any(part in kind.lower() for part in POLYGON_TYPES)]
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(candidates or (f"{name} ({kind.lower()})" for name, kind in kinds.items()))
    problem = "has several layers with polygons" if candidates else "has no layer with polygons"
    raise InputError(f"{path}: {problem} ({names}); name one as FILE:LAYER")


def _read_with_gdal(path: Path, layer: str) -> VectorLayer:
    import pyogrio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of GDAL, on files that it can still read
        warnings.filterwarnings("ignore", category=UserWarning, module="pyogrio")  # M coordinates are dropped
        provenance = (pyogrio.read_info(path, layer=layer)["layer_metadata"] or {}).get("deltavlm")
        try:
            frame = pyogrio.read_dataframe(path, layer=layer, use_arrow=path.suffix.lower() != ".shp")
            _check_text(frame)
        except (pa.ArrowException, NotImplementedError, UnicodeDecodeError):
            frame = _read_rows(path, layer)
    return VectorLayer(frame, json.loads(provenance) if provenance else None)


def _check_text(frame: GeoDataFrame) -> None:
    """Raises: pa.ArrowInvalid for text that is not UTF-8, which pandas does not look at when it is read."""
    for name in frame.select_dtypes("string").columns:
        pa.Array.from_pandas(frame[name]).validate(full=True)


def _read_rows(path: Path, layer: str) -> GeoDataFrame:
    """Rows with curves, which become polygons, or with text that is not UTF-8: Latin-1 then."""
    import pyogrio

    # the count that a GeoPackage stores may be wrong; a query makes GDAL count
    query = 'SELECT * FROM "' + layer.replace('"', '""') + '"'
    selection = {"sql": query} if path.suffix.lower() == ".gpkg" else {"layer": layer}
    try:
        return pyogrio.read_dataframe(path, use_arrow=False, **selection)
    except UnicodeDecodeError:
        return pyogrio.read_dataframe(path, use_arrow=False, encoding="ISO-8859-1", **selection)


def _read_parquet(path: Path) -> VectorLayer:
    import geopandas
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    if problem := grid_problem(metadata.get(b"geo", b"")):
        raise InputError(f"{path}: {problem}")
    for field in pq.read_schema(path):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            geometries = pq.read_table(path, columns=[field.name]).column(0)
            for value in geometries.filter(pc.greater(pc.binary_length(geometries), 9 * MAX_DEPTH)):
                check_depth(value.as_py())
    frame = geopandas.read_parquet(path)
    _check_text(frame)
    provenance = metadata.get(b"deltavlm")
    return VectorLayer(frame, json.loads(provenance) if provenance else None)


def _read_geojson(path: Path) -> VectorLayer:
    import geopandas

    objects, crs_name = _parse_geojson(path.read_text(encoding="utf-8-sig"))
    provenance = objects[0].get("deltavlm") if objects else None
    is_in_pixels = isinstance(provenance, dict) and "coordinates" in provenance
    crs = None if is_in_pixels else crs_name or "EPSG:4326"
    rows = [feature for value in objects for feature in _features(value)]
    columns = None if rows else ["geometry"]
    return VectorLayer(geopandas.GeoDataFrame.from_features(rows, crs=crs, columns=columns), provenance)


def _parse_geojson(text: str) -> tuple[list[Any], str | None]:
    """Top-level objects of GeoJSON, which is one object or one a line, and the name of their CRS if any.

    Raises: one of GEOJSON_ERRORS for other text, or a CRS that is not one plain name.
    """
    try:
        objects = [json.loads(text)]
    except json.JSONDecodeError:
        objects = [json.loads(line.strip("\x1e\r ")) for line in text.split("\n") if line.strip("\x1e\r ")]
    names = [value["crs"]["properties"].get("name", "") for value in objects if value.get("crs")]
    if any(not CRS_NAME.fullmatch(name) for name in names) or len({*names}) > 1:
        raise ValueError(f"its CRS {names[0]!r} is not one name such as EPSG:32631")
    return objects, names[0] if names else None


def _features(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Features of a GeoJSON object; a bare geometry is one without properties."""
    if value["type"] not in ("FeatureCollection", "Feature"):
        value = {"type": "Feature", "geometry": value}
    for feature in value["features"] if value["type"] == "FeatureCollection" else (value,):
        yield {"properties": None, "geometry": None, **feature}
