"""GeoPackage: all layers in one file, which opens in QGIS with its styles and the meaning of its columns."""

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

__all__ = ["companions", "is_open_elsewhere", "settle", "write_geopackage"]

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
    """Write all layers; the provenance is the metadata "deltavlm" of each."""
    # as metadata of the whole file, GDAL would write it to an .aux.xml beside the file whenever that is read
    metadata = {"deltavlm": json.dumps(provenance)}
    # version 1.2: newer ones make QGIS 3.22 and GDAL 3.6 warn
    options: dict[str, Any] = {"dataset_options": {"VERSION": "1.2"}}
    for name in tables.layers:
        write_table(tables.table(name), path, name, crs, driver="GPKG", layer_metadata=metadata, **options)
        options = {"append": True}
    with closing(sqlite3.connect(path)) as database:
        for name in tables.layers:
            _check_whole(database, name, tables.table(name)[GEOMETRY])
        _describe(database, tables.layers.values())
        _style(database, tables.layers.values())
        database.commit()


def _check_whole(database: sqlite3.Connection, layer: str, shapes: pa.ChunkedArray) -> None:
    """Find out whether all was written: GDAL makes the index when it closes the file, and says nothing of a
    disk that is full then.

    Raises: OSError.
    """
    count = "SELECT (SELECT count(*) FROM {0}), (SELECT count(*) FROM rtree_{0}_geom)"
    try:
        (found,) = database.execute(count.format(layer))
    except sqlite3.OperationalError as error:
        raise OSError(f"layer {layer} is not whole: {error}") from error
    if found != (len(shapes), len(shapes) - shapes.null_count):
        raise OSError(f"layer {layer} is not whole")


def _describe(database: sqlite3.Connection, layers: Iterable[Layer]) -> None:
    database.executescript(DATA_COLUMNS)
    rows = [(layer.name, one.name, one.alias, one.description) for layer in layers for one in layer.fields]
    database.executemany(DESCRIBE, rows)


def _style(database: sqlite3.Connection, layers: Iterable[Layer]) -> None:
    database.executescript(LAYER_STYLES)
    styles = [(layer.name, layer_style(layer)) for layer in layers]
    database.executemany(STYLE, [row for row in styles if row[1]])


def companions(path: Path) -> list[Path]:
    """The files that SQLite may keep beside a database."""
    return [path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")]


# The bytes that SQLite locks (its os.h): whoever has a database with a write-ahead log open shares them.
SHARED_FIRST, SHARED_SIZE = 0x40000002, 510


def is_open_elsewhere(path: Path) -> bool:
    """Whether another process has the database open, as far as it shows; changes nothing.

    To ask SQLite would write to the file. Where Python cannot ask for locks (Windows) it is not known before
    `settle`.
    """
    if sys.platform == "win32":
        return False
    try:
        with path.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
    except BlockingIOError:
        return True
    except OSError:  # not there, or no locks on that file system
        return False
    return False


def settle(path: Path) -> None:
    """Make a GeoPackage ready to be replaced: a new file must not inherit the write-ahead log of the old.

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
                f"{path}: is open in another program, QGIS perhaps; close it there ({error})"
            ) from error
        except sqlite3.DatabaseError:
            pass  # no database at all: nothing to settle
    for left in companions(path):
        left.unlink(missing_ok=True)
