"""View of an open raster on the grid of the analysis: pixels as stored, or RGB with validity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.geo.cloud_mask import CloudView
from deltavlm.geo.gdal import CACHE_BYTES, UNREADABLE, trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.nodata import alpha_band, has_mask
from deltavlm.geo.sampling import SAMPLE_WINDOWS, iter_samples
from deltavlm.geo.source import Source
from deltavlm.geo.warp import ANY_PLANE, NOT_WARPED, warp_onto, without_alpha

__all__ = ["Layer", "Raw", "View", "open_view"]

REREAD_BYTES = CACHE_BYTES // 8
"""Pixels whose blocks GDAL's cache holds until other bands of them are read, beside the blocks of a warp's
source and those of the other date."""


class Layer(NamedTuple):
    """Bands of an open raster that are read together."""

    dataset: DatasetReader | WarpedVRT
    bands: list[int]  # from 1, in the file's order


class Raw(NamedTuple):
    """Pixels as they are stored in the file."""

    values: NDArray[Any]  # (bands, rows, cols): the distinct ones among red, green, blue, in the file's order
    mask: NDArray[Any] | None  # (rows, cols), 0 where a mask or alpha hides the pixel
    clouds: NDArray[np.bool_] | None = None  # (rows, cols), True where a cloud mask hides the pixel

    def cut(self, rows: slice, cols: slice) -> Raw:
        """View of a rectangle of it, not a copy."""
        mask, clouds = (None if each is None else each[rows, cols] for each in (self.mask, self.clouds))
        return Raw(self.values[:, rows, cols], mask, clouds)


@dataclass(frozen=True, slots=True)
class View:
    """Raster on the grid of the analysis; windows are in the pixels of that grid."""

    source: Source
    layers: tuple[Layer, ...]  # with the colors: one, or a warp of the bands of each nodata value
    mask: DatasetReader | WarpedVRT  # with the mask or alpha: the same, or another where a warp loses it
    col_off: int  # of the grid's corner in `dataset`
    row_off: int
    alpha: int | None  # the band of `mask` that hides pixels
    mask_dtype: str | None  # of the mask or alpha, nodata apart; None without one
    clouds: CloudView | None = None  # cloud mask on the same grid

    @classmethod
    def of(
        cls,
        source: Source,
        layers: tuple[Layer, ...],
        mask: DatasetReader | WarpedVRT,
        col_off: int,
        row_off: int,
    ) -> View:
        """Build a view. Mask flags and the like are queried here, before the first read, because after a
        failed read GDAL repeats that error for such queries."""
        _ = source.is_8bit, source.palette, source.scale_offset  # cached
        alpha = alpha_band(mask)
        mask_dtype = str(mask.dtypes[alpha - 1]) if alpha else "uint8" if has_mask(mask) else None
        return cls(source, layers, mask, col_off, row_off, alpha, mask_dtype)

    @property
    def dataset(self) -> DatasetReader | WarpedVRT:
        """Raster with the colors, or some of them."""
        return self.layers[0].dataset

    def read(
        self, window: Window, shape: tuple[int, int] | None = None, *, averaged: bool = False
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """RGB (3, rows, cols) in the raster's dtype, scale and offset applied; validity (rows, cols).

        With `shape` (rows, cols) the window is decimated to it; `averaged` as in `read_raw`.

        Raises:
            RasterError: a block of the file cannot be decoded.
        """
        buffer = self.allocate(*(shape or (window.height, window.width)))
        raw = self.read_raw(buffer, window, averaged=averaged)
        values, valid = self.to_rgb(raw)
        return values, valid if raw.clouds is None else valid & ~raw.clouds

    def allocate(self, rows: int, cols: int) -> Raw:
        """Uninitialized buffer of that many pixels, for `read_raw`."""
        values = np.empty((len(self.source.distinct_bands), rows, cols), self.source.dtype)
        return Raw(
            values,
            None if self.mask_dtype is None else np.empty((rows, cols), self.mask_dtype),
            None if self.clouds is None else np.empty((rows, cols), bool),
        )

    def read_raw(self, buffer: Raw, window: Window, *, averaged: bool = False) -> Raw:
        """Fill `buffer` with the stored pixels of a window and return it; a smaller buffer gets it decimated.

        Decimation takes every n-th pixel; `averaged` the mean, which decodes every pixel (of a palette never,
        as the mean of its indices is no color). Alpha is read as a band, because GDAL masks by it in 8 and
        16 bit files only.

        Raises:
            RasterError: a block of the file cannot be decoded.
        """
        server = self.source.server
        watch = nullcontext() if server is None else server.watch(self.source.location)
        with watch, wrap_gdal_errors(self.source.location, *UNREADABLE):
            is_mean = averaged and self.source.palette is None
            method = Resampling.average if is_mean else Resampling.nearest
            for area, part in self._parts(window, buffer):
                for layer in self.layers:
                    at = [self.source.distinct_bands.index(band) for band in layer.bands]
                    is_only = len(self.layers) == 1
                    out = part.values if is_only else part.values[at]
                    layer.dataset.read(layer.bands, window=area, out=out, resampling=method)
                    if not is_only:
                        part.values[at] = out
                if self.alpha is not None:
                    self.mask.read(self.alpha, window=area, out=part.mask)
                elif part.mask is not None:
                    self.mask.read_masks(1, window=area, out=part.mask)
        if self.clouds is not None and buffer.clouds is not None:
            buffer.clouds[:] = self.clouds.read(window, buffer.clouds.shape)
        trim_malloc()
        return buffer

    def _parts(self, window: Window, buffer: Raw) -> Iterator[tuple[RasterioWindow, Raw]]:
        """Parts of a window that are read one after the other: pixels of the dataset, and their buffer.

        The whole, unless bands are read after others of the same blocks, as alpha is. Then so few rows of
        blocks that GDAL's cache holds them until then: blocks would be decoded, or warped, twice.
        """
        col_off, row_off, width, height = window
        col_off, row_off = col_off + self.col_off, row_off + self.row_off
        is_decimated = buffer.values.shape[1:] != (height, width)
        if is_decimated or (self.alpha is None and len(self.layers) == 1):
            yield RasterioWindow(col_off, row_off, width, height), buffer
            return
        block_rows = self.dataset.block_shapes[0][0]
        row_bytes = width * (len(buffer.values) + 1) * buffer.values.itemsize
        step = block_rows * max(1, REREAD_BYTES // (row_bytes * block_rows))
        top = 0
        while top < height:
            bottom = min(height, top + step - (row_off + top) % block_rows)
            area = RasterioWindow(col_off, row_off + top, width, bottom - top)
            yield area, buffer.cut(slice(top, bottom), slice(None))
            top = bottom

    def to_rgb(self, raw: Raw) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """RGB and validity of raw pixels, as `read` returns them but for clouds, in new arrays; pixel by
        pixel."""
        source, values = self.source, raw.values
        valid = source.has_data(values)
        if raw.mask is not None:
            valid &= raw.mask > 0
        if source.palette is not None:
            colors, has_color = palette_colors(source.palette, values[0])
            return colors, valid & has_color
        order = [source.distinct_bands.index(band) for band in source.bands]
        values = values.copy() if order == [0, 1, 2] else values[order]
        if values.dtype == np.uint8 and not source.is_8bit:  # of 1 to 7 bits: stretched as 16-bit values are
            values = values.astype(np.uint16)
        if source.scale_offset is None:
            return values, valid
        scale, offset = source.scale_offset
        with np.errstate(over="ignore"):  # nodata such as -3.4e38
            return values * scale + offset, valid

    def sample(self, geobox: GeoBox, windows: int = SAMPLE_WINDOWS) -> NDArray[Any]:  # (3, N)
        """Valid colors spread over the grid; `windows` along a side, where there are no overviews.

        Raises:
            RasterError: no part of it can be read.
        """
        # GDAL's JPEG decoder tells of a broken part once, and then returns gray
        strict = self.source.dataset.driver == "JPEG"
        size = geobox.width, geobox.height
        samples = iter_samples(size, self.dataset, self.read, windows=windows, strict=strict)
        return np.concatenate([values[:, valid] for values, valid in samples], axis=1)

    def check_readable(self, geobox: GeoBox) -> None:
        """Decode small windows of the grid until one succeeds.

        Raises:
            RasterError: no part of it can be read.
        """
        next(iter_samples((geobox.width, geobox.height), self.dataset, self.read, overviews=False))


@contextmanager
def open_view(
    source: Source,
    geobox: GeoBox,
    offset: tuple[int, int] | None,
    resampling: str,
    shift: tuple[float, float] | None = None,
) -> Iterator[View]:
    """View of a raster on another grid: by windows where `offset` is the (column, row) of the grid's corner
    in the raster, warped where it is None.

    shift: columns and rows of the grid by which the raster is misregistered; the warp corrects them.

    Raises:
        RasterError: it cannot be warped onto that grid.
    """
    if offset is not None and shift is None:
        yield View.of(source, (Layer(source.dataset, source.distinct_bands),), source.dataset, *offset)
        return
    if offset is None:
        placed = source.geobox.wrapping_onto(geobox)
    else:  # the same pixels, also without a CRS, which a warp asks for
        geobox = replace(geobox, crs=geobox.crs or ANY_PLANE)
        placed = geobox.translate(-offset[0], -offset[1])
    geobox = geobox.translate(*(shift or (0, 0)))
    with ExitStack() as stack:

        def warp(dataset: DatasetReader, nodata: float | None) -> WarpedVRT:
            warped = warp_onto(dataset, placed, geobox, resampling, nodata, source.opaque)
            return stack.enter_context(warped)

        def warp_bands(dataset: DatasetReader) -> tuple[Layer, ...]:
            """Warps of the bands of each nodata value, as GDAL takes one value for all bands."""
            groups: dict[float | None, list[int]] = {}
            for band, nodata in zip(source.distinct_bands, source.nodata, strict=True):
                groups.setdefault(nodata, []).append(band)
            return tuple(Layer(warp(dataset, nodata), bands) for nodata, bands in groups.items())

        with wrap_gdal_errors(source.location, *NOT_WARPED):
            if set(source.nodata) == {None} or not has_mask(source.dataset):
                layers = warp_bands(source.dataset)
                mask = next((layer.dataset for layer in layers if has_mask(layer.dataset)), layers[0].dataset)
            else:  # GDAL applies either nodata or a mask, so each is warped by itself
                layers = warp_bands(stack.enter_context(without_alpha(source.dataset)))
                mask = warp(source.dataset, None)
        yield View.of(source, layers, mask, 0, 0)


def palette_colors(
    palette: NDArray[np.uint8], values: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """RGB (3, rows, cols) of values (rows, cols) of a palette (4, length), and where they have a color: they
    are in the table, and not transparent there."""
    length = palette.shape[1]
    with np.errstate(invalid="ignore"):  # NaN, which is not inside
        inside = (values >= 0) & (values < length)
        index = np.where(inside, values, 0).astype(np.intp)
    colors = palette[:, index]
    return colors[:3], inside & (colors[3] > 0)
