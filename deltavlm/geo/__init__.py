"""Geospatial input and output: raster pairs read as chips on one pixel grid, features written as maps.

`pair.open_pair` reads, `grid.ChipGrid` cuts, `sinks.open_sink` writes; the other modules serve these three.
Nothing here knows of models. The way of the data, where a row uses those above it:

    geobox, grid                   pixel grids and chip grids; arithmetic only
    location, crs, vrt, drivers    a path or URL, checked and opened as an image and nothing else
    bands, nodata, control_points  bands for red, green and blue; pixels without data; what places them
    source                         one open raster in its own pixels (dates, identity)
    georeferencing, alignment      checks of two sources, and their common grid
    view, cloud_source             a source on that grid, by windows or warped, with its cloud mask
    pair_reader                    chips of both dates as RGB uint8 (radiometry); by rows in strips
    pair_measurements, pair_notes  stretches, shift and color match from samples; notes for the user
    pair                           a pair, opened from two locations and ReadOptions
    features, sinks                answers as vector features, written as GeoJSON, GeoPackage or tables
    blend, polygonize, cog         masks of chips as a mosaic, polygons and rasters

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
