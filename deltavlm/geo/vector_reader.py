"""Reader of one layer of a vector file with its columns: an output of ours, or areas to summarize by."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shapely.errors import ShapelyError

from deltavlm.errors import InputError
from deltavlm.geo.aoi import GDAL_SIGNATURES, GEOJSON_ERRORS, parse_geojson

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["VectorLayer", "list_layers", "read_layer"]

FORMATS = "GeoPackage, GeoJSON, FlatGeobuf, GeoParquet or a shapefile"
PARQUET_SIGNATURE = b"PAR1"


@dataclass(frozen=True, slots=True)
class VectorLayer:
    """Rows of a layer, and the provenance that deltavlm has written to the file, if it has."""

    frame: GeoDataFrame
    provenance: Mapping[str, Any] | None


def read_layer(path: Path, layer: str | None = None, advice: str = f"give {FORMATS}") -> VectorLayer:
    """Read a layer of a file; without a name the only one, or the first. Errors end with `advice`.

    Only these formats are opened, and GeoJSON without GDAL: others may lead GDAL to other files or servers.

    Raises:
        InputError: no such file or layer, another format, or a file that is broken.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {problem}; {advice}")
    try:
        with path.open("rb") as file:
            head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b"\x1e \t\r\n")
        if head.startswith(b"{"):
            return _read_geojson(path)
        if head.startswith(PARQUET_SIGNATURE):
            return _read_parquet(path)
        if head.startswith(GDAL_SIGNATURES):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of GDAL, on files that it can still read
                return _read_with_gdal(path, layer, advice)
    except (RuntimeError, OSError, ShapelyError, *GEOJSON_ERRORS) as error:  # pyogrio's are RuntimeErrors
        message = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({message}); {advice}") from error
    raise InputError(f"{path}: is none of {FORMATS}; {advice}")


def list_layers(path: Path) -> tuple[str, ...]:
    """Names of the layers of a GeoPackage; none for a format with a single, unnamed layer.

    Raises:
        InputError: a GeoPackage that is broken.
    """
    import pyogrio

    with path.open("rb") as file:
        if not file.read(16).startswith(GDAL_SIGNATURES[0]):
            return ()
    try:
        return tuple(str(name) for name in pyogrio.list_layers(path)[:, 0])
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read ({error}); give {FORMATS}") from error


def _read_with_gdal(path: Path, layer: str | None, advice: str) -> VectorLayer:
    import pyogrio

    names = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
    if layer is not None and layer not in names:
        raise InputError(f"{path}: has no layer {layer!r} (it has {', '.join(names) or 'none'}); {advice}")
    if not names:
        raise InputError(f"{path}: has no layer with geometries; {advice}")
    chosen = layer or names[0]
    provenance = (pyogrio.read_info(path, layer=chosen)["layer_metadata"] or {}).get("deltavlm")
    frame = pyogrio.read_dataframe(path, layer=chosen, use_arrow=True)
    return VectorLayer(frame, json.loads(provenance) if provenance else None)


def _read_parquet(path: Path) -> VectorLayer:
    import geopandas
    import pyarrow.parquet as pq

    provenance = (pq.read_schema(path).metadata or {}).get(b"deltavlm")
    frame = geopandas.read_parquet(path)
    return VectorLayer(frame, json.loads(provenance) if provenance else None)


def _read_geojson(path: Path) -> VectorLayer:
    import geopandas

    objects, crs_name = parse_geojson(path.read_text(encoding="utf-8-sig"))
    provenance = objects[0].get("deltavlm") if objects else None
    is_in_pixels = isinstance(provenance, dict) and "coordinates" in provenance
    crs = None if is_in_pixels else crs_name or "EPSG:4326"
    rows = [feature for value in objects for feature in _features(value)]
    columns = None if rows else ["geometry"]
    return VectorLayer(geopandas.GeoDataFrame.from_features(rows, crs=crs, columns=columns), provenance)


def _features(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Features of a GeoJSON object; a bare geometry is one without properties."""
    if value["type"] == "FeatureCollection":
        yield from value["features"]
    elif value["type"] == "Feature":
        yield value
    else:
        yield {"type": "Feature", "properties": {}, "geometry": value}
