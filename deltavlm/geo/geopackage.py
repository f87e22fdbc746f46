"""GeoPackage writer: all layers in one file, with QGIS styles and column descriptions."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deltavlm.errors import OutputError
from deltavlm.geo.features import Layer
from deltavlm.geo.styles import layer_style
from deltavlm.geo.tables import GEOMETRY, Tables, write_table

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from rasterio.crs import CRS

__all__ = ["is_open_elsewhere", "prepare_replacement", "sqlite_sidecars", "write_geopackage"]

# Tables of the GeoPackage standard (1.2, annex F.9) and of QGIS.
DATA_COLUMNS = """
CREATE TABLE IF NOT EXISTS gpkg_data_columns (
    table_name TEXT NOT NULL, column_name TEXT NOT NULL, name TEXT, title TEXT, description TEXT,
    mime_type TEXT, constraint_name TEXT, PRIMARY KEY (table_name, column_name), UNIQUE (table_name, name));
INSERT INTO gpkg_extensions (table_name, column_name, extension_name, definition, scope)
    SELECT 'gpkg_data_columns', NULL, 'gpkg_schema', 'http://www.geopackage.org/spec121/#extension_schema',
    'read-write' WHERE NOT EXISTS (SELECT 1 FROM gpkg_extensions WHERE extension_name = 'gpkg_schema');
"""
DESCRIBE = """
INSERT INTO gpkg_data_columns (table_name, column_name, title, description) VALUES (?, ?, ?, ?)
    ON CONFLICT (table_name, column_name)
    DO UPDATE SET title = excluded.title, description = excluded.description
"""
LAYER_STYLES = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')));
INSERT INTO gpkg_contents (table_name, data_type, identifier)
    VALUES ('layer_styles', 'attributes', 'layer_styles');
"""
# catalog and schema are '': QGIS does not find a style where they are NULL
STYLE = """
INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,
    styleQML, styleSLD, useAsDefault, description, owner)
    VALUES ('', '', ?, 'geom', 'deltavlm', ?, '', 1, '', '')
"""


def write_geopackage(path: Path, tables: Tables, crs: CRS | None, provenance: Mapping[str, object]) -> None:
    """Write all layers of `tables`; the provenance is the metadata item "deltavlm" of each layer."""
    # as metadata of the file, GDAL would write it to an .aux.xml next to it whenever the file is read
    metadata = {"deltavlm": json.dumps(provenance)}
    # version 1.2: newer ones make QGIS 3.22 and GDAL 3.6 warn
    options: dict[str, Any] = {"dataset_options": {"VERSION": "1.2"}}
    for name in tables.layers:
        write_table(tables.table(name), path, name, crs, driver="GPKG", layer_metadata=metadata, **options)
        options = {"append": True}
    with closing(sqlite3.connect(path)) as database:
        for name in tables.layers:
            _check_complete(database, name, tables.table(name)[GEOMETRY])
        _write_descriptions(database, tables.layers.values())
        _write_styles(database, tables.layers.values())
        database.commit()


def _check_complete(database: sqlite3.Connection, layer: str, shapes: pa.ChunkedArray) -> None:
    """Compare the counts of rows and of index entries with what was written: GDAL writes the spatial index
    when it closes the file, and does not report a full disk then.

    Raises: OSError.
    """
    query = "SELECT (SELECT count(*) FROM {0}), (SELECT count(*) FROM rtree_{0}_geom)"
    try:
        (counts,) = database.execute(query.format(layer))
    except sqlite3.OperationalError as error:
        raise OSError(f"layer {layer} is incomplete: {error}") from error
    if counts != (len(shapes), len(shapes) - shapes.null_count):
        raise OSError(f"layer {layer} is incomplete")


def _write_descriptions(database: sqlite3.Connection, layers: Iterable[Layer]) -> None:
    database.executescript(DATA_COLUMNS)
    rows = [
        (layer.name, column.name, column.alias, column.description)
        for layer in layers
        for column in layer.fields
    ]
    database.executemany(DESCRIBE, rows)


def _write_styles(database: sqlite3.Connection, layers: Iterable[Layer]) -> None:
    database.executescript(LAYER_STYLES)
    styles = [(layer.name, layer_style(layer)) for layer in layers]
    database.executemany(STYLE, [row for row in styles if row[1]])


def sqlite_sidecars(path: Path) -> list[Path]:
    """Files that SQLite may keep next to a database."""
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")]


# Bytes that SQLite locks (its os.h): a process with an open database with a write-ahead log shares them.
SHARED_FIRST, SHARED_SIZE = 0x40000002, 510


def is_open_elsewhere(path: Path) -> bool:
    """True where another process visibly has the database open; changes nothing.

    Asking SQLite would write to the file. Where Python cannot query locks (Windows), this is unknown until
    `prepare_replacement`.
    """
    if sys.platform == "win32":
        return False
    try:
        with path.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks on that file system
        return False
    return False


def prepare_replacement(path: Path) -> None:
    """Checkpoint and remove the write-ahead log of a GeoPackage, else its replacement would inherit it.

    Raises:
        OutputError: another program, perhaps QGIS, has the file open.
    """
    if path.exists():
        try:
            with closing(sqlite3.connect(path, timeout=1)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                database.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"{path}: is open in another program, perhaps QGIS; close it there ({error})"
            ) from error
        except sqlite3.DatabaseError:
            pass  # not a database, so it has no log
    for sidecar in sqlite_sidecars(path):
        sidecar.unlink(missing_ok=True)
