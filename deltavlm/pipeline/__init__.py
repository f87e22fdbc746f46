"""The loop where rasters, model and tasks meet."""

from __future__ import annotations
