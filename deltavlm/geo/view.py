"""A raster in its own pixels, and how it looks on another grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import RasterError
from deltavlm.geo.gdal import trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.location import redact_credentials

__all__ = ["UNREADABLE", "Raw", "Source", "View", "alpha_band", "loses_validity", "spread", "without_alpha"]

Part = TypeVar("Part")

SAMPLE_PX = 512  # side of the sample that decides about scale and alpha
SAMPLE_WINDOWS = 16  # along a side, where there are no overviews to sample from
UNREADABLE = "a part of it cannot be read", "copy or download it again"


@dataclass(frozen=True)
class Source:
    """A raster in its own pixels."""

    location: str
    dataset: DatasetReader
    bands: tuple[int, int, int]  # red, green, blue, from 1
    nodata: float | None
    notes: tuple[str, ...]  # what was found out about it
    warnings: tuple[str, ...]  # those of the notes that are a guess

    @cached_property
    def geobox(self) -> GeoBox:
        dataset = self.dataset
        return GeoBox(dataset.width, dataset.height, dataset.transform, dataset.crs or None)

    @property
    def name(self) -> str:
        return redact_credentials(self.location)

    @property
    def dtype(self) -> str:
        return str(self.dataset.dtypes[self.bands[0] - 1])

    @cached_property
    def palette(self) -> NDArray[np.uint8] | None:  # (3, 256)
        """The colours behind a paletted raster's numbers."""
        if self.dataset.colorinterp[self.bands[0] - 1] is not ColorInterp.palette:
            return None
        colours = np.zeros((3, 256), np.uint8)
        for number, colour in self.dataset.colormap(self.bands[0]).items():
            colours[:, number] = colour[:3]
        return colours

    @cached_property
    def physical(self) -> NDArray[np.float32] | None:  # (2, 3, 1, 1): scale, offset
        """What makes numbers of the file physical ones; None where they are that already."""
        dataset, bands = self.dataset, self.bands
        scales, offsets = ([of[band - 1] for band in bands] for of in (dataset.scales, dataset.offsets))
        if self.dtype == "uint8" or (set(scales), set(offsets)) == ({1.0}, {0.0}):
            return None
        return np.array([scales, offsets], np.float32)[:, :, None, None]

    @contextmanager
    def view_on(self, grid: GeoBox, offset: tuple[int, int] | None, resampling: str) -> Iterator[View]:
        """The raster on another grid: warped, or shifted to where `offset` says that the grid's corner lies.

        Raises:
            RasterError: it cannot be warped onto that grid.
        """
        if offset is not None:
            yield View.of(self, self.dataset, self.dataset, *offset)
            return
        with ExitStack() as stack:

            def warped(dataset: DatasetReader, nodata: float | None, **how: str) -> WarpedVRT:
                virtual = WarpedVRT(
                    dataset,
                    crs=grid.crs,
                    transform=grid.transform,
                    width=grid.width,
                    height=grid.height,
                    resampling=Resampling.nearest if self.palette is not None else Resampling[resampling],
                    src_nodata=nodata,
                    nodata=nodata,
                    add_alpha=loses_validity(dataset, nodata),
                    **how,
                )
                return stack.enter_context(virtual)

            with wrap_gdal_errors(
                self.location, "cannot be warped", "check its CRS, or warp it with gdalwarp first"
            ):
                if self.nodata is None or not has_mask(self.dataset):
                    colours = mask = warped(self.dataset, self.nodata)
                else:  # GDAL heeds one of the two only, so each is warped by itself
                    bare = stack.enter_context(without_alpha(self.dataset))
                    colours = warped(bare, self.nodata, UNIFIED_SRC_NODATA="PARTIAL")  # alpha is never nodata
                    mask = warped(self.dataset, None)
            yield View.of(self, colours, mask, 0, 0)


class Raw(NamedTuple):
    """Pixels as a file has them."""

    values: NDArray[Any]  # (bands, rows, cols): the distinct ones among red, green, blue, in the file's order
    mask: NDArray[Any] | None  # (rows, cols), 0: a mask or alpha hides the pixel

    def cut(self, rows: slice, cols: slice) -> Raw:
        """A part of it, not copied."""
        return Raw(self.values[:, rows, cols], None if self.mask is None else self.mask[rows, cols])


