"""Rasters and models that many tests need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from tests.scripted_model import ScriptedModel

WIDTH, HEIGHT, CHIP = 160, 96, 32  # 5 x 3 chips of 32 px


@dataclass(frozen=True)
class Scene:
    """A pair of GeoTIFFs, 0.5 m a pixel, in which only chip r00032_c00064 differs."""

    before: Path
    after: Path
    changed_chip: str = "r00032_c00064"

    @property
    def args(self) -> list[str]:
        return [str(self.before), str(self.after)]


@pytest.fixture
def write_raster() -> Callable[..., Path]:
    """Writes a GeoTIFF from a (bands, rows, cols) array; keywords go to rasterio."""

    def write(path: Path, pixels: np.ndarray, **profile: Any) -> Path:
        settings: dict[str, Any] = {
            "driver": "GTiff",
            "crs": "EPSG:32631",
            "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
            "dtype": pixels.dtype,
            "photometric": "RGB",
            "tiled": True,
            "blockxsize": 32,
            "blockysize": 32,
        } | profile
        count, height, width = pixels.shape
        with rasterio.open(path, "w", count=count, height=height, width=width, **settings) as raster:
            raster.write(pixels)
        return path

    return write


@pytest.fixture
def pixels() -> np.ndarray:
    """(3, 96, 160) uint8 noise without 0."""
    return np.random.default_rng(2).integers(1, 255, (3, HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture
def scene(tmp_path: Path, pixels: np.ndarray, write_raster: Callable[..., Path]) -> Scene:
    before = write_raster(tmp_path / "before.tif", pixels)
    pixels = pixels.copy()
    pixels[:, 40:50, 70:80] = 255
    return Scene(before, write_raster(tmp_path / "after.tif", pixels))


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()
