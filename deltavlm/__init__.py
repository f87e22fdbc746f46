"""Ask what changed between two images of one place, in words, and put the answers on the map.

Importing this package loads nothing heavy: torch, rasterio and geopandas are imported where they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["__version__", "load_model"]

__version__ = "0.1.0"

_MODULES = {"load_model": "deltavlm.model.predictor"}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used (PEP 562)."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