@dataclass(frozen=True, slots=True)
class View:
    """A raster on the grid of the analysis; windows are in the pixels of that grid."""

    source: Source
    dataset: DatasetReader | WarpedVRT
    mask: DatasetReader | WarpedVRT  # the same again, or what has the mask or alpha where that has lost it
    col_off: int
    row_off: int
    alpha: int | None  # the band of `mask` that hides pixels
    mask_dtype: str | None  # of what hides pixels, apart from any nodata value; None where nothing does

    @classmethod
    def of(
        cls,
        source: Source,
        dataset: DatasetReader | WarpedVRT,
        mask: DatasetReader | WarpedVRT,
        col_off: int,
        row_off: int,
    ) -> View:
        """The view, with what is to be found out before a read fails: GDAL tells its last error again."""
        alpha = alpha_band(mask)
        mask_dtype = str(mask.dtypes[alpha - 1]) if alpha else "uint8" if has_mask(mask) else None
        return cls(source, dataset, mask, col_off, row_off, alpha, mask_dtype)

    def read(
        self, window: Window, shape: tuple[int, int] | None = None, *, averaged: bool = False
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Colours (3, rows, cols) in the raster's dtype, its scale and offset applied; validity (rows, cols).

        With `shape` (rows, cols) the window is decimated to it; `averaged` as in `raw`.

        Raises:
            RasterError: a block of the file cannot be decoded.
        """
        room = self.allocate(*(shape or (window.height, window.width)))
        return self.to_rgb(self.read_raw(room, window, averaged=averaged))

    def allocate(self, rows: int, cols: int) -> Raw:
        """Where `raw` can put as many pixels, not filled."""
        values = np.empty((len(set(self.source.bands)), rows, cols), self.source.dtype)
        return Raw(values, None if self.mask_dtype is None else np.empty((rows, cols), self.mask_dtype))

    def read_raw(self, room: Raw, window: Window, *, averaged: bool = False) -> Raw:
        """Fill the room with the pixels of the window as the file has them, decimated where it is smaller:
        every n-th pixel, or `averaged`, which takes every pixel to look smooth. Numbers of a palette are not.

        Alpha is read as a band: GDAL masks by it in 8 and 16 bit files only.

        Raises:
            RasterError: a block of the file cannot be decoded.
        """
        place = RasterioWindow(window.col_off + self.col_off, window.row_off + self.row_off, *window[2:])
        with wrap_gdal_errors(self.source.location, *UNREADABLE):
            smooth = averaged and self.source.palette is None
            how = Resampling.average if smooth else Resampling.nearest
            self.dataset.read(sorted(set(self.source.bands)), window=place, out=room.values, resampling=how)
            if self.alpha is not None:
                self.mask.read(self.alpha, window=place, out=room.mask)
            elif room.mask is not None:
                self.mask.read_masks(1, window=place, out=room.mask)
        trim_malloc()
        return room

    def to_rgb(self, raw: Raw) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Raw pixels as `read` gives them, in memory of their own; each depends on its raw pixel alone."""
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
        if source.physical is None:
            return values, valid
        scale, offset = source.physical
        with np.errstate(over="ignore"):  # nodata such as -3.4e38
            return values * scale + offset, valid

    def sample(self, grid: GeoBox) -> NDArray[Any]:  # (3, N)
        """Valid colours from all over the grid.

        Raises:
            RasterError: no part of it can be read.
        """
        parts = spread(grid.width, grid.height, self.dataset, self.read)
        return np.concatenate([values[:, valid] for values, valid in parts], axis=1)

    def check_readable(self, grid: GeoBox) -> None:
        """Look into the file until a part of it can be decoded.

        Raises:
            RasterError: no part of it can be read.
        """
        next(spread(grid.width, grid.height, self.dataset, self.read, whole=False))


def spread(
    width: int,
    height: int,
    dataset: DatasetReader | WarpedVRT,
    read: Callable[[Window, tuple[int, int]], Part],
    *,
    whole: bool = True,
) -> Iterator[Part]:
    """Parts that stand for the whole: a decimated read of overviews, or small windows all over the raster.

    `read` takes a window and the (rows, cols) to give for it. What cannot be read is left out; where that is
    a part of the decimated read, small windows take its place, and with `whole=False` always.

    Raises:
        RasterError: no part can be read.
    """
    if whole and (dataset.overviews(1) or max(width, height) <= 2 * SAMPLE_PX):
        with suppress(RasterError):
            yield read(Window(0, 0, width, height), (min(height, SAMPLE_PX), min(width, SAMPLE_PX)))
            return
    side = SAMPLE_PX // SAMPLE_WINDOWS
    wide, high = min(side, width), min(side, height)
    lefts, tops = (
        np.unique(np.linspace(0, length - part, SAMPLE_WINDOWS, dtype=int)).tolist()
        for length, part in ((width, wide), (height, high))
    )
    failures: list[RasterError] = []
    readable = False
    for left, top in itertools.product(lefts, tops):
        try:
            part = read(Window(left, top, wide, high), (high, wide))
        except RasterError as error:
            failures.append(error)
        else:
            readable = True
            yield part
    if not readable:
        raise failures[0]


def alpha_band(dataset: DatasetReader | WarpedVRT) -> int | None:
    interp = dataset.colorinterp
    return interp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in interp else None


def has_mask(dataset: DatasetReader | WarpedVRT) -> bool:
    """Whether a mask or an alpha band hides pixels, apart from any nodata value."""
    return alpha_band(dataset) is not None or MaskFlags.per_dataset in dataset.mask_flag_enums[0]


def loses_validity(dataset: DatasetReader, nodata: float | None) -> bool:
    """Whether a warp must add an alpha band, to keep masks and to know that what lies outside is no data."""
    return nodata is None and alpha_band(dataset) is None


@contextmanager
def without_alpha(dataset: DatasetReader) -> Iterator[DatasetReader]:
    """The same raster with the label gone, through a virtual copy: GDAL warps by alpha, asked or not."""
    with MemoryFile(ext=".vrt") as virtual:
        rasterio.shutil.copy(dataset, virtual.name, driver="VRT")
        unlabelled = bytes(virtual.read()).replace(b"<ColorInterp>Alpha</ColorInterp>", b"").decode()
    with rasterio.open(unlabelled) as reopened:
        yield reopened
