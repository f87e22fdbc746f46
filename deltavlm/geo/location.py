"""Raster locations (paths, URLs, GDAL's /vsi paths): checks before opening."""

from __future__ import annotations

from pathlib import Path

from deltavlm.errors import RasterError

__all__ = ["check_exists", "check_is_file", "is_remote"]

REMOTE_MARKS = ("http://", "https://", "s3://", "gs://", "az://", "/vsicurl", "/vsis3", "/vsigs", "/vsiaz")


def is_remote(location: str) -> bool:
    """True where opening the location costs a request."""
    return any(mark in location for mark in REMOTE_MARKS)


def _is_gdal_path(location: str) -> bool:
    return "://" in location or location.startswith("/vsi")


def check_exists(location: str) -> None:
    """Refuse a missing local file before GDAL does; URLs, /vsi paths and subdatasets are left to GDAL.

    Raises:
        RasterError: a local path that does not exist or whose status cannot be read.
    """
    if _is_gdal_path(location):
        return
    try:
        Path(location).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if ":" not in location:
            raise RasterError(f"{location}: no such file; check the name") from error
    except OSError as error:
        raise RasterError(f"{location}: cannot be looked at ({error.strerror}); check the name") from error


def check_is_file(location: str) -> None:
    """Refuse a missing file, a folder and an empty file, which GDAL reports with the same message.

    Raises:
        RasterError: a local path that does not exist, is a folder, or is empty.
    """
    check_exists(location)
    path = Path(location)
    if _is_gdal_path(location) or not path.exists():
        return
    if path.is_dir():
        raise RasterError(f"{location}: is a folder, not a raster; name a file in it")
    if path.stat().st_size == 0:
        raise RasterError(f"{location}: is empty (0 bytes); copy or download it again")
