"""Source, an open raster in its own pixels, and View, the same raster on the grid of the analysis."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import RasterError
from deltavlm.geo.cloud_mask import CloudView
from deltavlm.geo.gdal import UNREADABLE, Server, trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.identity import Identity
from deltavlm.geo.location import is_remote
from deltavlm.messages import redact_address

__all__ = [
    "FEW_WINDOWS",
    "MAX_VALUE",
    "SAMPLE_WINDOWS",
    "Layer",
    "Raw",
    "Source",
    "View",
    "alpha_band",
    "has_mask",
    "has_transform",
    "iter_samples",
    "needs_alpha",
    "warp_method",
    "without_alpha",
]

Sample = TypeVar("Sample")

ANY_PLANE = CRS.from_epsg(3857)
_SOURCE_NAME = re.compile(r"(<(?:SourceFilename|SourceDataset)\b[^>]*>)([^<?]+)(</)")
"""Name of a file in a VRT; after a "?", as in the query of a URL, no driver can be given."""
SAMPLE_PX = 512  # side of the sample that decides about scale and alpha
SAMPLE_WINDOWS, FEW_WINDOWS = 16, 4  # along a side, where there are no overviews to sample from
MAX_VALUE = 1e30
"""Values of float bands beyond it, such as -3.4e38 or 9.97e36, are fill, even if no nodata value says so."""


@dataclass(frozen=True)
class Source:
    """Open raster in its own pixels; made by `open_source`."""

    location: str
    dataset: DatasetReader
    bands: tuple[int, int, int]  # red, green, blue, from 1
    opaque: float | None  # largest value of its alpha band, if it has one
    nodata: tuple[float | None, ...]  # of each of `distinct_bands`; NaN is the object `math.nan`
    notes: tuple[str, ...]  # for the user, on how the file is read
    warnings: tuple[str, ...]  # those of the notes that are a guess
    fill: float | None = None  # another value without data, which is not declared
    date: str | None = None  # ISO 8601, from its tags
    files: Mapping[str, Identity] = field(default_factory=dict)  # what it reads, as it was when opened

    @cached_property
    def geobox(self) -> GeoBox:
        """Pixel grid; without a CRS where no transform gives it a meaning."""
        dataset = self.dataset
        crs = (dataset.crs or None) if has_transform(dataset) else None
        return GeoBox(dataset.width, dataset.height, dataset.transform, crs)

    @property
    def name(self) -> str:
        """Location without credentials."""
        return redact_address(self.location)

    @cached_property
    def server(self) -> Server | None:
        """Server of a remote image."""
        return Server() if is_remote(self.location) else None

    @property
    def distinct_bands(self) -> list[int]:
        """The bands that are read, in the file's order."""
        return sorted(set(self.bands))

    @property
    def is_gray(self) -> bool:
        """True where one band is shown in red, green and blue."""
        return len(set(self.bands)) == 1 and self.palette is None

    @property
    def dtype(self) -> str:
        """Data type of the stored values."""
        return str(self.dataset.dtypes[self.bands[0] - 1])

    @cached_property
    def is_8bit(self) -> bool:
        """True for colors that need no stretch: all 8 bits are in use, or a palette is looked up."""
        if self.palette is not None:
            return True
        bits = self.dataset.tags(self.bands[0], ns="IMAGE_STRUCTURE").get("NBITS", "8")
        return self.dtype == "uint8" and bits == "8"

    @cached_property
    def palette(self) -> NDArray[np.uint8] | None:  # (4, length)
        """RGBA of each value of a paletted raster, up to the last one in its table; None without a table."""
        band = self.bands[0]
        is_palette = self.dataset.colorinterp[band - 1] is ColorInterp.palette
        if not is_palette or len(set(self.bands)) > 1:
            return None
        try:
            colors = self.dataset.colormap(band)
        except ValueError:
            return None
        palette = np.zeros((4, max(colors, default=0) + 1), np.uint8)
        palette[:, list(colors)] = np.array(list(colors.values())).T
        if not palette[3].any():
            palette[3] = 255  # a table whose alpha was never set
        return palette

    @cached_property
    def scale_offset(self) -> NDArray[np.float32] | None:  # (2, 3, 1, 1): scales, offsets
        """Linear conversion from stored to physical values; None where they are equal, or the file has a
        conversion that cannot be: a scale of 0, or numbers that are not finite."""
        scales, offsets = (
            [values[band - 1] for band in self.bands]
            for values in (self.dataset.scales, self.dataset.offsets)
        )
        if self.is_8bit or (set(scales), set(offsets)) == ({1.0}, {0.0}):
            return None
        if not (np.isfinite([scales, offsets]).all() and all(scales)):
            return None
        return np.array([scales, offsets], np.float32)[:, :, None, None]

    def has_data(self, values: NDArray[Any]) -> NDArray[np.bool_]:  # (rows, cols)
        """Validity of stored values (bands, rows, cols) of the distinct bands, masks apart.

        A pixel without data in one band has none: it is NaN, infinite, beyond MAX_VALUE, or the nodata value
        of that band. In 8-bit bands a nodata value such as 0 is also a color (deep water has no red), so
        there all bands must have it.
        """
        valid = np.ones(values.shape[1:], bool)
        if values.dtype.kind == "f":
            valid &= (np.abs(values) < MAX_VALUE).all(axis=0)
        holes = [band == value for band, value in zip(values, self.nodata, strict=True) if value is not None]
        if self.fill is not None:
            holes += [band == self.fill for band in values]
        if values.dtype != np.uint8:
            for hole in holes:
                valid &= ~hole
        elif len(holes) == len(values):
            valid &= ~np.logical_and.reduce(holes)
        return valid

    @contextmanager
    def view_on(
        self,
        geobox: GeoBox,
        offset: tuple[int, int] | None,
        resampling: str,
        shift: tuple[float, float] | None = None,
    ) -> Iterator[View]:
        """View on another grid: by windows where `offset` is the (column, row) of the grid's corner in this
        raster, warped where it is None.

        shift: columns and rows of the grid by which this raster is misregistered; the warp corrects them.

        Raises:
            RasterError: it cannot be warped onto that grid.
        """
        if offset is not None and shift is None:
            yield View.of(self, (Layer(self.dataset, self.distinct_bands),), self.dataset, *offset)
            return
        if offset is None:
            placed = self.geobox.wrapping_onto(geobox)
        else:  # the same pixels, also without a CRS, which a warp asks for
            geobox = replace(geobox, crs=geobox.crs or ANY_PLANE)
            placed = geobox.translate(-offset[0], -offset[1])
        geobox = geobox.translate(*(shift or (0, 0)))
        with ExitStack() as stack:
            alpha_range = {} if self.opaque is None else {"SRC_ALPHA_MAX": f"{self.opaque:g}"}

            def warp(dataset: DatasetReader, nodata: float | None) -> WarpedVRT:
                vrt = WarpedVRT(
                    dataset,
                    src_crs=placed.crs,
                    src_transform=placed.transform,
                    crs=geobox.crs,
                    transform=geobox.transform,
                    width=geobox.width,
                    height=geobox.height,
                    resampling=warp_method(dataset, resampling),
                    src_nodata=nodata,
                    nodata=nodata,
                    add_alpha=needs_alpha(dataset, nodata),
                    UNIFIED_SRC_NODATA="NO",  # each band by itself; `has_data` decides about all
                    **alpha_range,
                )
                return stack.enter_context(vrt)

            def warp_bands(dataset: DatasetReader) -> tuple[Layer, ...]:
                """Warps of the bands of each nodata value, as GDAL takes one value for all bands."""
                groups: dict[float | None, list[int]] = {}
                for band, nodata in zip(self.distinct_bands, self.nodata, strict=True):
                    groups.setdefault(nodata, []).append(band)
                return tuple(Layer(warp(dataset, nodata), bands) for nodata, bands in groups.items())

            with wrap_gdal_errors(
                self.location, "cannot be warped", "check its CRS, or warp it with gdalwarp first"
            ):
                if set(self.nodata) == {None} or not has_mask(self.dataset):
                    layers = warp_bands(self.dataset)
                    mask = next(
                        (layer.dataset for layer in layers if has_mask(layer.dataset)), layers[0].dataset
                    )
                else:  # GDAL applies either nodata or a mask, so each is warped by itself
                    layers = warp_bands(stack.enter_context(without_alpha(self.dataset)))
                    mask = warp(self.dataset, None)
            yield View.of(self, layers, mask, 0, 0)


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
        area = RasterioWindow(window.col_off + self.col_off, window.row_off + self.row_off, *window[2:])
        server = self.source.server
        watch = nullcontext() if server is None else server.watch(self.source.location)
        with watch, wrap_gdal_errors(self.source.location, *UNREADABLE):
            is_mean = averaged and self.source.palette is None
            method = Resampling.average if is_mean else Resampling.nearest
            for layer in self.layers:
                at = [self.source.distinct_bands.index(band) for band in layer.bands]
                is_only = len(self.layers) == 1
                out = buffer.values if is_only else buffer.values[at]
                layer.dataset.read(layer.bands, window=area, out=out, resampling=method)
                if not is_only:
                    buffer.values[at] = out
            if self.alpha is not None:
                self.mask.read(self.alpha, window=area, out=buffer.mask)
            elif buffer.mask is not None:
                self.mask.read_masks(1, window=area, out=buffer.mask)
        if self.clouds is not None and buffer.clouds is not None:
            buffer.clouds[:] = self.clouds.read(window, buffer.clouds.shape)
        trim_malloc()
        return buffer

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


