"""Pixels and ground: two rasters read as chips on one grid, and features written as maps. No model in here.

`pair.open_pair` reads, `grid.ChipGrid` cuts, `sinks.open_sink` writes; the other modules are their parts.

Importing this package unsets PROJ_DATA, PROJ_LIB and GDAL_DATA: set by another program (QGIS, OSGeo4W, conda)
they lead rasterio to a foreign database, and every CRS fails. `DELTAVLM_KEEP_PROJ=1` keeps them.
"""

from __future__ import annotations

import os

__all__ = ["UNSET_VARIABLES"]

UNSET_VARIABLES: dict[str, str] = {}
"""What was unset on import, with its values: `deltavlm doctor` shows it."""

if os.environ.get("DELTAVLM_KEEP_PROJ") != "1":
    for _name in ("PROJ_DATA", "PROJ_LIB", "GDAL_DATA"):
        if _name in os.environ:
            UNSET_VARIABLES[_name] = os.environ.pop(_name)
