"""GeoPackages of others made safe to read: tables as they are, SQL views as tables, under a deadline.

A GeoPackage is an SQLite database, so it may hold queries (views, generated columns) that run when a layer is
read, and may run without end. GDAL gets files with plain tables only.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from deltavlm.errors import InputError
from deltavlm.files import check_regular
from deltavlm.geo.crs import grid_problem
from deltavlm.geo.geopackage import sqlite_sidecars
from deltavlm.geo.wkb import MAX_DEPTH, check_depth

__all__ = ["check_geometries", "geopackage_layers", "plain_geopackage"]

DEADLINE_S = 10.0
MAX_COPY_BYTES = 2**30
MAX_VALUE_BYTES = 2**28
MAX_PATTERN = 100  # characters of a LIKE pattern: matching one takes no step at which a query can be stopped
STEP = 10_000  # instructions of SQLite between two looks at the clock
PLAIN = re.compile(r"\s*CREATE\s+(?:TABLE\b|VIRTUAL\s+TABLE\s+\S+\s+USING\s+rtree\b)", re.IGNORECASE)
METADATA = ("gpkg_spatial_ref_sys", "gpkg_metadata", "gpkg_metadata_reference", "gpkg_data_columns")
OF_LAYER = ("gpkg_contents", "gpkg_geometry_columns")

ENVELOPE_BYTES = (0, 32, 48, 48, 64, 0, 0, 0)  # between the header of a geometry and its WKB, by code

LAYERS = """
SELECT gpkg_contents.table_name, geometry_type_name FROM gpkg_contents
    JOIN gpkg_geometry_columns ON gpkg_contents.table_name = gpkg_geometry_columns.table_name
    WHERE data_type = 'features' ORDER BY gpkg_contents.rowid
"""


def geopackage_layers(path: Path) -> dict[str, str]:
    """Names of the layers with geometries, and their geometry types in capitals, in the order of the file.

    Raises:
        InputError: what describes its layers is a query, or its CRS names a grid file.
        sqlite3.Error: it is damaged, or lacks what a GeoPackage has.
        OSError: it cannot be looked at.
    """
    with _opened(path) as database:
        are_plain = {name.lower(): is_plain for name, is_plain in _plain_tables(database).items()}
        for name in (*OF_LAYER, *METADATA, "gpkg_extensions", "gpkg_ogr_contents"):
            if not are_plain.get(name, True):
                raise InputError(f"{path}: its table {name} is computed by a query; save it again, as tables")
        for row in database.execute("SELECT * FROM gpkg_spatial_ref_sys"):
            if problem := grid_problem(" ".join(value for value in row if isinstance(value, str))):
                raise InputError(f"{path}: {problem}")
        return {str(name): str(kind).upper() for name, kind in database.execute(LAYERS)}


@contextmanager
def plain_geopackage(path: Path, layer: str) -> Iterator[Path]:
    """GeoPackage in which `layer` is a plain table: the file itself, or a temporary copy of that layer where
    the file holds a query.

    Raises:
        InputError: the query takes more than DEADLINE_S.
        sqlite3.Error: it fails, or gives more than MAX_COPY_BYTES.
    """
    with _opened(path) as database:
        is_plain = all(_plain_tables(database).values())
    if is_plain:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "layer.gpkg"
        with _opened(path, copy=copy) as database:
            _copy_layer(database, path, layer)
        yield copy


def check_geometries(path: Path, layer: str) -> None:
    """Check the depth of the geometries of a plain table, which GDAL passes on as they are stored.

    Raises: ValueError, as `check_depth`; sqlite3.Error for a damaged file.
    """
    with _opened(path) as database:
        database.set_progress_handler(None, 0)  # no query of others runs here
        columns = database.execute(
            "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
        ).fetchall()
        for (column,) in columns:
            name = _quoted(str(column))
            long = f"SELECT {name} FROM {_quoted(layer)} WHERE length({name}) > {9 * MAX_DEPTH}"
            for (value,) in database.execute(long):
                if isinstance(value, bytes):
                    check_depth(value[8 + ENVELOPE_BYTES[value[3] >> 1 & 7] :])


def _plain_tables(database: sqlite3.Connection) -> dict[str, bool]:
    """Names of tables and views; True for tables of stored values, and for the spatial index of one."""
    rows = database.execute("SELECT name, type, sql FROM sqlite_master WHERE type IN ('table', 'view')")
    computed = "SELECT count(*) FROM pragma_table_xinfo(?) WHERE hidden IN (2, 3)"
    return {
        name: kind == "table"
        and bool(PLAIN.match(sql or ""))
        and database.execute(computed, (name,)).fetchone() == (0,)
        for name, kind, sql in rows.fetchall()
    }


@contextmanager
def _opened(path: Path, *, copy: Path | None = None) -> Iterator[sqlite3.Connection]:
    """Connection to a GeoPackage, or to a new `copy` of it, whose statements end at the deadline and take
    little memory. Errors name `path`."""
    for name in (path, *sqlite_sidecars(path)):
        with suppress(FileNotFoundError):
            check_regular(name)
    uri = _uri(copy, "rwc") if copy else _uri(path, "ro")
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN)
        database.execute("PRAGMA trusted_schema = OFF")
        database.set_progress_handler(_timer(), STEP)
        try:
            yield database
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
            raise InputError(
                f"{path}: a query in it takes more than {DEADLINE_S:g} s; save its result as a table"
            ) from error


def _timer() -> Callable[[], bool]:
    end = time.monotonic() + DEADLINE_S
    return lambda: time.monotonic() > end


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


def _copy_layer(database: sqlite3.Connection, source: Path, layer: str) -> None:
    """Copy a layer, whose rows may be those of a query, as a table into an empty database."""
    database.execute("ATTACH ? AS source", (_uri(source, "ro"),))
    (page_bytes,) = database.execute("PRAGMA main.page_size").fetchone()
    database.execute(f"PRAGMA main.max_page_count = {MAX_COPY_BYTES // page_bytes}")
    for name in ("application_id", "user_version"):
        (number,) = database.execute(f"PRAGMA source.{name}").fetchone()
        database.execute(f"PRAGMA main.{name} = {int(number)}")
    names = {name for (name,) in database.execute("SELECT name FROM source.sqlite_master")}
    for name in names.intersection(METADATA):
        database.execute(f"CREATE TABLE main.{name} AS SELECT * FROM source.{name}")
    for name in OF_LAYER:
        database.execute(
            f"CREATE TABLE main.{name} AS SELECT * FROM source.{name} WHERE table_name = ?", (layer,)
        )
    columns = database.execute("SELECT name, type FROM pragma_table_xinfo(?, 'source')", (layer,)).fetchall()
    described = ", ".join(f"{_quoted(name)} {_quoted(kind) if kind else ''}" for name, kind in columns)
    database.execute(f"CREATE TABLE main.{_quoted(layer)} ({described})")
    listed = ", ".join(_quoted(name) for name, _ in columns)
    database.execute("BEGIN")
    database.execute(
        f"INSERT INTO main.{_quoted(layer)} ({listed}) SELECT {listed} FROM source.{_quoted(layer)}"
    )
    database.execute("COMMIT")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
