"""Names of the resampling methods that a warp can use; imports nothing, so that the command line can, too."""

from __future__ import annotations

from typing import Literal

__all__ = ["Resampling"]

Resampling = Literal["nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average", "mode"]
"""A subset of `rasterio.enums.Resampling`: methods that give a colour image for any pair of pixel sizes."""
