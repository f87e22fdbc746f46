"""Opening of one raster: format and size checks, band selection, nodata, alpha, ground control points."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import GCPTransformer
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.bands import BandChoice, choose_bands
from deltavlm.geo.dates import date_of_tags
from deltavlm.geo.drivers import NOT_READ, check_size, open_image
from deltavlm.geo.gdal import UNREADABLE, reset_error, trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import Window
from deltavlm.geo.identity import identify, identify_all
from deltavlm.geo.location import check_is_file, normalize_location
from deltavlm.geo.view import (
    MAX_VALUE,
    SAMPLE_WINDOWS,
    Source,
    alpha_band,
    has_transform,
    iter_samples,
    needs_alpha,
    warp_method,
    without_alpha,
)
from deltavlm.messages import pluralize, redact_address

__all__ = ["SourceOptions", "open_source"]

MAX_CONTROL_POINT_ERROR_PX = 2.0  # root mean square; more is a wrong point, or relief
MIN_OPAQUE_SHARE = 0.5  # of the pixels that an alpha band shows, which have its largest value, or nearly
NEARLY_OPAQUE = 0.98  # of that value, in lossy files

FILL_VALUES = (-9999, -99999, -999, -32768, -32767, 32767, 65535)
"""Usual nodata values: one that no tag declares is fill where it is farther from all others than these are
spread, and at least MIN_FILL_SHARE of the pixels have it."""
MIN_FILL_SHARE = 0.002
FILL_WINDOWS = (
    8  # along a side: one of them lies in each hole that is as large as the limits of a stretch (2 %)
)


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
            alpha, opaque = alpha_band(dataset), None
            if options.read_pixels and alpha:
                opaque = _opaque_value(location, dataset, alpha) if options.trust_alpha else None
                if opaque is None:
                    notes.append(f"band {alpha} is labelled alpha but holds data, so it hides no pixels")
                    dataset = stack.enter_context(without_alpha(dataset))
            chosen = _choose_bands(dataset, options.bands, name)
            distinct = sorted(set(chosen.rgb))
            nodata, fill = _nodata_values(dataset, distinct, options.nodata, name), None
            is_palette = dataset.colorinterp[distinct[0] - 1] is ColorInterp.palette
            if options.read_pixels:
                if chosen.note:
                    (guesses if chosen.is_guess else notes).append(chosen.note)
                if is_palette and not _has_color_table(dataset, distinct[0]):
                    guesses.append(
                        f"band {distinct[0]} is said to have a color table, and there is none: its values "
                        "are shown as gray"
                    )
                if not is_palette and options.nodata is None:
                    fill = _undeclared_fill(location, dataset, distinct, nodata)
            if fill is not None:
                guesses.append(
                    f"many of its values are {fill:g}, far from all others, and are taken for nodata; "
                    f"`nodata={fill:g}` says so, and `nodata` with another value that they are data"
                )
                if all(value is None or math.isnan(value) for value in nodata):  # a warp knows one value
                    nodata = (fill,) * len(nodata)
            if (gcp_crs := _control_point_crs(dataset)) is not None:
                points = pluralize(len(dataset.gcps[0]), "ground control point")
                notes.append(f"georeferenced by its {points}")
                if (error_px := _control_point_error(dataset)) > MAX_CONTROL_POINT_ERROR_PX:
                    guesses.append(
                        f"its {points} are {error_px:.1f} px (root mean square) off the polynomial that "
                        "places it; check them, or warp it with gdalwarp -tps first"
                    )
                value = nodata[0] if len(set(nodata)) == 1 else None
                dataset = stack.enter_context(
                    _warp_by_control_points(dataset, gcp_crs, name, options.resampling, value)
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


def _control_point_crs(dataset: DatasetReader) -> CRS | None:
    """CRS of the ground control points that place a raster; None where it has none, or a CRS and a transform
    of its own."""
    points, crs = dataset.gcps
    if not points or (dataset.crs and has_transform(dataset)):
        return None
    return crs or dataset.crs or None


def _control_point_error(dataset: DatasetReader) -> float:
    """Root mean square distance in pixels of the ground control points from the polynomial through them; 0
    where it cannot be computed, as across 180 degrees."""
    points, _ = dataset.gcps
    if np.ptp([point.x for point in points]) > 180 and dataset.gcps[1] and dataset.gcps[1].is_geographic:
        return 0.0
    try:
        with GCPTransformer(points) as transformer:
            xs, ys = zip(*((point.x, point.y) for point in points), strict=True)
            rows, cols = transformer.rowcol(xs, ys, op=float)
    except (CPLE_BaseError, RasterioError, ValueError):  # which the warp tells
        return 0.0
    offsets = [(row - p.row, col - p.col) for row, col, p in zip(rows, cols, points, strict=True)]
    return float(np.sqrt(np.mean(np.square(offsets).sum(axis=1))))


def _warp_by_control_points(
    dataset: DatasetReader, crs: CRS, name: str, resampling: str, nodata: float | None
) -> WarpedVRT:
    """The raster warped into the CRS of its ground control points. Raises: RasterError."""
    try:
        warped = WarpedVRT(
            dataset,
            src_crs=crs,
            crs=crs,
            resampling=warp_method(dataset, resampling),
            src_nodata=nodata,
            nodata=nodata,
            add_alpha=needs_alpha(dataset, nodata),
            UNIFIED_SRC_NODATA="NO",  # each band by itself, as in `Source.view_on`
        )
    except (CPLE_BaseError, RasterioError) as error:
        raise RasterError(
            f"{name}: not placed by its {pluralize(len(dataset.gcps[0]), 'ground control point')} ({error}); "
            "give at least three that are not on one line"
        ) from error
    check_size(warped, name)
    return warped


@contextmanager
def _open_dataset(location: str, allow_vrt: bool) -> Iterator[DatasetReader]:
    with ExitStack() as stack:
        with warnings.catch_warnings(), np.errstate(over="ignore"):  # nodata of 1e39
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `check_georeferenced` says it better
            dataset = stack.enter_context(open_image(location, allow_vrt=allow_vrt))
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


def _choose_bands(dataset: DatasetReader, bands: Sequence[int] | None, name: str) -> BandChoice:
    labels = [interp.name for interp in dataset.colorinterp]
    try:
        return choose_bands(labels, bands, dataset.descriptions, name.rpartition("/")[2])
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _nodata_values(
    dataset: DatasetReader, bands: list[int], nodata: float | None, name: str
) -> tuple[float | None, ...]:
    """Nodata value of each band: `nodata`, or its own; None where no pixel can have it."""
    if nodata is not None:
        for band in bands:
            _check_nodata(nodata, dataset.dtypes[band - 1], name)
        return (math.nan if math.isnan(nodata) else nodata,) * len(bands)
    values: list[float | None] = []
    with np.errstate(over="ignore"):  # of a nodata value beyond the data type
        declared = dataset.nodatavals
    for band in bands:
        value = declared[band - 1]
        is_float = np.dtype(dataset.dtypes[band - 1]).kind == "f"
        if value is not None and math.isnan(value):
            value = math.nan  # one object, so that a set holds it once
        fits = value is not None and (is_float or float(value).is_integer())
        values.append(value if fits else None)
    return tuple(values)


def _has_color_table(dataset: DatasetReader, band: int) -> bool:
    try:
        return bool(dataset.colormap(band))
    except ValueError:
        return False


def _sample(
    location: str, dataset: DatasetReader, bands: list[int], windows: int = SAMPLE_WINDOWS
) -> NDArray[Any]:  # (bands, N)
    """Stored values of bands, spread over the raster; `windows` as in `iter_samples`. Raises: RasterError."""

    def read(window: Window, shape: tuple[int, int]) -> NDArray[Any]:
        with wrap_gdal_errors(location, *UNREADABLE):
            out_shape = (len(bands), *shape)
            values: NDArray[Any] = dataset.read(bands, window=RasterioWindow(*window), out_shape=out_shape)
        trim_malloc()
        return values.reshape(len(bands), -1)

    samples = list(iter_samples((dataset.width, dataset.height), dataset, read, windows=windows))
    reset_error(dataset)
    return np.concatenate(samples, axis=1)


def _opaque_value(location: str, dataset: DatasetReader, alpha: int) -> float | None:
    """Value of opaque pixels in an alpha band: its largest, which is 1 or 4095 in some files. None where the
    band is none: what it shows is not mostly opaque, as in near infrared."""
    values = _sample(location, dataset, [alpha])[0]
    visible = values[values > 0]
    if not visible.size:
        return 1.0
    opaque = float(visible.max())
    return opaque if (visible >= NEARLY_OPAQUE * opaque).mean() >= MIN_OPAQUE_SHARE else None


def _undeclared_fill(
    location: str, dataset: DatasetReader, bands: list[int], declared: tuple[float | None, ...]
) -> float | None:
    """Usual nodata value that stands apart from all other values of a raster, and is not declared."""
    if all(dtype == "uint8" for dtype in dataset.dtypes):
        return None
    values = _sample(location, dataset, bands, FILL_WINDOWS)
    if values.dtype.kind == "f":
        values = values[:, (np.abs(values) < MAX_VALUE).all(axis=0)]
    for fill in (value for value in FILL_VALUES if value not in declared):
        holes = (values == fill).any(axis=0)
        others = values[values != fill].astype(float)
        if np.count_nonzero(holes) < max(1, MIN_FILL_SHARE * holes.size) or not others.size:
            continue
        low, high = np.percentile(others, (2, 98))
        if np.abs(others - fill).min() > high - low:
            return float(fill)
    return None
