"""GDAL settings for reading, its errors and decoder warnings in our terms, and its memory given back."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import rasterio
from rasterio._err import CPLE_BaseError  # raised by warps and transforms, and not exported anywhere else
from rasterio._path import _parse_path, _vsi_path
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader

from deltavlm.errors import RasterError
from deltavlm.geo.location import is_remote
from deltavlm.messages import redact, redact_address

__all__ = [
    "UNREADABLE",
    "Server",
    "gdal_env",
    "log_decoder_warnings",
    "reset_error",
    "trim_malloc",
    "wrap_gdal_errors",
]

logger = logging.getLogger(__name__)

CACHE_BYTES = 32 * 2**20
"""GDAL's block cache, bounded so that memory does not grow with the raster. Strips need none of it; a warp,
and chips that are read alone, find their neighbors' blocks in it: two rows of 512 px in RGB rasters 10,000
px wide. With 16 MiB a warp took 1.4 times as long; 64 MiB were no faster."""

GDAL_LOG = logging.getLogger("rasterio._err")
DECODER_WARNING = re.compile(r"JPEGLib|libjpeg|libpng|opj_|LZW|corrupt.* data", re.IGNORECASE)

UNREADABLE = "a part of it cannot be read", "copy or download it again"
SLOW_S = 30.0  # of a read that fails at last; with 503, three repetitions take 7 s
TRIM_INTERVAL = 32  # reads


def gdal_env(*locations: str) -> rasterio.Env:
    """GDAL settings to open and read these locations; variables set in the environment take precedence."""
    settings: dict[str, int | str] = {
        "GDAL_CACHEMAX": CACHE_BYTES,
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # sidecar files are opened by their exact names
        "GDAL_HTTP_MAX_RETRY": "3",
        "GDAL_HTTP_RETRY_DELAY": "1",
        "GDAL_HTTP_CONNECTTIMEOUT": "20",
        "GDAL_HTTP_TIMEOUT": "60",
        # a server that never answers, or sends a byte now and then; such a request is not repeated
        "GDAL_HTTP_LOW_SPEED_TIME": "10",  # s
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",  # bytes/s
        # a large window is warped in the same blocks as a small one, so that both have the same pixels
        "GDAL_VRT_WARP_USE_DATASET_RASTERIO": "NO",
    }
    if any(map(is_remote, locations)):  # halves the requests; for local files: 7 % slower, 27 MB each
        settings["VSI_CACHE"] = "TRUE"
    return rasterio.Env(**{key: value for key, value in settings.items() if key not in os.environ})


@contextmanager
def wrap_gdal_errors(location: str, problem: str, advice: str) -> Iterator[None]:
    """Re-raise GDAL's errors as a RasterError that names the file.

    An error that tells secrets of the location is not kept as its cause.

    Raises:
        RasterError: `<file>: <problem> (<GDAL's message>); <advice>`.
    """
    try:
        yield
    except (RasterioError, CRSError, CPLE_BaseError, OSError, MemoryError) as error:
        words = str(error.__cause__ or error)
        detail = _without_secrets(words, location).strip().partition("\n")[0] or type(error).__name__
        cause = error if redact_address(location) == location and redact(words) == words else None
        message = f"{redact_address(location)}: {problem} ({detail.rstrip('.')}); {advice}"
        raise RasterError(message) from cause


def _without_secrets(text: str, location: str) -> str:
    """Text of GDAL about a location, which it may tell as it was given, or in its own spelling."""
    spellings = [location]
    with suppress(ValueError, RasterioError):
        spellings.append(_vsi_path(_parse_path(location)))
    for spelling in spellings:
        text = text.replace(spelling, redact_address(spelling))
        for mark in "?#":  # GDAL tells a part of an address too, such as its last one
            secret = spelling.partition(mark)[2]
            if secret and redact_address(spelling) != spelling:
                text = text.replace(mark + secret, "").replace(mark + secret.partition("#")[0], "")
    return redact(text)


class Server:
    """Server of a remote image, not asked any more after a read that failed for SLOW_S: GDAL asks for
    each block several times, and a run for each chip."""

    is_gone = False

    @contextmanager
    def watch(self, location: str) -> Iterator[None]:
        """Read from the server. Raises: RasterError."""
        if self.is_gone:
            raise RasterError(
                f"{redact_address(location)}: its server does not answer any more; try again later"
            )
        begin = time.monotonic()
        try:
            yield
        except RasterError:
            self.is_gone = time.monotonic() - begin > SLOW_S
            raise


def reset_error(dataset: DatasetReader) -> None:
    """Forget an error of a failed read, which GDAL would repeat for the next query of metadata."""
    with suppress(CPLE_BaseError):
        _ = dataset.colorinterp


class _DecoderFilter(logging.Filter):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.kinds = source, set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage().removeprefix("CPLE_AppDefined:").partition(" (this warning")[0]
        kind = re.sub(r"\d+", "", message)
        if DECODER_WARNING.search(message) and kind not in self.kinds:
            self.kinds.add(kind)
            logger.warning(
                "%s: a decoder complains (%s), so some pixels may be wrong although they can be read; "
                "compare the file with its source, or copy it again",
                self.source,
                redact(message),
            )
        return logging.getLogger().isEnabledFor(record.levelno)


@contextmanager
def log_decoder_warnings(source: str) -> Iterator[None]:
    """Log warnings of GDAL's decoders under the name `source`, each kind once.

    A flipped bit in a JPEG decodes to wrong pixels without an error; the decoder's warning is the only sign.
    """
    listener, level = _DecoderFilter(source), GDAL_LOG.level
    GDAL_LOG.addFilter(listener)
    GDAL_LOG.setLevel(logging.WARNING)
    try:
        yield
    finally:
        GDAL_LOG.setLevel(level)
        GDAL_LOG.removeFilter(listener)


def _find_malloc_trim() -> Callable[[int], object] | None:
    """glibc's `malloc_trim`; other systems have none."""
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


_malloc_trim = _find_malloc_trim()
_reads = itertools.count()


def trim_malloc() -> None:
    """Return freed memory to the system, in one of 32 calls; to be called after each read.

    GDAL allocates and frees blocks all the time, and glibc keeps their pages. Without this a process that
    read 20 000 x 20 000 pixels through a warp, chip by chip, grew by 170 MB; with it, one read took some 35
    microseconds longer.
    """
    if _malloc_trim is not None and next(_reads) % TRIM_INTERVAL == 0:
        _malloc_trim(0)