def iter_samples(
    size: tuple[int, int],
    dataset: DatasetReader | WarpedVRT,
    read: Callable[[Window, tuple[int, int]], Sample],
    *,
    overviews: bool = True,
    windows: int = SAMPLE_WINDOWS,
    strict: bool = False,
) -> Iterator[Sample]:
    """Samples of a raster of `size` (width, height): one decimated read of its overviews, or a lattice of
    small windows without any.

    `read` takes a window and the (rows, cols) to return for it. Windows that cannot be read are left out;
    they also replace a decimated read that fails. `overviews=False` uses windows only; there are `windows` of
    them along a side.

    Raises:
        RasterError: nothing can be read; with `strict`, a part cannot be read.
    """
    width, height = size
    if overviews and (dataset.overviews(1) or max(width, height) <= 2 * SAMPLE_PX):
        with nullcontext() if strict else suppress(RasterError):
            yield read(Window(0, 0, width, height), (min(height, SAMPLE_PX), min(width, SAMPLE_PX)))
            return
    side = SAMPLE_PX // SAMPLE_WINDOWS
    cols, rows = min(side, width), min(side, height)
    col_offs, row_offs = (
        np.unique(np.linspace(0, length - size, windows, dtype=int)).tolist()
        for length, size in ((width, cols), (height, rows))
    )
    failures: list[RasterError] = []
    readable = False
    for col_off, row_off in itertools.product(col_offs, row_offs):
        try:
            sample = read(Window(col_off, row_off, cols, rows), (rows, cols))
        except RasterError as error:
            if strict:
                raise
            failures.append(error)
        else:
            readable = True
            yield sample
    if not readable:
        raise failures[0]


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


