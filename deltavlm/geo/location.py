"""Raster locations (paths, URLs, GDAL's /vsi paths): checks before opening, and identity.

What is shown of a location (`messages.redact_address`) and what it is known by are two things: images of one
server may differ in the query alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from deltavlm.errors import RasterError

__all__ = ["check_exists", "check_is_file", "file_identity", "is_remote", "local_file", "stable_address"]

_V4 = "algorithm", "credential", "date", "expires", "signedheaders", "security-token"
_AZURE = (
    *("sig", "sv", "st", "se", "sr", "sp", "spr", "sip", "ss", "srt", "si", "sdd", "ses", "saoid", "suoid"),
    *("scid", "skoid", "sktid", "skt", "ske", "sks", "skv"),
)
SIGNATURES: tuple[tuple[set[str], set[str]], ...] = (
    *(({f"x-{who}-signature"}, {f"x-{who}-{name}" for name in _V4}) for who in ("amz", "goog", "oss")),
    (
        {"signature"},
        {"awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "key-pair-id", "policy", "expires"}
        | {"x-amz-security-token", "security-token"},
    ),
    ({"sig", "sv"}, {*_AZURE}),
)
"""Parameters of signed URLs: those by which one is recognized, and others that change when it is renewed.
AWS, Google and Alibaba (version 4); CloudFront and the three in version 2; Azure."""

ARCHIVE = re.compile(r"!|/vsi(zip|tar|gzip|7z|rar)/|^(zip|tar|gzip)\+", re.IGNORECASE)

REMOTE_MARKS = ("http://", "https://", "s3://", "gs://", "az://", "/vsicurl", "/vsis3", "/vsigs", "/vsiaz")


def is_remote(location: str) -> bool:
    """True where opening the location costs a request."""
    return any(mark in location for mark in REMOTE_MARKS)


def stable_address(location: str) -> str:
    """Location without the signature of a signed URL, which is renewed while the image stays the same.

    >>> stable_address("https://host/x.tif?scene=1&X-Amz-Date=20260101&X-Amz-Signature=0123")
    'https://host/x.tif?scene=1'
    """
    if location.lower().startswith("/vsicurl"):
        location = unquote(location)  # /vsicurl?url=https%3A%2F%2F...
    names = {name.lower() for name in re.findall(r"[?&]([^=&?#]*)=", location)}
    signed = set[str]().union(*(marks | others for marks, others in SIGNATURES if marks <= names))
    end = r"[^&#!/{}]" if ARCHIVE.search(location) else r"[^&#]"  # the name of a file in an archive follows
    for name in signed:
        location = re.sub(rf"(?i)(?<=[?&]){re.escape(name)}={end}*&?", "", location)
    return re.sub(r"[?&]+(?=$|[#!/{}])", "", location)


def file_identity(location: str) -> dict[str, int] | None:
    """Size in bytes and modification time in ns, to recognize an unchanged file; None unless it is a local
    file."""
    try:
        status = Path(location).stat()
    except (OSError, ValueError):
        return None
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}


def local_file(location: str) -> Path:
    """Local file of a location: of a `file://` URL, of an archive (`/vsizip/a.zip/b.tif`, `zip://a.zip!b.tif`)
    or of a subdataset (`GTIFF_DIR:1:a.tif`) that of the outermost file; else the location as a path."""
    if ":" not in location and not location.startswith("/vsi"):
        return Path(location)
    path = re.sub(r"^((\w+\+)*\w+://|/vsi\w+/|\w+:(\d+:)?)*", "", location).partition("!")[0].strip('"')
    candidates = (Path(location), Path(path), *Path(path).parents)
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


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
