"""Pairs of rasters as files come: made quickly, and like pictures where it counts.

Ground in three octaves, some of it new houses in `after`, and noise of each date's own (3 of 255 levels), so
that it deflates about as a photograph does and no two chips look the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

__all__ = ["LAYOUTS", "make_pair"]

PART = 1024  # side of the ground that is laid again and again, at another place each time
TILES: dict[str, Any] = {"tiled": True, "blockxsize": 512, "blockysize": 512}
LAYOUTS: dict[str, tuple[dict[str, Any], str, float]] = {  # profile, dtype, shift of after in pixels
    "tiled 512 deflate": ({**TILES, "compress": "deflate"}, "uint8", 0),
    "striped deflate": ({"compress": "deflate", "blockysize": 1}, "uint8", 0),
    "COG JPEG": ({"driver": "COG", "compress": "JPEG", "quality": 85, "blocksize": 512}, "uint8", 0),
    "tiled 512 LZW uint16": ({**TILES, "compress": "LZW"}, "uint16", 0),
    "half a pixel off": ({**TILES, "compress": "deflate"}, "uint8", 0.5),
}


def make_pair(
    folder: Path, layout: str, side: int, dates: tuple[str, ...] = ("before", "after")
) -> list[Path]:
    """GeoTIFFs of `side` x `side` pixels of 0.5 m, RGB; those that are there already stay as they are."""
    dates = ("before", "after")
    paths = [folder / f"{layout.replace(' ', '_')}_{side}_{date}.tif" for date in dates]
    for date, path in zip(dates, paths, strict=True):
        if not path.exists():
            part = path.with_suffix(".part")
            _write(part, layout, side, date == "after")
            part.rename(path)
    return paths


def _write(path: Path, layout: str, side: int, after: bool) -> None:
    how, dtype, shift = LAYOUTS[layout]
    as_cog = how.get("driver") == "COG"
    plain = path.with_suffix(".plain") if as_cog else path
    profile = TILES if as_cog else how
    corner = Affine(0.5, 0, 500_000 + 0.5 * shift * after, 0, -0.5, 5_000_000)
    with rasterio.open(
        plain, "w", driver="GTiff", width=side, height=side, count=3, dtype=dtype, crs="EPSG:32631",
        transform=corner, photometric="RGB", interleave="pixel", num_threads="all_cpus", **profile,
    ) as raster:  # fmt: skip
        for top, band in _bands(side, after):
            values = band if dtype == "uint8" else band.astype(dtype) * 12 + 300
            raster.write(values, window=Window(0, top, side, band.shape[1]))
    if as_cog:
        rasterio.shutil.copy(str(plain), str(path), num_threads="all_cpus", **how)
        plain.unlink()


def _bands(side: int, after: bool) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The picture in bands of rows; equal ground at both dates."""
    ground = np.random.default_rng(1)
    noise = np.random.default_rng(2 + after)
    shape = (3, PART, PART)
    octaves = [
        ground.normal(0, 14, (3, PART // step, PART // step)).repeat(step, 1).repeat(step, 2)
        for step in (128, 32, 8)
    ]
    bare = (sum(octaves) + 120).astype(np.int16)
    grain = noise.normal(0, 3, shape).round().astype(np.int16)
    for top in range(0, side, PART):
        parts = []
        for _ in range(0, side, PART):
            rolled = np.roll(bare, ground.integers(PART, size=2), (1, 2))
            for row, col in ground.integers(PART - 40, size=(4, 2)):  # houses, one side of them new
                if after:
                    rolled[:, row : row + 24, col : col + 32] = 210
            parts.append(rolled + np.roll(grain, noise.integers(PART, size=2), (1, 2)))
        band = np.concatenate(parts, axis=2)[:, : side - top, :side]
        yield top, band.clip(0, 255).astype(np.uint8)
