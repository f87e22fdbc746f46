"""Opening of one raster: format and size checks, band selection, nodata, alpha, ground control points."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.dates import date_of_tags
from deltavlm.geo.drivers import NOT_READ, check_size, open_image
from deltavlm.geo.gdal import trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import Window
from deltavlm.geo.identity import identify, identify_all
from deltavlm.geo.location import check_is_file, is_remote
from deltavlm.geo.radiometry import choose_bands
from deltavlm.geo.view import (
    UNREADABLE,
    Source,
    alpha_band,
    has_transform,
    iter_samples,
    needs_alpha,
    warp_method,
    without_alpha,
)
from deltavlm.messages import pluralize, redact_address

__all__ = ["open_source"]

MIN_EXTREME_SHARE = 0.9  # of an alpha band's pixels, which are fully transparent or fully opaque


@contextmanager
def open_source(
    location: str,
    *,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    trust_alpha: bool = True,
    read_pixels: bool = True,
    allow_vrt: bool = False,
    resampling: str = "bilinear",
) -> Iterator[Source]:
    """Open one raster: a path, `https://`, `s3://` or `/vsi...`.

    A raster georeferenced by ground control points alone is warped into their CRS, by `resampling` unless it
    has a palette. A band that is labelled
    alpha but varies like an image is taken for data, with a note; with `trust_alpha=False` every one is.
    `read_pixels=False` is for metadata only: no pixel is read, and notes on bands are left out. `allow_vrt`
    permits VRTs.

    Raises:
        RasterError: missing, empty, a folder, not a raster that may be opened (`drivers.py`), too large, or
            with control points that do not place it.
        ConfigError: `bands` or `nodata` do not fit the file.
    """
    check_is_file(location)
    name = redact_address(location)
    notes: list[str] = []
    with ExitStack() as stack:
        with wrap_gdal_errors(location, *NOT_READ):
            identity = identify(
                location
            )  # first: a file that changes from here on is not the one that is read
        dataset = stack.enter_context(_open_dataset(location, allow_vrt))
        with wrap_gdal_errors(location, *NOT_READ):
            files = identify_all(location, identity, dataset.files)
            check_size(dataset, name)
            if any(dtype.startswith("complex") for dtype in dataset.dtypes):
                raise RasterError(f"{name}: holds complex numbers; give an image of their amplitude")
            date = date_of_tags(dataset.tags() | dataset.tags(ns="IMAGERY"))
            alpha = alpha_band(dataset)
            if read_pixels and alpha and not (trust_alpha and _is_transparency(location, dataset, alpha)):
                notes.append(f"band {alpha} is labelled alpha but holds data, so it hides no pixels")
                dataset = stack.enter_context(without_alpha(dataset))
            if (gcp_crs := _control_point_crs(dataset)) is not None:
                notes.append(
                    f"georeferenced by its {pluralize(len(dataset.gcps[0]), 'ground control point')}"
                )
                dataset = stack.enter_context(_warp_by_control_points(dataset, gcp_crs, name, resampling))
        try:
            chosen, guess = choose_bands([interp.name for interp in dataset.colorinterp], bands)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        guesses = (guess,) if guess and read_pixels else ()
        if nodata is None:
            nodata = dataset.nodatavals[chosen[0] - 1]
        else:
            _check_nodata(nodata, dataset.dtypes[chosen[0] - 1], name)
        yield Source(location, dataset, chosen, nodata, (*notes, *guesses), guesses, date, files)


def _control_point_crs(dataset: DatasetReader) -> CRS | None:
    """CRS of the ground control points that place a raster; None where it has none, or a CRS and a transform
    of its own."""
    points, crs = dataset.gcps
    if not points or (dataset.crs and has_transform(dataset)):
        return None
    return crs or dataset.crs or None


def _warp_by_control_points(dataset: DatasetReader, crs: CRS, name: str, resampling: str) -> WarpedVRT:
    """The raster warped into the CRS of its ground control points. Raises: RasterError."""
    try:
        warped = WarpedVRT(
            dataset,
            src_crs=crs,
            crs=crs,
            resampling=warp_method(dataset, resampling),
            add_alpha=needs_alpha(dataset, dataset.nodata),
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
    # EMPTY_DIR saves requests for sidecar files; of a local file it would hide the mask next to it
    remote = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if is_remote(location) else {}
    with warnings.catch_warnings(), rasterio.Env(**remote):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `check_georeferenced` gives a better error
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
    """True where an alpha band really is one: it is 0 or opaque nearly everywhere, near infrared is not."""

    def read(window: Window, shape: tuple[int, int]) -> NDArray[Any]:
        with wrap_gdal_errors(location, *UNREADABLE):
            values: NDArray[Any] = dataset.read(alpha, window=RasterioWindow(*window), out_shape=shape)
        trim_malloc()
        return values.ravel()

    values = np.concatenate(list(iter_samples(dataset.width, dataset.height, dataset, read)))
    opaque = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else values.max()
    return bool(np.isin(values, (0, 255, opaque)).mean() >= MIN_EXTREME_SHARE)
