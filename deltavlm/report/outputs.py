"""Outputs of `deltavlm analyze` read back: rows of their layers, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasterio.crs import CRS

from deltavlm.errors import InputError
from deltavlm.geo.sinks import SUFFIXES
from deltavlm.geo.vector_reader import list_layers, read_layer

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["Output", "Row", "read_output"]

Row = dict[str, Any]
"""The values of a feature by column; `geometry` is its shape, or None."""

NEEDED = ("chip_id", "status")
LISTS = ("road_cells", "building_cells", "notes", "inputs", "chip_ids")
"""Columns that are lists or JSON, which some formats keep as text."""

BESIDE = ("changes", "pairs")
"""Layers beside `chips`, which a GeoPackage may hold."""

OTHER = "give an output of deltavlm analyze"


@dataclass(frozen=True)
class Output:
    """What a file holds; layers that it does not have are empty."""

    path: Path
    provenance: Mapping[str, Any]
    crs: CRS | None  # of the geometries
    chips: list[Row]
    changes: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)


def read_output(path: Path) -> Output:
    """The rows and the provenance of an output in any of its formats.

    Raises:
        InputError: missing, empty, damaged, of another kind, or without the layer `chips`.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes), so there is nothing to show; {OTHER}")
    if path.suffix.lower() not in SUFFIXES and not path.is_dir():
        raise InputError(f"{path}: suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}; {OTHER}")
    has_chips = path.suffix.lower() == ".gpkg"
    found = read_layer(path, "chips" if has_chips else None, OTHER)
    if not isinstance(found.provenance, dict):
        raise InputError(f"{path}: does not say that deltavlm wrote it; {OTHER}")
    frame = found.frame
    if len(frame) and not {*NEEDED} <= {*frame.columns}:
        raise InputError(f"{path}: holds no chips with their answers; {OTHER}, with its layer 'chips'")
    beside = {*list_layers(path)} & {*BESIDE}
    others = {name: rows_of(read_layer(path, name, OTHER).frame) for name in sorted(beside)}
    crs = None if frame.crs is None else CRS.from_wkt(frame.crs.to_wkt())
    return Output(path, found.provenance, crs, rows_of(frame), **others)


def rows_of(frame: GeoDataFrame) -> list[Row]:
    """The rows of a layer as plain values: NaN is None, text that is a list becomes one."""
    columns = {name: [_plain(name, value) for value in frame[name].tolist()] for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(name: str, value: Any) -> Any:
    if name == "geometry":
        return None if value is None or value.is_empty else value
    if name in LISTS and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    if hasattr(value, "tolist"):
        return value.tolist()  # a list of Parquet
    return None if value != value else value  # NaN
