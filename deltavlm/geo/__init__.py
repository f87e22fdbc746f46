"""Geospatial input and output: raster pairs read as chips on one pixel grid, features written as maps.

`pair.open_pair` reads, `grid.ChipGrid` cuts, `sinks.open_sink` writes; the other modules serve these three.
Nothing here knows of models.

Importing this package unsets PROJ_DATA, PROJ_LIB and GDAL_DATA: set by another program (QGIS, OSGeo4W, conda)
they direct rasterio to a foreign PROJ database, and every CRS fails. `DELTAVLM_KEEP_PROJ=1` keeps them.
"""

from __future__ import annotations

import os

__all__ = ["UNSET_VARIABLES"]

UNSET_VARIABLES: dict[str, str] = {}
"""Variables unset on import, with their values; `deltavlm doctor` shows them."""

if os.environ.get("DELTAVLM_KEEP_PROJ") != "1":
    for _name in ("PROJ_DATA", "PROJ_LIB", "GDAL_DATA"):
        if _name in os.environ:
            UNSET_VARIABLES[_name] = os.environ.pop(_name)