def has_transform(dataset: DatasetReader | WarpedVRT) -> bool:
    """False where rasterio gives the identity, as it does for a file without a transform."""
    return not dataset.transform.almost_equals(Affine.identity(), precision=1e-9)


def alpha_band(dataset: DatasetReader | WarpedVRT) -> int | None:
    """Number of the alpha band, from 1."""
    interp = dataset.colorinterp
    return interp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in interp else None


def has_mask(dataset: DatasetReader | WarpedVRT) -> bool:
    """True where a mask or an alpha band hides pixels, nodata apart."""
    return alpha_band(dataset) is not None or MaskFlags.per_dataset in dataset.mask_flag_enums[0]


def needs_alpha(dataset: DatasetReader, nodata: float | None) -> bool:
    """True where a warp must add an alpha band: to keep masks, and to mark the outside of the raster."""
    return nodata is None and alpha_band(dataset) is None


def warp_method(dataset: DatasetReader, resampling: str) -> Resampling:
    """Method to warp a raster with: nearest where its values are indices of colors, which have no mean."""
    return Resampling.nearest if ColorInterp.palette in dataset.colorinterp else Resampling[resampling]


@contextmanager
def without_alpha(dataset: DatasetReader) -> Iterator[DatasetReader]:
    """The same raster through a VRT without the alpha label: GDAL always warps by a labelled alpha band.

    The file is opened again by the driver that opened it.
    """
    with MemoryFile(ext=".vrt") as virtual:
        rasterio.shutil.copy(dataset, virtual.name, driver="VRT")
        unlabelled = bytes(virtual.read()).replace(b"<ColorInterp>Alpha</ColorInterp>", b"").decode()
    driver = getattr(dataset, "src_dataset", dataset).driver
    if driver != "VRT":  # whose sources were checked one by one
        unlabelled = _SOURCE_NAME.sub(rf"\1vrt://\2?if={driver}\3", unlabelled)
    with rasterio.open(unlabelled, driver="VRT") as reopened:
        yield reopened
