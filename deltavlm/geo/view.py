"""Source, an open raster in its own pixels, and View, the same raster on the grid of the analysis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import RasterError
from deltavlm.geo.gdal import trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.identity import Identity
from deltavlm.messages import redact_address

__all__ = [
    "UNREADABLE",
    "Raw",
    "Source",
    "View",
    "alpha_band",
    "has_transform",
    "iter_samples",
    "needs_alpha",
    "warp_method",
    "without_alpha",
]

Sample = TypeVar("Sample")

SAMPLE_PX = 512  # side of the sample that decides about scale and alpha
SAMPLE_WINDOWS = 16  # along a side, where there are no overviews to sample from
UNREADABLE = "a part of it cannot be read", "copy or download it again"


@dataclass(frozen=True)
class Source:
    """Open raster in its own pixels; made by `open_source`."""

    location: str
    dataset: DatasetReader
    bands: tuple[int, int, int]  # red, green, blue, from 1
    nodata: float | None
    notes: tuple[str, ...]  # for the user, on how the file is read
    warnings: tuple[str, ...]  # those of the notes that are a guess
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

    @property
    def dtype(self) -> str:
        return str(self.dataset.dtypes[self.bands[0] - 1])

    @cached_property
    def palette(self) -> NDArray[np.uint8] | None:  # (3, 256)
        """RGB of each value of a paletted raster."""
        if self.dataset.colorinterp[self.bands[0] - 1] is not ColorInterp.palette:
            return None
        palette = np.zeros((3, 256), np.uint8)
        for value, color in self.dataset.colormap(self.bands[0]).items():
            palette[:, value] = color[:3]
        return palette

    @cached_property
    def scale_offset(self) -> NDArray[np.float32] | None:  # (2, 3, 1, 1): scales, offsets
        """Linear conversion from stored to physical values; None where they are equal."""
        scales, offsets = (
            [values[band - 1] for band in self.bands]
            for values in (self.dataset.scales, self.dataset.offsets)
        )
        if self.dtype == "uint8" or (set(scales), set(offsets)) == ({1.0}, {0.0}):
            return None
        return np.array([scales, offsets], np.float32)[:, :, None, None]

    @contextmanager
    def view_on(self, geobox: GeoBox, offset: tuple[int, int] | None, resampling: str) -> Iterator[View]:
        """View on another grid: by windows where `offset` is the (column, row) of the grid's corner in this
        raster, warped where it is None.

        Raises:
            RasterError: it cannot be warped onto that grid.
        """
        if offset is not None:
            yield View.of(self, self.dataset, self.dataset, *offset)
            return
        placed = self.geobox.wrapping_onto(geobox)
        with ExitStack() as stack:

            def warp(dataset: DatasetReader, nodata: float | None, **options: str) -> WarpedVRT:
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
                    **options,
                )
                return stack.enter_context(vrt)

            with wrap_gdal_errors(
                self.location, "cannot be warped", "check its CRS, or warp it with gdalwarp first"
            ):
                if self.nodata is None or not has_mask(self.dataset):
                    colors = mask = warp(self.dataset, self.nodata)
                else:  # GDAL applies either nodata or a mask, so each is warped by itself
                    opaque = stack.enter_context(without_alpha(self.dataset))
                    colors = warp(opaque, self.nodata, UNIFIED_SRC_NODATA="PARTIAL")  # alpha is never nodata
                    mask = warp(self.dataset, None)
            yield View.of(self, colors, mask, 0, 0)


class Raw(NamedTuple):
    """Pixels as they are stored in the file."""

    values: NDArray[Any]  # (bands, rows, cols): the distinct ones among red, green, blue, in the file's order
    mask: NDArray[Any] | None  # (rows, cols), 0 where a mask or alpha hides the pixel

    def cut(self, rows: slice, cols: slice) -> Raw:
        """View of a rectangle of it, not a copy."""
        return Raw(self.values[:, rows, cols], None if self.mask is None else self.mask[rows, cols])


@dataclass(frozen=True, slots=True)
class View:
    """Raster on the grid of the analysis; windows are in the pixels of that grid."""

    source: Source
    dataset: DatasetReader | WarpedVRT  # with the colors
    mask: DatasetReader | WarpedVRT  # with the mask or alpha: the same, or another where a warp loses it
    col_off: int  # of the grid's corner in `dataset`
    row_off: int
    alpha: int | None  # the band of `mask` that hides pixels
    mask_dtype: str | None  # of the mask or alpha, nodata apart; None without one

    @classmethod
    def of(
        cls,
        source: Source,
        dataset: DatasetReader | WarpedVRT,
        mask: DatasetReader | WarpedVRT,
        col_off: int,
        row_off: int,
    ) -> View:
        """Build a view. Mask flags are queried here, before the first read, because after a failed read GDAL
        repeats that error for such queries."""
        alpha = alpha_band(mask)
        mask_dtype = str(mask.dtypes[alpha - 1]) if alpha else "uint8" if has_mask(mask) else None
        return cls(source, dataset, mask, col_off, row_off, alpha, mask_dtype)

    def read(
        self, window: Window, shape: tuple[int, int] | None = None, *, averaged: bool = False
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """RGB (3, rows, cols) in the raster's dtype, scale and offset applied; validity (rows, cols).

        With `shape` (rows, cols) the window is decimated to it; `averaged` as in `read_raw`.

        Raises:
            RasterError: a block of the file cannot be decoded.
        """
        buffer = self.allocate(*(shape or (window.height, window.width)))
        return self.to_rgb(self.read_raw(buffer, window, averaged=averaged))

    def allocate(self, rows: int, cols: int) -> Raw:
        """Uninitialized buffer of that many pixels, for `read_raw`."""
        values = np.empty((len(set(self.source.bands)), rows, cols), self.source.dtype)
        return Raw(values, None if self.mask_dtype is None else np.empty((rows, cols), self.mask_dtype))

    def read_raw(self, buffer: Raw, window: Window, *, averaged: bool = False) -> Raw:
        """Fill `buffer` with the stored pixels of a window and return it; a smaller buffer gets it decimated.

        Decimation takes every n-th pixel; `averaged` the mean, which decodes every pixel (of a palette never,
        as the mean of its indices is no color). Alpha is read as a band, because GDAL masks by it in 8 and
        16 bit files only.

        Raises:
            RasterError: a block of the file cannot be decoded.
        """
        area = RasterioWindow(window.col_off + self.col_off, window.row_off + self.row_off, *window[2:])
        with wrap_gdal_errors(self.source.location, *UNREADABLE):
            is_mean = averaged and self.source.palette is None
            method = Resampling.average if is_mean else Resampling.nearest
            self.dataset.read(
                sorted(set(self.source.bands)), window=area, out=buffer.values, resampling=method
            )
            if self.alpha is not None:
                self.mask.read(self.alpha, window=area, out=buffer.mask)
            elif buffer.mask is not None:
                self.mask.read_masks(1, window=area, out=buffer.mask)
        trim_malloc()
        return buffer

    def to_rgb(self, raw: Raw) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """RGB and validity of raw pixels, as `read` returns them, in new arrays; pixel by pixel."""
        source, values = self.source, raw.values
        valid = np.ones(values.shape[1:], bool)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        if source.nodata is not None:
            valid &= (values != source.nodata).any(axis=0)  # NaN as nodata is not finite already
        if raw.mask is not None:
            valid &= raw.mask > 0
        if source.palette is not None:
            return source.palette[:, values[0]], valid
        distinct = sorted(set(source.bands))
        order = [distinct.index(band) for band in source.bands]
        values = values.copy() if order == [0, 1, 2] else values[order]
        if source.scale_offset is None:
            return values, valid
        scale, offset = source.scale_offset
        with np.errstate(over="ignore"):  # nodata such as -3.4e38
            return values * scale + offset, valid

    def sample(self, geobox: GeoBox) -> NDArray[Any]:  # (3, N)
        """Valid colors spread over the grid.

        Raises:
            RasterError: no part of it can be read.
        """
        samples = iter_samples(geobox.width, geobox.height, self.dataset, self.read)
        return np.concatenate([values[:, valid] for values, valid in samples], axis=1)

    def check_readable(self, geobox: GeoBox) -> None:
        """Decode small windows of the grid until one succeeds.

        Raises:
            RasterError: no part of it can be read.
        """
        next(iter_samples(geobox.width, geobox.height, self.dataset, self.read, overviews=False))


def iter_samples(
    width: int,
    height: int,
    dataset: DatasetReader | WarpedVRT,
    read: Callable[[Window, tuple[int, int]], Sample],
    *,
    overviews: bool = True,
) -> Iterator[Sample]:
    """Samples of a raster: one decimated read of its overviews, or a lattice of small windows without any.

    `read` takes a window and the (rows, cols) to return for it. Windows that cannot be read are left out;
    they also replace a decimated read that fails. `overviews=False` uses windows only.

    Raises:
        RasterError: nothing can be read.
    """
    if overviews and (dataset.overviews(1) or max(width, height) <= 2 * SAMPLE_PX):
        with suppress(RasterError):
            yield read(Window(0, 0, width, height), (min(height, SAMPLE_PX), min(width, SAMPLE_PX)))
            return
    side = SAMPLE_PX // SAMPLE_WINDOWS
    cols, rows = min(side, width), min(side, height)
    col_offs, row_offs = (
        np.unique(np.linspace(0, length - size, SAMPLE_WINDOWS, dtype=int)).tolist()
        for length, size in ((width, cols), (height, rows))
    )
    failures: list[RasterError] = []
    readable = False
    for col_off, row_off in itertools.product(col_offs, row_offs):
        try:
            sample = read(Window(col_off, row_off, cols, rows), (rows, cols))
        except RasterError as error:
            failures.append(error)
        else:
            readable = True
            yield sample
    if not readable:
        raise failures[0]


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
    """The same raster through a VRT without the alpha label: GDAL always warps by a labelled alpha band."""
    with MemoryFile(ext=".vrt") as virtual:
        rasterio.shutil.copy(dataset, virtual.name, driver="VRT")
        unlabelled = bytes(virtual.read()).replace(b"<ColorInterp>Alpha</ColorInterp>", b"").decode()
    with rasterio.open(unlabelled) as reopened:
        yield reopened
