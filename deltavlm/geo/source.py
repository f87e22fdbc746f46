"""Opening of one raster: format and size checks, band selection, nodata, alpha, ground control points."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.bands import BandChoice, choose_bands
from deltavlm.geo.control_points import control_point_crs, control_point_texts, warp_by_control_points
from deltavlm.geo.dates import date_of_tags
from deltavlm.geo.drivers import NOT_READ, check_size, open_image
from deltavlm.geo.gdal import Server, wrap_gdal_errors
from deltavlm.geo.geobox import GeoBox, has_transform
from deltavlm.geo.identity import Identity, identify, identify_all
from deltavlm.geo.location import check_is_file, is_remote, normalize_location
from deltavlm.geo.nodata import MAX_VALUE, alpha_band, nodata_values, opaque_value, undeclared_fill
from deltavlm.geo.warp import without_alpha
from deltavlm.messages import redact_address

__all__ = ["Source", "SourceOptions", "open_source"]

NO_COLOR_TABLE = "band {band} is said to have a color table, and there is none: its values are shown as gray"
UNDECLARED_FILL = (
    "many of its values are {fill:g}, far from all others, and are taken for nodata; `nodata={fill:g}` says "
    "so, and `nodata` with another value that they are data"
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Options of `open_source`."""

    bands: Sequence[int] | None = None
    nodata: float | None = None
    trust_alpha: bool = True  # False: a band that is labelled alpha is data
    read_pixels: bool = True  # False: metadata only, without notes on bands
    allow_vrt: bool = False
    resampling: str = "bilinear"  # of a raster that is warped by its ground control points


@contextmanager
def open_source(location: str, options: SourceOptions | None = None) -> Iterator[Source]:
    """Open one raster: a path, `https://`, `s3://` or `/vsi...`.

    A raster georeferenced by ground control points alone is warped into their CRS. A band that is labelled
    alpha but varies like an image is taken for data, with a note.

    Raises:
        RasterError: missing, empty, a folder, not a raster that may be opened (`drivers.py`), too large, or
            with control points that do not place it.
        ConfigError: bands or nodata do not fit the file.
    """
    options = options or SourceOptions()
    location = normalize_location(location)
    check_is_file(location)
    name = redact_address(location)
    notes: list[str] = []
    guesses: list[str] = []
    with ExitStack() as stack:
        with wrap_gdal_errors(location, *NOT_READ):
            identity = identify(location)  # first: a change from here on is one of what is read
        dataset = stack.enter_context(_open_dataset(location, options.allow_vrt))
        with wrap_gdal_errors(location, *NOT_READ):
            files = identify_all(location, identity, dataset.files)
            check_size(dataset, name)
            if any(dtype.startswith("complex") for dtype in dataset.dtypes):
                raise RasterError(f"{name}: holds complex numbers; give an image of their amplitude")
            date = date_of_tags(dataset.tags() | dataset.tags(ns="IMAGERY"))
            opaque = None
            if options.read_pixels and (alpha := alpha_band(dataset)):
                opaque = opaque_value(location, dataset, alpha) if options.trust_alpha else None
                if opaque is None:
                    notes.append(f"band {alpha} is labelled alpha but holds data, so it hides no pixels")
                    dataset = stack.enter_context(without_alpha(dataset))
            chosen = _choose_bands(dataset, options.bands, name)
            distinct = sorted(set(chosen.rgb))
            nodata, fill = nodata_values(dataset, distinct, options.nodata, name), None
            if options.read_pixels:
                if chosen.note:
                    (guesses if chosen.is_guess else notes).append(chosen.note)
                is_palette = dataset.colorinterp[distinct[0] - 1] is ColorInterp.palette
                if is_palette and not _has_color_table(dataset, distinct[0]):
                    guesses.append(NO_COLOR_TABLE.format(band=distinct[0]))
                if not is_palette and options.nodata is None:
                    fill = undeclared_fill(location, dataset, distinct, nodata)
            if fill is not None:
                guesses.append(UNDECLARED_FILL.format(fill=fill))
                if all(value is None or math.isnan(value) for value in nodata):  # a warp knows one value
                    nodata = (fill,) * len(nodata)
            if (gcp_crs := control_point_crs(dataset)) is not None:
                note, warning = control_point_texts(dataset)
                notes.append(note)
                guesses += [warning] if warning else []
                value = nodata[0] if len(set(nodata)) == 1 else None
                dataset = stack.enter_context(
                    warp_by_control_points(dataset, gcp_crs, name, options.resampling, value)
                )
        yield Source(
            location=location,
            dataset=dataset,
            bands=chosen.rgb,
            opaque=opaque,
            nodata=nodata,
            fill=fill,
            notes=(*notes, *guesses),
            warnings=tuple(guesses),
            date=date,
            files=files,
        )


@contextmanager
def _open_dataset(location: str, allow_vrt: bool) -> Iterator[DatasetReader]:
    with ExitStack() as stack:
        with ignore_missing_transforms(), np.errstate(over="ignore"):  # nodata of 1e39
            dataset = stack.enter_context(open_image(location, allow_vrt=allow_vrt))
        yield dataset


class _Quiet:
    """State of `ignore_missing_transforms`: the number of threads in it, and the filters as they were."""

    lock = threading.Lock()
    threads = 0
    filters: warnings.catch_warnings[None] | None = None


@contextmanager
def ignore_missing_transforms() -> Iterator[None]:
    """Context without rasterio's warning of an image without a transform; `check_georeferenced` says it
    better. Filters belong to the process: the first of several threads sets them, the last resets them."""
    with _Quiet.lock:
        if not _Quiet.threads:
            _Quiet.filters = warnings.catch_warnings()
            _Quiet.filters.__enter__()
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
        _Quiet.threads += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.threads -= 1
            if not _Quiet.threads and _Quiet.filters is not None:
                _Quiet.filters.__exit__(None, None, None)


def _choose_bands(dataset: DatasetReader, bands: Sequence[int] | None, name: str) -> BandChoice:
    labels = [interp.name for interp in dataset.colorinterp]
    try:
        return choose_bands(labels, bands, dataset.descriptions, name.rpartition("/")[2])
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _has_color_table(dataset: DatasetReader, band: int) -> bool:
    try:
        return bool(dataset.colormap(band))
    except ValueError:
        return False
