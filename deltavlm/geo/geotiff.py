"""GeoTIFF writer for an image in memory: tiled, compressed, atomic."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from deltavlm.errors import WriteError
from deltavlm.files import atomic_file

__all__ = ["write_geotiff"]


def write_geotiff(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    transform: Affine,
    crs: str,
    colormap: dict[int, tuple[int, int, int]] | None = None,
    compress: Literal["deflate", "jpeg"] = "deflate",
) -> None:
    """Write `pixels`: (height, width, 3) RGB, or (height, width) codes whose colors `colormap` gives.

    "jpeg" (RGB only) is lossy and about a tenth of the size.

    Raises: WriteError when the file cannot be written.
    """
    bands = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    profile = {
        "driver": "GTiff",
        "width": bands.shape[2],
        "height": bands.shape[1],
        "count": bands.shape[0],
        "dtype": "uint8",
        "crs": crs,
        "transform": transform,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": compress,
    }
    if compress == "jpeg":
        profile |= {"photometric": "YCBCR", "jpeg_quality": 90}
    elif pixels.ndim == 3:
        profile |= {"photometric": "RGB", "predictor": 2}
    try:
        with atomic_file(path) as scratch, rasterio.open(scratch, "w", **profile) as raster:
            raster.write(bands)
            if colormap:
                raster.write_colormap(1, colormap)
    except (RasterioError, OSError) as error:
        raise WriteError(f"cannot write {path}: {error}; check the folder and the free disk space") from error
