"""Outputs of `deltavlm analyze` read back: rows of their layers, and where they come from."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import InputError
from deltavlm.geo.alignment import LONLAT
from deltavlm.geo.area import READ_BY_GDAL
from deltavlm.geo.sinks import SUFFIXES

__all__ = ["Output", "Row", "read_output"]

Row = dict[str, Any]
"""The values of a feature by column; `geometry` is its shape, or None."""

NEEDED = ("chip_id", "status")
LISTS = ("road_cells", "building_cells", "notes", "inputs", "chip_ids")
"""Columns that are lists or JSON, which some formats keep as text."""

OTHER = "give an output of deltavlm analyze"


@dataclass(frozen=True)
class Output:
    """What a file holds; layers that it does not have are empty."""

    path: Path
    provenance: dict[str, Any]
    crs: CRS | None  # of the geometries
    chips: list[Row]
    changes: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)


def read_output(path: Path) -> Output:
    """The rows and the provenance of an output in any of its formats.

    Raises:
        InputError: missing, empty, damaged, of another kind, or without the layer `chips`.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; {OTHER}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes), so there is nothing to show; {OTHER}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}; {OTHER}")
    try:
        if suffix in (".geojson", ".geojsonl", ".ndjson"):
            return _from_json(path, suffix)
        return _from_parquet(path) if suffix == ".parquet" else _from_tables(path)
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError),
        *(RuntimeError, pa.ArrowException, sqlite3.Error, CRSError, shapely.errors.ShapelyError),
    ) as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as an output ({words}); {OTHER}") from error


def _from_tables(path: Path) -> Output:
    """A GeoPackage or a FlatGeobuf; GDAL sees no other file, which might lead it elsewhere."""
    with path.open("rb") as file:
        if not file.read(16).startswith(READ_BY_GDAL):
            raise InputError(f"{path}: is no GeoPackage or FlatGeobuf, or is damaged; {OTHER}")
    try:
        layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
    except DataSourceError as error:
        raise InputError(f"{path}: is no GeoPackage or FlatGeobuf, or is damaged; {OTHER}") from error
    first = "chips" if path.suffix.lower() == ".gpkg" else layers[0] if layers else "chips"
    if first not in layers:
        held = f"it has {', '.join(layers)}" if layers else "it has none"
        raise InputError(f"{path}: has no layer 'chips' ({held}); {OTHER}, without --layer")
    try:
        told = pyogrio.read_info(path, layer=first).get("layer_metadata") or {}
        meta, table = pyogrio.read_arrow(path, layer=first)
        chips = _rows(table, meta["geometry_name"] or "wkb_geometry")
        _check(path, set(table.column_names), bool(told.get("deltavlm")))
        others: dict[str, list[Row]] = {}
        for name in ("changes", "pairs"):
            if first == "chips" and name in layers:
                more, rows = pyogrio.read_arrow(path, layer=name)
                others[name] = _rows(rows, more["geometry_name"] or "wkb_geometry")
    except (DataLayerError, DataSourceError) as error:
        raise InputError(f"{path}: is damaged ({error}); {OTHER}") from error
    return Output(path, _object(json.loads(told["deltavlm"])), _crs(meta["crs"]), chips, **others)


def _from_parquet(path: Path) -> Output:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    keys = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
    _check(path, set(table.column_names), "deltavlm" in keys)
    column = json.loads(keys["geo"])["columns"]["geometry"]
    crs = column.get("crs")
    return Output(
        path,
        _object(json.loads(keys["deltavlm"])),
        _crs(json.dumps(crs)) if crs else None,
        _rows(table.drop_columns(["bbox"]) if "bbox" in table.column_names else table, "geometry"),
    )


def _from_json(path: Path, suffix: str) -> Output:
    text = path.read_text(encoding="utf-8")
    if suffix == ".geojson":
        whole = _object(json.loads(text))
        provenance, features = whole.get("deltavlm"), whole.get("features")
    else:
        features = [json.loads(line) for line in text.splitlines() if line.strip()]
        provenance = features[0].get("deltavlm") if features else None
    if not isinstance(features, list):
        raise InputError(f"{path}: is no FeatureCollection; {OTHER}")
    rows = []
    for one in features:
        shape = one.get("geometry")
        geometry = shapely.from_geojson(json.dumps(shape)) if shape else None
        rows.append(_object(one.get("properties")) | {"geometry": geometry})
    columns = set(rows[0]) if rows else set(NEEDED)
    _check(path, columns, isinstance(provenance, dict))
    provenance = _object(provenance)
    return Output(path, provenance, None if "coordinates" in provenance else LONLAT, rows)


def _check(path: Path, columns: Iterable[str], is_ours: bool) -> None:
    """Raises: InputError for a layer of somebody else, or another one of ours."""
    if not is_ours:
        raise InputError(f"{path}: does not say that deltavlm wrote it; {OTHER}")
    if not set(NEEDED) <= set(columns):
        raise InputError(f"{path}: holds no chips with their answers; {OTHER}, with its layer 'chips'")


def _rows(table: pa.Table, geometry: str) -> list[Row]:
    shapes: list[BaseGeometry | None] = [None] * len(table)
    if geometry in table.column_names:
        shapes = list(shapely.from_wkb(table[geometry].to_pylist()))
        table = table.drop_columns([geometry])
    rows: list[Row] = table.to_pylist()
    for row, shape in zip(rows, shapes, strict=True):
        for name in LISTS:
            if isinstance(row.get(name), str):
                row[name] = _parsed(row[name])
        row["geometry"] = None if shape is None or shape.is_empty else shape
    return rows


def _parsed(text: str) -> Any:
    """JSON text as what it says; other text as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a JSON object was expected")
    return value


def _crs(text: str | None) -> CRS | None:
    return CRS.from_user_input(text) if text else None
