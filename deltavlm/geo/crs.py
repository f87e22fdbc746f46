"""CRSs: grid files of PROJ that they name, which an input may not choose, and edges of world maps.

GDAL and PROJ open the files that a CRS names (`+nadgrids=/any/file`) as soon as they parse it, and may fetch
them from a server. So definitions are searched as text, before a file is opened where possible.
"""

from __future__ import annotations

import html
import os
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyproj
from numpy.typing import NDArray
from pyproj.enums import TransformDirection

from deltavlm.errors import RasterError
from deltavlm.geo.location import is_local

__all__ = ["CRS_SIDECARS", "TIFF", "are_beyond_edge", "check_named_grids", "grid_problem"]

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # signatures
CRS_SIDECARS = (".hdr", ".prj")  # together with .aux.xml
EDGE_TOLERANCE = 1e-6  # relative: how far a point may come back from longitude and latitude elsewhere
MAX_SCAN_BYTES = 2**22  # of each end of a file, in which a header names a CRS
MAX_TEXT_BYTES = 2**26
GEO_ASCII = 34737  # TIFF tag with the names and definitions of a GeoTIFF's CRS

_PATTERNS = (
    # keys of a PROJ string; `@null` is a grid that changes nothing (Web Mercator)
    r"""(?:\b(?:nadgrids|geoidgrids|(?:xy_|z_)?grids)|\+(?:init|file|model|catalog))\s*=\s*"""
    r"""(?!@?null\b|epsg:|esri:)([^\s"'+<>\\|\x00]+)""",
    r"""\bproj=[^"]*\b(?:init|file|model|catalog)=(?!epsg:|esri:)([^\s"'+<>\\|\x00]+)""",
    r"""^init=(?!epsg:|esri:)([^\s"'+<>\\|\x00]+)""",
    # WKT
    r"""(?:PARAMETERFILE\s*[\[(]\s*"[^"]*"|"PROJ4_GRIDS")\s*,\s*"(?!@?null")([^"]*)""",
    # PROJJSON
    r""""name":\s*"[^"]*\bfile"[^{}]*?"value":\s*"(?!@?null")([^"]*)""",
)
_FILE = [re.compile(pattern, re.IGNORECASE) for pattern in _PATTERNS]
_MARKS = ("grids", "parameterfile", "+init", "+file", "+model", "+catalog", "proj=", "init=", ' file"')


def grid_problem(definition: str | bytes) -> str | None:
    """Sentence on the grid file that a CRS names; None where it names none.

    definition: WKT, PROJJSON, a PROJ string, or any text or bytes with a definition in it.

    >>> grid_problem("+proj=longlat +ellps=bessel +nadgrids=/tmp/x.gsb +no_defs")
    "its CRS names a grid file ('/tmp/x.gsb'), which is not opened; give it the EPSG code of its CRS"
    >>> grid_problem("+proj=merc +a=6378137 +nadgrids=@null"), grid_problem("EPSG:32633")
    (None, None)
    """
    text = definition if isinstance(definition, str) else definition.decode("latin-1")
    if "&" in text:
        text = html.unescape(text)  # XML
    lower = text.lower()
    if not any(mark in lower for mark in _MARKS):
        return None
    for pattern in _FILE:
        if match := pattern.search(text):
            return (
                f"its CRS names a grid file ({match[1]!r}), which is not opened; "
                "give it the EPSG code of its CRS"
            )
    return None


def check_named_grids(location: str) -> None:
    """Check that neither the header of a local image nor a text beside it has a CRS that names a grid file,
    which GDAL would open together with the image.

    Raises:
        RasterError: one of them has.
    """
    if not is_local(location):
        return
    stem = str(Path(location).with_suffix(""))
    texts = [location + ".aux.xml", *(stem + case(end) for end in CRS_SIDECARS for case in (str, str.upper))]
    for name in (location, *texts):
        try:
            with Path(name).open("rb") as file:
                definition = _geo_header(file) if name == location else file.read(MAX_TEXT_BYTES)
        except (OSError, ValueError, struct.error):
            continue  # opening the image says what is wrong
        if problem := grid_problem(definition):
            raise RasterError(f"{name}: {problem}")


def _geo_header(file: BinaryIO) -> bytes:
    """The part of an image file that may define a CRS as text: the tag of a TIFF; else both ends."""
    head = file.read(16)
    if not head.startswith(TIFF):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        ends = file.read(MAX_SCAN_BYTES)
        file.seek(max(file.tell(), size - MAX_SCAN_BYTES))
        return ends + file.read(MAX_SCAN_BYTES)
    order = "<" if head[:2] == b"II" else ">"
    is_big = head[2:4] in (b"+\0", b"\0+")
    offset, count_format, entry_format = (8, "Q", "HHQQ") if is_big else (4, "H", "HHII")
    (first,) = struct.unpack_from(order + entry_format[-1], head, offset)
    file.seek(first)
    (count,) = struct.unpack(order + count_format, file.read(struct.calcsize(order + count_format)))
    entry = struct.Struct(order + entry_format)
    for tag, _, length, where in entry.iter_unpack(file.read(min(count, 2**16) * entry.size)):
        if tag == GEO_ASCII:
            file.seek(where)
            return file.read(min(length, MAX_TEXT_BYTES))
    return b""


def are_beyond_edge(points: NDArray[np.float64], wkt: str) -> NDArray[np.bool_]:
    """(N,): True for points (N, 2) beyond the curved edge of a world map, as of the sinusoidal projection.

    PROJ goes on with the ground of the other side there, which no map shows. Maps whose edge is straight, as
    Mercator's, may go on.
    """
    transformer = _transformer_of_curved_map(wkt)
    if transformer is None or not len(points):
        return np.zeros(len(points), bool)
    back = np.stack(_there_and_back(transformer, *points.T), axis=1)
    with np.errstate(invalid="ignore"):
        is_off: NDArray[np.bool_] = np.any(
            ~(np.abs(back - points) <= EDGE_TOLERANCE * (1 + np.abs(points))), axis=1
        )
    return is_off


def _there_and_back(transformer: pyproj.Transformer, x: Any, y: Any) -> tuple[Any, Any]:
    """Coordinates after a transformation and its inverse."""
    x_back, y_back = transformer.transform(*transformer.transform(x, y), direction=TransformDirection.INVERSE)
    return x_back, y_back


@lru_cache(maxsize=64)
def _transformer_of_curved_map(wkt: str) -> pyproj.Transformer | None:
    """Transformer to longitude and latitude, if PROJ has places for points beyond its edge, and the map is
    not as wide everywhere; else None."""
    crs = pyproj.CRS.from_wkt(wkt)
    if not crs.is_projected:
        return None
    try:
        transformer = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    except pyproj.exceptions.ProjError:
        return None
    turns = []
    for latitude in (0.0, 45.0):
        longitudes = np.arange(-180.0, 180.0)
        x, y = transformer.transform(
            longitudes, np.full_like(longitudes, latitude), direction=TransformDirection.INVERSE
        )
        x, y = x[np.isfinite(x)], y[np.isfinite(x)]
        if not len(x):
            return None
        beyond = x.max() + 0.1 * np.ptp(x), y[x.argmax()]
        turns.append(beyond[0] - _there_and_back(transformer, *beyond)[0])
    goes_on = np.isfinite(turns[1]) and abs(turns[1]) > 1
    return transformer if goes_on and not np.isclose(*turns) else None
