"""A layer of a vector file with its columns: an output to be read again, the districts of a country."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shapely.errors import ShapelyError

from deltavlm.errors import InputError
from deltavlm.geo.aoi import NAME_OF_CRS, READ_BY_GDAL, UNLIKE_GEOJSON

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["VectorLayer", "list_layers", "read_layer"]

KINDS = "GeoPackage, GeoJSON, FlatGeobuf, GeoParquet or a shapefile"
PARQUET = b"PAR1"


@dataclass(frozen=True, slots=True)
class VectorLayer:
    """The rows of a layer, and what the file says of where they come from, if it does."""

    frame: GeoDataFrame
    provenance: Mapping[str, Any] | None


def read_layer(path: Path, layer: str | None = None, remedy: str = f"give {KINDS}") -> VectorLayer:
    """A layer of a file; without a name the only one, or the first. The remedy ends what errors say.

    Only these formats are opened, and GeoJSON without GDAL: others may lead GDAL to other files or servers.

    Raises:
        InputError: no such file or layer, another format, or a file that is broken.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; {remedy}")
    try:
        with path.open("rb") as file:
            head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b"\x1e \t\r\n")
        if head.startswith(b"{"):
            return _geojson(path)
        if head.startswith(PARQUET):
            return _parquet(path)
        if head.startswith(READ_BY_GDAL):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # GDAL's, of what it can read nevertheless
                return _by_gdal(path, layer, remedy)
    except (RuntimeError, OSError, ShapelyError, *UNLIKE_GEOJSON) as error:  # pyogrio's are RuntimeErrors
        words = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({words}); {remedy}") from error
    raise InputError(f"{path}: is none of {KINDS}; {remedy}")


def list_layers(path: Path) -> tuple[str, ...]:
    """The names of the layers of a GeoPackage; none of a file that holds a single one without a name.

    Raises:
        InputError: a GeoPackage that is broken.
    """
    import pyogrio

    with path.open("rb") as file:
        if not file.read(16).startswith(READ_BY_GDAL[0]):
            return ()
    try:
        return tuple(str(name) for name in pyogrio.list_layers(path)[:, 0])
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read ({error}); give {KINDS}") from error


def _by_gdal(path: Path, layer: str | None, remedy: str) -> VectorLayer:
    import pyogrio

    names = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
    if layer is not None and layer not in names:
        raise InputError(f"{path}: has no layer {layer!r} (it has {', '.join(names) or 'none'}); {remedy}")
    if not names:
        raise InputError(f"{path}: has no layer with places in it; {remedy}")
    chosen = layer or names[0]
    told = (pyogrio.read_info(path, layer=chosen)["layer_metadata"] or {}).get("deltavlm")
    frame = pyogrio.read_dataframe(path, layer=chosen, use_arrow=True)
    return VectorLayer(frame, json.loads(told) if told else None)


def _parquet(path: Path) -> VectorLayer:
    import geopandas
    import pyarrow.parquet as pq

    told = (pq.read_schema(path).metadata or {}).get(b"deltavlm")
    frame = geopandas.read_parquet(path)
    return VectorLayer(frame, json.loads(told) if told else None)


def _geojson(path: Path) -> VectorLayer:
    """GeoJSON in one object or one a line."""
    import geopandas

    text = path.read_text(encoding="utf-8-sig")
    try:
        objects = [json.loads(text)]
    except json.JSONDecodeError:
        objects = [json.loads(line.strip("\x1e\r ")) for line in text.split("\n") if line.strip("\x1e\r ")]
    named = {one["crs"]["properties"]["name"] for one in objects if one.get("crs")}
    if len(named) > 1 or any(not NAME_OF_CRS.fullmatch(name) for name in named):
        raise ValueError("its CRS is not one name such as EPSG:32631")
    told = objects[0].get("deltavlm") if objects else None
    without_place = isinstance(told, dict) and "coordinates" in told
    crs = None if without_place else next(iter(named), "EPSG:4326")
    rows = [feature for whole in objects for feature in _features(whole)]
    columns = None if rows else ["geometry"]
    return VectorLayer(geopandas.GeoDataFrame.from_features(rows, crs=crs, columns=columns), told)


def _features(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if value["type"] == "FeatureCollection":
        yield from value["features"]
    elif value["type"] == "Feature":
        yield value
    else:
        yield {"type": "Feature", "properties": {}, "geometry": value}
