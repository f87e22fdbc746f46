"""Arrow tables of features, and writers of FlatGeobuf and GeoParquet, in the CRS of the raster."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import shapely

from deltavlm.geo.features import Feature, Layer

if TYPE_CHECKING:
    from rasterio.crs import CRS

__all__ = ["GEOMETRY", "Tables", "write_flatgeobuf", "write_geoparquet", "write_table"]

GEOMETRY = "geometry"
ROW_GROUP = 8192  # rows that a reader decompresses, or skips, together
TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "list": pa.list_(pa.string()),
    "json": pa.json_(),
}


class Tables:
    """Sink that collects the features of each layer as an Arrow table, which is written at the end."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.batches: dict[str, list[pa.RecordBatch]] = {name: [] for name in self.layers}

    def write(self, layer: str, features: Iterable[Feature]) -> None:
        if layer in self.layers:
            self.batches[layer].append(_batch(self.layers[layer], list(features)))

    def table(self, name: str) -> pa.Table:
        return pa.Table.from_batches(self.batches[name], _schema(self.layers[name]))


def _schema(layer: Layer) -> pa.Schema:
    columns = [
        pa.field(column.name, TYPES[column.type], metadata={"description": column.description})
        for column in layer.fields
    ]
    return pa.schema([*columns, pa.field(GEOMETRY, pa.binary())])


def _batch(layer: Layer, features: list[Feature]) -> pa.RecordBatch:
    rows = [feature.row(layer) for feature in features]
    columns = []
    for column in layer.fields:
        values = [row[column.name] for row in rows]
        if column.type == "json":
            texts = [None if value is None else json.dumps(value, allow_nan=False) for value in values]
            columns.append(pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string())))
        else:
            columns.append(pa.array(values, TYPES[column.type]))
    shapes = [None if feature.geometry.is_empty else feature.geometry for feature in features]
    columns.append(pa.array(shapely.to_wkb(np.array(shapes, dtype=object), byte_order=1), pa.binary()))
    return pa.RecordBatch.from_arrays(columns, schema=_schema(layer))


def write_table(table: pa.Table, path: Path, layer: str, crs: CRS | None, **options: Any) -> None:
    """Write a table with GDAL; `options` are those of `pyogrio.write_arrow`."""
    import pyogrio

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # pixel coordinates have none
        pyogrio.write_arrow(
            table,
            path,
            layer=layer,
            geometry_name=GEOMETRY,
            geometry_type="Unknown" if len(geometry_types(table)) > 1 else "Polygon",
            crs=crs.to_wkt() if crs else None,
            **options,
        )


def geometry_types(table: pa.Table) -> list[str]:
    """Geometry types: Polygon, and MultiPolygon where a polygon was cut at the antimeridian."""
    shapes = (shape for chunk in table[GEOMETRY].chunks for shape in chunk.to_pylist())
    kinds = {shape[1:5] for shape in shapes if shape is not None}  # WKB, little-endian
    return ["Polygon", "MultiPolygon"] if b"\x06\x00\x00\x00" in kinds else ["Polygon"]


def write_flatgeobuf(path: Path, tables: Tables, crs: CRS | None, provenance: Mapping[str, object]) -> None:
    """Write the only layer of `tables`, unordered; the provenance is its metadata item "deltavlm"."""
    import pyogrio

    (layer,) = tables.layers
    table = tables.table(layer)
    options: dict[str, Any] = {"layer_metadata": {"deltavlm": json.dumps(provenance)}}
    if table[GEOMETRY].null_count:  # the spatial index cannot hold null geometries
        options["layer_options"] = {"SPATIAL_INDEX": "NO"}
    write_table(table, path, layer, crs, driver="FlatGeobuf", **options)
    # GDAL does not report a full disk when it closes the file; reading a truncated one raises by itself
    if len(pyogrio.raw.read(path, columns=[])[2]) != len(table):
        raise OSError(f"layer {layer} is incomplete")


def write_geoparquet(path: Path, tables: Tables, crs: CRS | None, provenance: Mapping[str, object]) -> None:
    """Write the only layer of `tables` as GeoParquet 1.1; the provenance is the file metadata key "deltavlm".

    Rows are in the order of the grid, so the rows of a group are neighbors, and a query by bounding box
    reads few groups.
    """
    import pyarrow.parquet as pq
    import pyproj

    (layer,) = tables.layers
    table = tables.table(layer)
    chunks = table[GEOMETRY].chunks  # one at a time, as shapes take much more memory than their WKB
    bounds = np.concatenate(
        [np.empty((0, 4)), *(shapely.bounds(shapely.from_wkb(chunk.to_pylist())) for chunk in chunks)]
    )
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = pa.StructArray.from_arrays(
        [pa.array(side, from_pandas=True) for side in bounds.T.reshape(4, -1)], names=sides
    )
    column = {
        "encoding": "WKB",
        "geometry_types": geometry_types(table),
        "crs": pyproj.CRS.from_wkt(crs.to_wkt()).to_json_dict() if crs else None,
        "covering": {"bbox": {side: ["bbox", side] for side in sides}},
    }
    if len(table) > table[GEOMETRY].null_count:
        column["bbox"] = [
            *np.nanmin(bounds[:, :2], axis=0).tolist(),
            *np.nanmax(bounds[:, 2:], axis=0).tolist(),
        ]
    geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
    keys = {"geo": json.dumps(geo), "deltavlm": json.dumps(provenance)}
    table = table.append_column("bbox", boxes).replace_schema_metadata(keys)
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)
