"""Ask what changed between two images of one place, in words, and put the answers on the map.

Importing this package loads nothing heavy: torch, rasterio and geopandas come in where they are used.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
