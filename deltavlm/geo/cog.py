"""Rasters on the grid of an analysis, written by windows: cloud-optimised GeoTIFFs, whole or not there.

GDAL makes one only of a raster that is all there. So windows go into a tiled GeoTIFF beside it, whose copy is
read back when it is complete, and only then takes the name.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import fsync_folder, scratch_name
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.sinks import check_output

__all__ = ["COG_SUFFIXES", "Cog", "RasterStyle", "check_cog", "open_cog"]

COG_SUFFIXES = (".tif", ".tiff")
TILE_PX = 512
WRITE_ERRORS = (RasterioError, CPLE_BaseError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterStyle:
    """What a raster of uint8 bands says of itself; 255 is no data."""

    band_names: tuple[str, ...]  # a description each
    overview_resampling: str  # how they are made: "nearest" or "average"
    scale: float = 1.0  # what a value is to be multiplied by
    colormap: Mapping[int, tuple[int, int, int, int]] = field(default_factory=dict)
    categories: tuple[str, ...] = ()  # what the values mean, from 0


@dataclass
class Cog:
    """A raster that is being written; made by `open_cog`."""

    path: Path
    part: Path  # what windows go into
    whole: Path  # the copy that takes the name
    raster: Any
    style: RasterStyle
    _sums: dict[Window, int] = field(default_factory=dict)

    def write(self, window: Window, values: NDArray[np.uint8]) -> None:
        """`values` is (bands, height, width). Raises: WriteError."""
        values = np.ascontiguousarray(values)
        self._sums[window] = zlib.crc32(values.tobytes())
        with self._translated():
            self.raster.write(values, window=rasterio.windows.Window(*window))

    def finish(self) -> None:
        """All windows are there; nothing has the name yet. Raises: WriteError."""
        with self._translated():
            self.raster.close()
            rasterio.shutil.copy(
                str(self.part),
                str(self.whole),
                driver="COG",
                compress="DEFLATE",
                blocksize=TILE_PX,
                overview_resampling=self.style.overview_resampling,
                bigtiff="IF_SAFER",
            )
            self.part.unlink()
            self._check()
            with self.whole.open("rb+") as stream:
                os.fsync(stream.fileno())

    def publish(self, overwrite: bool) -> None:
        """The raster takes its name. Raises: OutputError or WriteError."""
        check_cog(self.path, overwrite)  # hours may have passed
        with self._translated():
            self.whole.replace(self.path.resolve() if self.path.is_symlink() else self.path)
            fsync_folder(self.whole.parent)

    def _check(self) -> None:
        """GDAL says nothing of a disk that is full when it closes a file. Raises: OSError."""
        with rasterio.open(self.whole) as raster:
            for window, known in self._sums.items():
                if zlib.crc32(raster.read(window=rasterio.windows.Window(*window)).tobytes()) != known:
                    raise OSError("what was written cannot be read back")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                yield
        except WRITE_ERRORS as error:
            words = str(error.__cause__ or error).partition("\n")[0].replace(str(self.part), str(self.path))
            raise WriteError(
                f"{self.path}: writing failed ({words}) and left nothing behind; free some space or write "
                "elsewhere"
            ) from error


def check_cog(path: Path, overwrite: bool, inputs: Sequence[str] = ()) -> None:
    """Find out before any work whether the raster can be written; changes nothing.

    Raises:
        OutputError: as `check_output`; or it is one of the inputs.
    """
    for name in inputs:
        with suppress(OSError, ValueError):
            if path.samefile(name):
                raise OutputError(f"{path}: is one of the images; choose another name")
    check_output(path, overwrite, COG_SUFFIXES)


@contextmanager
def open_cog(path: Path, grid: GeoBox, style: RasterStyle, tags: Mapping[str, str]) -> Iterator[Cog]:
    """A raster of `style` on `grid`, to be written by windows, then to be finished and placed.

    What was not placed when the `with` ends is not there, nor is anything else.

    Raises: WriteError.
    """
    target = path.resolve() if path.is_symlink() else path
    part, whole = (target.with_name(scratch_name(path)) for _ in range(2))
    cog = Cog(path, part, whole, None, style)
    try:
        with cog._translated():
            cog.raster = rasterio.open(
                part, "w", driver="GTiff", dtype="uint8", count=len(style.band_names), width=grid.width,
                height=grid.height, crs=grid.crs, transform=grid.transform, nodata=255, tiled=True,
                blockxsize=TILE_PX, blockysize=TILE_PX, compress="DEFLATE", zlevel=1, interleave="band",
                bigtiff="IF_SAFER",
            )  # fmt: skip
            _describe(cog.raster, style, tags)
        yield cog
    finally:
        if cog.raster is not None:
            with suppress(*WRITE_ERRORS):
                cog.raster.close()
        for left in (part, whole):
            left.unlink(missing_ok=True)


def _describe(raster: Any, style: RasterStyle, tags: Mapping[str, str]) -> None:
    raster.descriptions = style.band_names
    if style.scale != 1:
        raster.scales = [style.scale] * len(style.band_names)
    if style.colormap:
        raster.write_colormap(1, dict(style.colormap))
    if style.categories:
        raster.update_tags(1, **{f"CATEGORY_{value}": name for value, name in enumerate(style.categories)})
    raster.update_tags(**tags)
