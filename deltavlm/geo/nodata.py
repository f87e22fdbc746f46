"""Pixels without data in a raster: its nodata values, fill that no tag declares, masks and alpha bands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import ConfigError
from deltavlm.geo.gdal import UNREADABLE, reset_error, trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import Window
from deltavlm.geo.sampling import SAMPLE_WINDOWS, iter_samples

__all__ = ["MAX_VALUE", "alpha_band", "has_mask", "nodata_values", "opaque_value", "undeclared_fill"]

MAX_VALUE = 1e30
"""Values of float bands beyond it, such as -3.4e38 or 9.97e36, are fill, even if no nodata value says so."""

MIN_OPAQUE_SHARE = 0.5  # of the pixels that an alpha band shows, which have its largest value, or nearly
NEARLY_OPAQUE = 0.98  # of that value, in lossy files

FILL_VALUES = (-9999, -99999, -999, -32768, -32767, 32767, 65535)
"""Usual nodata values: one that no tag declares is fill where it is farther from all others than these are
spread, and at least MIN_FILL_SHARE of the pixels have it."""
MIN_FILL_SHARE = 0.002
FILL_WINDOWS = (
    8  # along a side: one of them lies in each hole that is as large as the limits of a stretch (2 %)
)


def alpha_band(dataset: DatasetReader | WarpedVRT) -> int | None:
    """Number of the alpha band, from 1."""
    interp = dataset.colorinterp
    return interp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in interp else None


def has_mask(dataset: DatasetReader | WarpedVRT) -> bool:
    """True where a mask or an alpha band hides pixels, nodata apart."""
    return alpha_band(dataset) is not None or MaskFlags.per_dataset in dataset.mask_flag_enums[0]


def nodata_values(
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


def opaque_value(location: str, dataset: DatasetReader, alpha: int) -> float | None:
    """Value of opaque pixels in an alpha band: its largest, which is 1 or 4095 in some files. None where the
    band is none: what it shows is not mostly opaque, as in near infrared."""
    values = _sample(location, dataset, [alpha])[0]
    visible = values[values > 0]
    if not visible.size:
        return 1.0
    opaque = float(visible.max())
    return opaque if (visible >= NEARLY_OPAQUE * opaque).mean() >= MIN_OPAQUE_SHARE else None


def undeclared_fill(
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
