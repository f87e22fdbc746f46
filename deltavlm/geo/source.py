"""One raster, opened: which bands are its colours, which pixels hold data, how it looks on another grid."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import PixelGrid
from deltavlm.geo.drivers import NOT_READ, check_size, open_image
from deltavlm.geo.grid import Window
from deltavlm.geo.location import is_remote, public_name, refuse_what_is_no_file, translated
from deltavlm.geo.memory import release_now_and_then
from deltavlm.geo.radiometry import choose_bands

__all__ = ["Source", "View", "open_source"]

Part = TypeVar("Part")

SAMPLE_PX = 512  # side of the sample that decides about scale and alpha
SAMPLE_WINDOWS = 16  # along a side, where there are no overviews to sample from
MOSTLY = 0.9  # share of an alpha band that is wholly transparent or wholly opaque
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
    def grid(self) -> PixelGrid:
        dataset = self.dataset
        return PixelGrid(dataset.crs or None, dataset.transform, dataset.width, dataset.height)

    @property
    def name(self) -> str:
        return public_name(self.location)

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

    @contextmanager
    def seen_on(self, grid: PixelGrid, offset: tuple[int, int] | None, resampling: str) -> Iterator[View]:
        """The raster on another grid: warped, or shifted to where `offset` says that the grid's corner lies.

        Raises:
            RasterError: it cannot be warped onto that grid.
        """
        if offset is not None:
            yield View(self, self.dataset, self.dataset, *offset)
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
                    add_alpha=_loses_validity(dataset, nodata),
                    **how,
                )
                return stack.enter_context(virtual)

            with translated(
                self.location, "cannot be warped", "check its CRS, or warp it with gdalwarp first"
            ):
                if self.nodata is None or not _has_mask(self.dataset):
                    colours = mask = warped(self.dataset, self.nodata)
                else:  # GDAL heeds one of the two only, so each is warped by itself
                    bare = stack.enter_context(_without_alpha(self.dataset))
                    colours = warped(bare, self.nodata, UNIFIED_SRC_NODATA="PARTIAL")  # alpha is never nodata
                    mask = warped(self.dataset, None)
            yield View(self, colours, mask, 0, 0)


@dataclass(frozen=True, slots=True)
class View:
    """A raster on the grid of the analysis; windows are in the pixels of that grid."""

    source: Source
    dataset: DatasetReader | WarpedVRT
    mask: DatasetReader | WarpedVRT  # the same again, or what has the mask or alpha where that has lost it
    col_off: int
    row_off: int

    def read(
        self, window: Window, shape: tuple[int, int] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Colours (3, rows, cols) in the raster's dtype, its scale and offset applied; validity (rows, cols).

        With `shape` (rows, cols) the window is decimated to it.

        Raises:
            RasterError: a block of the file cannot be decoded.
        """
        source = self.source
        distinct = sorted(set(source.bands))
        place = RasterioWindow(window.col_off + self.col_off, window.row_off + self.row_off, *window[2:])
        shape = shape or (window.height, window.width)
        with translated(source.location, *UNREADABLE):
            values = self.dataset.read(distinct, window=place, out_shape=(len(distinct), *shape))
            valid = self._validity(values, place, shape)
        release_now_and_then()
        if source.palette is not None:
            return source.palette[:, values[0]], valid
        return self._physical(values[[distinct.index(band) for band in source.bands]]), valid

    def _validity(
        self, values: NDArray[Any], place: RasterioWindow, shape: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """True where all that the file has to say about it agrees that there is data.

        Alpha is read as a band: GDAL masks by it in 8 and 16 bit files only.
        """
        nodata, alpha = self.source.nodata, _alpha_band(self.mask)
        valid = np.ones(shape, bool)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        if nodata is not None:
            valid &= (values != nodata).any(axis=0)  # NaN as nodata is not finite already
        if alpha is not None:
            valid &= self.mask.read(alpha, window=place, out_shape=shape) > 0
        elif _has_mask(self.mask):
            valid &= self.mask.read_masks(1, window=place, out_shape=shape) > 0
        return valid

    def _physical(self, values: NDArray[Any]) -> NDArray[Any]:
        dataset, bands = self.source.dataset, self.source.bands
        scales, offsets = ([of[band - 1] for band in bands] for of in (dataset.scales, dataset.offsets))
        if values.dtype == np.uint8 or (set(scales), set(offsets)) == ({1.0}, {0.0}):
            return values
        scale, offset = (np.array(of, np.float32)[:, None, None] for of in (scales, offsets))
        with np.errstate(over="ignore"):  # nodata such as -3.4e38
            scaled: NDArray[Any] = values * scale + offset
        return scaled

    def sample(self, grid: PixelGrid) -> NDArray[Any]:  # (3, N)
        """Valid colours from all over the grid.

        Raises:
            RasterError: no part of it can be read.
        """
        parts = _spread(grid.width, grid.height, self.dataset, self.read)
        return np.concatenate([values[:, valid] for values, valid in parts], axis=1)

    def check_readable(self, grid: PixelGrid) -> None:
        """Look into the file until a part of it can be decoded.

        Raises:
            RasterError: no part of it can be read.
        """
        next(_spread(grid.width, grid.height, self.dataset, self.read, whole=False))


def _spread(
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


def _alpha_band(dataset: DatasetReader | WarpedVRT) -> int | None:
    interp = dataset.colorinterp
    return interp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in interp else None


def _has_mask(dataset: DatasetReader | WarpedVRT) -> bool:
    """Whether a mask or an alpha band hides pixels, apart from any nodata value."""
    return _alpha_band(dataset) is not None or MaskFlags.per_dataset in dataset.mask_flag_enums[0]


def _loses_validity(dataset: DatasetReader, nodata: float | None) -> bool:
    """Whether a warp must add an alpha band, to keep masks and to know that what lies outside is no data."""
    return nodata is None and _alpha_band(dataset) is None


@contextmanager
def open_source(
    location: str,
    *,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    trust_alpha: bool = True,
    look: bool = True,
    allow_vrt: bool = False,
) -> Iterator[Source]:
    """Open one raster: a path, `https://`, `s3://` or `/vsi...`.

    A raster placed by ground control points alone is warped into their CRS. An "alpha" band that varies like
    an image is taken for data and a note says so; with `trust_alpha=False` every one is. `look=False` is for
    those who want its place alone: no pixel is read, and nothing is said about bands. `allow_vrt` opens VRTs.

    Raises:
        RasterError: missing, empty, a folder, not a raster that may be opened (`drivers.py`), or too large.
        ConfigError: `bands` or `nodata` do not fit the file.
    """
    refuse_what_is_no_file(location)
    name = public_name(location)
    notes: list[str] = []
    with ExitStack() as stack:
        dataset = stack.enter_context(_opened(location, allow_vrt))
        with translated(location, *NOT_READ):
            check_size(dataset, name)
            if any(dtype.startswith("complex") for dtype in dataset.dtypes):
                raise RasterError(f"{name}: holds complex numbers; give an image of their amplitude")
            alpha = _alpha_band(dataset)
            if look and alpha and not (trust_alpha and _is_transparency(location, dataset, alpha)):
                notes.append(f"band {alpha} is labelled alpha but holds data, so it hides no pixels")
                dataset = stack.enter_context(_without_alpha(dataset))
            gcps, gcp_crs = dataset.gcps
            if not dataset.crs and gcps and gcp_crs:
                notes.append(f"placed by its {len(gcps)} ground control points")
                add_alpha = _loses_validity(dataset, dataset.nodata)
                dataset = stack.enter_context(
                    WarpedVRT(dataset, crs=gcp_crs, resampling=Resampling.bilinear, add_alpha=add_alpha)
                )
        try:
            chosen, guess = choose_bands([interp.name for interp in dataset.colorinterp], bands)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        guesses = (guess,) if guess and look else ()
        if nodata is None:
            nodata = dataset.nodatavals[chosen[0] - 1]
        else:
            _check_nodata(nodata, dataset.dtypes[chosen[0] - 1], name)
        yield Source(location, dataset, chosen, nodata, (*notes, *guesses), guesses)


@contextmanager
def _opened(location: str, allow_vrt: bool) -> Iterator[DatasetReader]:
    # EMPTY_DIR saves requests for neighbours; for a file it would hide a mask that lies beside it
    quick = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if is_remote(location) else {}
    with warnings.catch_warnings(), rasterio.Env(**quick):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the pair check says it better
        dataset = open_image(location, allow_vrt=allow_vrt)
    with dataset:
        yield dataset


def _check_nodata(nodata: float, dtype: str, name: str) -> None:
    is_float = np.dtype(dtype).kind == "f"
    limits: Any = np.finfo(dtype) if is_float else np.iinfo(dtype)
    low, high = (limit.item() if is_float else limit for limit in (limits.min, limits.max))
    fits = low <= nodata <= high if np.isfinite(nodata) else is_float
    if not fits or not (is_float or float(nodata).is_integer()):
        raise ConfigError(
            f"{name}: nodata {nodata:g} is not a value that {dtype} can hold;"
            f" give a {'number' if is_float else 'whole number'} from {low} to {high}"
        )


def _is_transparency(location: str, dataset: DatasetReader, alpha: int) -> bool:
    """Whether the label is right: transparency is on or off nearly everywhere, near infrared is not."""

    def read(window: Window, shape: tuple[int, int]) -> NDArray[Any]:
        with translated(location, *UNREADABLE):
            values: NDArray[Any] = dataset.read(alpha, window=RasterioWindow(*window), out_shape=shape)
        release_now_and_then()
        return values.ravel()

    values = np.concatenate(list(_spread(dataset.width, dataset.height, dataset, read)))
    opaque = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else values.max()
    return bool(np.isin(values, (0, 255, opaque)).mean() >= MOSTLY)


@contextmanager
def _without_alpha(dataset: DatasetReader) -> Iterator[DatasetReader]:
    """The same raster with the label gone, through a virtual copy: GDAL warps by alpha, asked or not."""
    with MemoryFile(ext=".vrt") as virtual:
        rasterio.shutil.copy(dataset, virtual.name, driver="VRT")
        unlabelled = bytes(virtual.read()).replace(b"<ColorInterp>Alpha</ColorInterp>", b"").decode()
    with rasterio.open(unlabelled) as reopened:
        yield reopened
