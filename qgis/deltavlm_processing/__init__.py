"""QGIS plugin: Processing algorithms that run an installed `deltavlm` as a program of its own."""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Plugin object, made by QGIS when the plugin is loaded; `iface` is None in qgis_process."""
    from .plugin import Plugin

    return Plugin(iface)
