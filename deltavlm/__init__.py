"""Python API: `analyze`, `open_pair` and `load_model`, imported on first use.

    from deltavlm import analyze
    result = analyze("before.tif", "after.tif", output="changes.gpkg")

Importing this package loads nothing heavy: torch, rasterio and geopandas are imported where they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deltavlm.version import __version__

if TYPE_CHECKING:
    from deltavlm.api import analyze, open_pair
    from deltavlm.model.kinds import load_model

__all__ = ["__version__", "analyze", "load_model", "open_pair"]

_MODULES = {  # a model is loaded without rasterio, as on a training machine
    "analyze": "deltavlm.api",
    "open_pair": "deltavlm.api",
    "load_model": "deltavlm.model.kinds",
}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used (PEP 562)."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
