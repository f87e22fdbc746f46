"""Cloud-optimized GeoTIFF writer: uint8 rasters written window by window, atomically.

GDAL makes a COG only from a complete raster. So windows are written to a tiled GeoTIFF next to it; its COG
copy is read back when complete, and takes the name of the output only then.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from deltavlm.errors import WriteError
from deltavlm.files import fsync_file, fsync_folder, resolve_link, scratch_name
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.output_files import check_output
from deltavlm.geo.source import ignore_missing_transforms

__all__ = ["COG_SUFFIXES", "Cog", "RasterStyle", "check_cog", "open_cog"]

COG_SUFFIXES = (".tif", ".tiff")
TILE_PX = 512
NODATA = 255
WRITE_ERRORS = (RasterioError, CPLE_BaseError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterStyle:
    """Metadata of a raster of uint8 bands with 255 as nodata: band names, scale, color map, categories."""

    band_names: tuple[str, ...]
    overview_resampling: str  # "nearest" or "average"
    scale: float = 1.0  # factor from stored to physical values
    colormap: Mapping[int, tuple[int, int, int, int]] = field(default_factory=dict)
    categories: tuple[str, ...] = ()  # names of the values, from 0


@dataclass
class Cog:
    """COG that is being written; made by `open_cog`."""

    path: Path
    tiled: Path  # scratch file that windows are written to
    copy: Path  # scratch file of the COG, renamed to `path`
    raster: Any  # rasterio dataset of `tiled`, open for writing
    style: RasterStyle
    _checksums: dict[Window, int] = field(default_factory=dict)

    def write(self, window: Window, values: NDArray[np.uint8]) -> None:
        """Write a window; `values` is (bands, height, width). Raises: WriteError."""
        values = np.ascontiguousarray(values)
        self._checksums[window] = zlib.crc32(values.tobytes())
        with self._wrap_errors():
            self.raster.write(values, window=rasterio.windows.Window(*window))

    def tag(self, name: str, value: object) -> None:
        """Set a tag of the raster. Raises: WriteError."""
        with self._wrap_errors():
            self.raster.update_tags(**{name: value})

    def finish(self) -> None:
        """Convert to a COG and verify it, once all windows are written. Raises: WriteError."""
        with self._wrap_errors():
            self.raster.close()
            rasterio.shutil.copy(
                str(self.tiled),
                str(self.copy),
                driver="COG",
                compress="DEFLATE",
                blocksize=TILE_PX,
                overview_resampling=self.style.overview_resampling,
                bigtiff="IF_SAFER",
            )
            self.tiled.unlink()
            self._verify()
            fsync_file(self.copy)

    def publish(self, overwrite: bool) -> None:
        """Rename the finished COG to `path`. Raises: OutputError or WriteError."""
        check_cog(self.path, overwrite)  # hours may have passed since the first check
        with self._wrap_errors():
            self.copy.replace(resolve_link(self.path))
            fsync_folder(self.copy.parent)

    def _verify(self) -> None:
        """Read all windows back: GDAL does not report a full disk when it closes a file. Raises: OSError."""
        with rasterio.open(self.copy) as raster:
            for window, checksum in self._checksums.items():
                values = raster.read(window=rasterio.windows.Window(*window))
                if zlib.crc32(values.tobytes()) != checksum:
                    raise OSError("what was written cannot be read back")

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        try:
            with ignore_missing_transforms():
                yield
        except WRITE_ERRORS as error:
            message = str(error.__cause__ or error).partition("\n")[0]
            for scratch in (self.tiled, self.copy):
                message = message.replace(str(scratch), str(self.path))
            raise WriteError(
                f"{self.path}: writing failed ({message}) and left nothing behind; free some space or write "
                "elsewhere"
            ) from error


def check_cog(path: Path, overwrite: bool) -> None:
    """Check, before any work, that the raster can be written; changes nothing.

    Raises: OutputError, as `check_output`.
    """
    check_output(path, overwrite, COG_SUFFIXES)


@contextmanager
def open_cog(path: Path, geobox: GeoBox, style: RasterStyle, tags: Mapping[str, str]) -> Iterator[Cog]:
    """Open a COG on a grid: write its windows, then call `finish` and `publish`.

    Without `publish`, nothing is left when the `with` ends.

    Raises: WriteError.
    """
    target = resolve_link(path)
    tiled, copy = (target.with_name(scratch_name(path)) for _ in range(2))
    cog = Cog(path, tiled, copy, None, style)
    try:
        with cog._wrap_errors():
            cog.raster = rasterio.open(
                tiled, "w", driver="GTiff", dtype="uint8", count=len(style.band_names), width=geobox.width,
                height=geobox.height, crs=geobox.crs, transform=geobox.transform, nodata=NODATA, tiled=True,
                blockxsize=TILE_PX, blockysize=TILE_PX, compress="DEFLATE", zlevel=1, interleave="band",
                bigtiff="IF_SAFER",
            )  # fmt: skip
            _write_metadata(cog.raster, style, tags)
        yield cog
    finally:
        if cog.raster is not None:
            with suppress(*WRITE_ERRORS):
                cog.raster.close()
        for scratch in (tiled, copy):
            scratch.unlink(missing_ok=True)


def _write_metadata(raster: Any, style: RasterStyle, tags: Mapping[str, str]) -> None:
    raster.descriptions = style.band_names
    if style.scale != 1:
        raster.scales = [style.scale] * len(style.band_names)
    if style.colormap:
        raster.write_colormap(1, dict(style.colormap))
    if style.categories:
        raster.update_tags(1, **{f"CATEGORY_{value}": name for value, name in enumerate(style.categories)})
    raster.update_tags(**tags)
