"""Factory of small, seeded rasters for tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

UTM = "EPSG:32631"
HALF_METRE = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


def noise(
    bands: int = 3, rows: int = 96, cols: int = 160, dtype: str = "uint8", *, low: int = 1, high: int = 255
) -> NDArray[Any]:
    """(bands, rows, cols) seeded noise in [low, high)."""
    values = np.random.default_rng(2).integers(low, high, (bands, rows, cols))
    return values.astype(dtype)


def smooth(bands: int = 3, rows: int = 96, cols: int = 160, dtype: str = "uint8") -> NDArray[Any]:
    """(bands, rows, cols) smooth gradients between 20 and 235, which resampling hardly changes."""
    x, y = np.meshgrid(np.linspace(0, 1, cols), np.linspace(0, 1, rows))
    planes = [20 + 215 * np.abs(np.sin(2 * (band + 1) * x + y)) for band in range(bands)]
    return np.array(planes).astype(dtype)


def write_raster(
    path: Path,
    pixels: NDArray[Any],
    *,
    mask: NDArray[np.bool_] | None = None,
    colorinterp: list[str] | None = None,
    tags: dict[str, list[float]] | None = None,
    palette: dict[int, tuple[int, int, int]] | None = None,
    **profile: Any,
) -> Path:
    """Write (bands, rows, cols) pixels as a GeoTIFF of 0.5 m pixels in UTM 31N.

    `profile` overrides the defaults; None removes one. `mask` becomes an internal mask; `tags` sets
    `scales` and `offsets`.
    """
    count, height, width = pixels.shape
    settings: dict[str, Any] = {
        "driver": "GTiff",
        "crs": UTM,
        "transform": HALF_METRE,
        "dtype": pixels.dtype,
        "count": count,
        "height": height,
        "width": width,
    }
    settings = {key: value for key, value in (settings | profile).items() if value is not None}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **settings) as raster:
            if colorinterp:
                raster.colorinterp = [rasterio.enums.ColorInterp[name] for name in colorinterp]
            for key, values in (tags or {}).items():
                setattr(raster, key, values)
            if palette:
                raster.write_colormap(1, palette)
            raster.write(pixels)
            if mask is not None:
                raster.write_mask(mask)
    return path


def moved(cols: float, rows: float, transform: Affine = HALF_METRE) -> Affine:
    """Transform of a raster whose corner lies at pixel (cols, rows) of another one."""
    return transform * Affine.translation(cols, rows)


def spoil(path: Path, blocks: Iterable[tuple[int, int]]) -> None:
    """Overwrite blocks (row, col) of a deflated GeoTIFF with zeros, which cannot be decoded."""
    with rasterio.open(path) as raster:
        extents = [
            [
                int(raster.get_tag_item(f"BLOCK_{key}_{col}_{row}", "TIFF", bidx=1))
                for key in ("OFFSET", "SIZE")
            ]
            for row, col in blocks
        ]
    content = bytearray(path.read_bytes())
    for offset, size in extents:
        content[offset : offset + size] = bytes(size)
    path.write_bytes(content)


def read_pixels(path: Path | str) -> NDArray[Any]:
    """(bands, rows, cols) pixels of a raster."""
    with rasterio.open(path) as raster:
        pixels: NDArray[Any] = raster.read()
        return pixels
