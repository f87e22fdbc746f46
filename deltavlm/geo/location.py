"""Raster locations (paths, URLs, GDAL's /vsi paths): checks before opening."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qs, unquote

from deltavlm.errors import RasterError
from deltavlm.files import special_kind

__all__ = [
    "check_exists",
    "check_is_file",
    "decode_path",
    "is_local",
    "is_remote",
    "local_file",
    "normalize_location",
]

REMOTE_SCHEMES = ("http", "https", "ftp", "s3", "gs", "az", "oss")
ARCHIVE_SCHEMES = ("zip", "tar", "gzip")
REMOTE_HANDLERS = ("curl", "s3", "gs", "az", "adls", "oss", "swift", "hdfs", "webhdfs")
ARCHIVE_HANDLERS = ("zip", "tar", "gzip", "7z", "rar")
"""Schemes of URLs, and handlers of GDAL's /vsi paths, that are read. Handlers that put a file together from
others, decrypt one or read stdin (vsisparse, vsisubfile, vsicached, vsicrypt, vsistdin) are not."""

FILE_URL = re.compile(r"file:(?://localhost(?=/)|//)?(?=.)", re.IGNORECASE)
URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
VSI = re.compile(r"/?vsi([a-z0-9]+?)(?:_streaming)?(?P<end>[/?\\]|$)")
PREFIX = re.compile(r"\w{2,}:")  # GTIFF_DIR:, MEM:; a drive of Windows has one letter
REMOTE = re.compile(
    rf"(?:^|\+)(?:{'|'.join(REMOTE_SCHEMES)})://|/vsi(?:{'|'.join(REMOTE_HANDLERS)})(?:_streaming)?[/?]"
)
WHAT_IS_READ = "give a path, a URL (https://, s3://, gs://, az://) or a /vsi path of GDAL for one of these"


def normalize_location(location: str) -> str:
    """One spelling of a location: the path of a `file:` URL, and schemes in lower case; opens nothing.

    A percent-encoded `file:` URL is decoded unless there is a file of the encoded name.

    >>> normalize_location("FILE://localhost/data/a%20b.tif"), normalize_location("HTTPS://example.org/A.tif")
    ('/data/a b.tif', 'https://example.org/A.tif')
    """
    if file_url := FILE_URL.match(location):
        return decode_path(location[file_url.end() :])
    if url := URL.match(location):
        return url[1].lower() + location[url.end(1) :]
    return location


def decode_path(path: str) -> str:
    """The path of a URL without percent-encoding, unless there is a file of the encoded name."""
    return path if "%" not in path or os.path.lexists(path) else unquote(path)


def is_local(location: str) -> bool:
    """True for the path of a file on this machine; False for a URL and a /vsi path."""
    return not (URL.match(location) or location.startswith("/vsi"))


def is_remote(location: str) -> bool:
    """True where opening the location costs a request."""
    location = normalize_location(location)
    return not is_local(location) and REMOTE.search(location) is not None


def local_file(location: str) -> Path:
    """Local file of a location: the file itself, or the archive that it lies in (`/vsizip/a.zip/b.tif`,
    `zip://a.zip!b.tif`); for another location the location as a path."""
    location = normalize_location(location)
    if is_local(location) or is_remote(location) or location.startswith("/vsimem/"):
        return Path(location)
    inner = re.sub(r"^[a-z+]+://|^(?:/?vsi[a-z0-9]+/\{*)+", "", location).partition("!")[0]
    path = Path(inner.partition("}")[0])
    existing = next((name for name in (path, *path.parents) if name.exists()), path)
    return path if existing.is_dir() else existing


def check_exists(location: str) -> None:
    """Refuse a location that is not read, and a missing or special local file, before anything is opened.

    Raises:
        RasterError: a scheme, a handler of GDAL or a prefix that is not read; a local path that does not
            exist, whose status cannot be read, or that is a pipe, a device or a socket.
    """
    location = normalize_location(location)
    if problem := _unsupported(location):
        raise RasterError(f"{location}: {problem}; {WHAT_IS_READ}")
    if is_remote(location) or location.startswith("/vsimem/"):
        return
    try:
        kind = special_kind(local_file(location))
    except (FileNotFoundError, NotADirectoryError) as error:
        problem = "no such file; check the name"
        if PREFIX.match(location):
            problem = f"begins with a prefix of GDAL, and no file has this name; {WHAT_IS_READ}"
        raise RasterError(f"{location}: {problem}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise RasterError(f"{location}: cannot be looked at ({reason}); check the name") from error
    if kind:
        raise RasterError(f"{location}: is {kind}, which is not opened; give a file")


def _unsupported(location: str) -> str | None:
    """What is wrong with the scheme or a handler of a location; None where it is read."""
    if url := URL.match(location):
        *archives, last = url[1].split("+")
        known = {*REMOTE_SCHEMES, *ARCHIVE_SCHEMES, "file"}
        is_read = last in known and all(name in ARCHIVE_SCHEMES for name in archives)
        return None if is_read else f"is a URL of scheme {url[1]!r}, which is not read"
    handler = VSI.match(location) if location.startswith("/vsi") else None
    rest = location
    while handler:
        name, rest = handler[1], rest[handler.end() :]
        if name not in (*REMOTE_HANDLERS, *ARCHIVE_HANDLERS, "mem"):
            return f"is read through GDAL's handler /vsi{name}, which is not used here"
        if name == "curl":
            urls = parse_qs(rest).get("url", [""]) if handler["end"] == "?" else [rest]
            is_url = all(re.match("(?:https?|ftp)://", url, re.IGNORECASE) for url in urls)
            return None if is_url else "is a /vsicurl path without the URL of a server"
        handler = VSI.match(rest.lstrip("{")) if name in ARCHIVE_HANDLERS else None
        rest = rest.lstrip("{")
    return None


def check_is_file(location: str) -> None:
    """Refuse, beyond `check_exists`, a folder and an empty file, which GDAL reports with the same message.

    Raises:
        RasterError: as `check_exists`; or a local path that is a folder, or is empty.
    """
    check_exists(location)
    location = normalize_location(location)
    if not is_local(location):
        return
    path = Path(location)
    if path.is_dir():
        raise RasterError(f"{location}: is a folder, not a raster; name a file in it")
    if path.stat().st_size == 0:
        raise RasterError(f"{location}: is empty (0 bytes); copy or download it again")
