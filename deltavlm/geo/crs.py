"""Coordinate reference systems that name a grid file of PROJ, which an input file may not choose.

GDAL and PROJ open the files that a CRS names (`+nadgrids=/any/file`) as soon as they parse it, and may fetch
them from a server. So definitions are searched as text, before a file is opened where possible.
"""

from __future__ import annotations

import html
import re

__all__ = ["grid_problem"]

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
