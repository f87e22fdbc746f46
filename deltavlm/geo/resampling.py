"""Names of the resampling methods of a warp; no heavy imports, for the options of the command line."""

from __future__ import annotations

from typing import Literal, get_args

from deltavlm.errors import ConfigError

__all__ = ["Resampling", "parse_resampling"]

Resampling = Literal["nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average", "mode"]
"""Those of `rasterio.enums.Resampling` that GDAL can warp images with."""

METHODS: tuple[Resampling, ...] = get_args(Resampling)


def parse_resampling(name: str) -> Resampling:
    """Method of that name.

    Raises:
        ConfigError: there is none.
    """
    for method in METHODS:
        if method == name:
            return method
    raise ConfigError(f"resampling {name!r} is not one of {', '.join(METHODS)}")
