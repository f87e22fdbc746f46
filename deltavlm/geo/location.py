"""Where a raster lies, how GDAL is told to go there, and GDAL's errors turned into ours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio._err import CPLE_BaseError  # raised by warps and transforms, and not exported anywhere else
from rasterio.errors import CRSError, RasterioError

from deltavlm.errors import RasterError

__all__ = [
    "file_mark",
    "gdal_settings",
    "is_remote",
    "public_name",
    "refuse_a_missing_file",
    "refuse_what_is_no_file",
    "translated",
]

CACHE_BYTES = 32 * 2**20
"""GDAL's block cache, bounded so that memory does not grow with the raster. Strips need none of it; a warp,
and chips that are read alone, find their neighbours' blocks in it: two rows of 512 px in RGB rasters 10,000
px wide. With 16 MiB a warp took 1.4 times as long; 64 MiB were no faster."""

REMOTE_MARKS = ("http://", "https://", "s3://", "gs://", "az://", "/vsicurl", "/vsis3", "/vsigs", "/vsiaz")


def is_remote(location: str) -> bool:
    """Whether looking at the location costs a request."""
    return any(mark in location for mark in REMOTE_MARKS)


def public_name(location: str) -> str:
    """The location for messages and results: a URL loses its user and query, which may be secrets.

    >>> public_name("https://me:secret@example.org/before.tif?token=secret")
    'https://example.org/before.tif'
    """
    if "://" not in location:
        return location
    return re.sub(r"://[^/@]*@", "://", location.partition("?")[0])


def file_mark(location: str) -> dict[str, int] | None:
    """Size in bytes and time of the last change in ns, by which a file is known again; None for what is no
    local file."""
    try:
        found = Path(location).stat()
    except (OSError, ValueError):
        return None
    return {"bytes": found.st_size, "changed_ns": found.st_mtime_ns}


def gdal_settings(*locations: str) -> rasterio.Env:
    """GDAL's settings to open and read these locations; what the user has set in the environment stays."""
    settings: dict[str, int | str] = {
        "GDAL_CACHEMAX": CACHE_BYTES,
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # files beside an image are looked for by their exact names
        "GDAL_HTTP_MAX_RETRY": "3",
        "GDAL_HTTP_RETRY_DELAY": "1",
        "GDAL_HTTP_CONNECTTIMEOUT": "20",
        "GDAL_HTTP_TIMEOUT": "60",
        # a large window is warped in the same blocks as a small one, so that both have the same pixels
        "GDAL_VRT_WARP_USE_DATASET_RASTERIO": "NO",
    }
    if any(map(is_remote, locations)):  # half the requests; local files are slower by it, and take 27 MB each
        settings["VSI_CACHE"] = "TRUE"
    return rasterio.Env(**{key: value for key, value in settings.items() if key not in os.environ})


@contextmanager
def translated(location: str, problem: str, advice: str) -> Iterator[None]:
    """Let GDAL's errors out as one RasterError that names the file.

    Raises:
        RasterError: `<file>: <problem> (<GDAL's own words>); <advice>`.
    """
    try:
        yield
    except (RasterioError, CRSError, CPLE_BaseError, OSError, MemoryError) as error:
        detail = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        detail = detail.replace(location, public_name(location)).rstrip(".")
        raise RasterError(f"{public_name(location)}: {problem} ({detail}); {advice}") from error


def _is_for_gdal(location: str) -> bool:
    return "://" in location or location.startswith("/vsi")


def refuse_a_missing_file(location: str) -> None:
    """Say so before GDAL does; only GDAL knows whether a URL, a /vsi path or a subdataset is there.

    Raises:
        RasterError: a local path that does not exist or that the system refuses to look for.
    """
    if _is_for_gdal(location):
        return
    try:
        Path(location).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if ":" not in location:
            raise RasterError(f"{location}: no such file; check the name") from error
    except OSError as error:
        raise RasterError(f"{location}: cannot be looked at ({error.strerror}); check the name") from error


def refuse_what_is_no_file(location: str) -> None:
    """Tell the plain mistakes apart, for which GDAL has one answer only.

    Raises:
        RasterError: a local path that does not exist, is a folder, or is empty.
    """
    refuse_a_missing_file(location)
    path = Path(location)
    if _is_for_gdal(location) or not path.exists():
        return
    if path.is_dir():
        raise RasterError(f"{location}: is a folder, not a raster; name a file in it")
    if path.stat().st_size == 0:
        raise RasterError(f"{location}: is empty (0 bytes); copy or download it again")
