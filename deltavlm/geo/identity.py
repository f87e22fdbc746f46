"""Identity of an input file: what it is recognized by when a run is resumed, and when it has been read.

What is shown of a location (`messages.redact_address`) and what it is known by are two things: images of one
server may differ in the query alone, and an object may be replaced under the same address.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import rasterio._base
from rasterio._path import _parse_path, _vsi_path
from rasterio.env import ensure_env_with_credentials
from rasterio.errors import RasterioError, RasterioIOError

from deltavlm.geo.gdal import gdal_env
from deltavlm.geo.location import is_remote, local_file, normalize_location

__all__ = [
    "Identity",
    "address_digest",
    "content_identity",
    "current_identity",
    "identify",
    "identify_all",
    "is_same",
    "stable_address",
]

Identity = Mapping[str, int | str]
"""Of a local file `bytes`, `changed_ns` and `inode`; of a remote one `bytes`, `etag` and `modified`, as its
server tells; of a small file `digest`."""

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

_IN_ARCHIVE = re.compile(r"!|/vsi(zip|tar|gzip|7z|rar)/|^(zip|tar|gzip)\+", re.IGNORECASE)
_ARCHIVE_PREFIX = re.compile(r"/vsi(?:zip|tar|gzip|7z|rar)/")
_ARCHIVE_END = re.compile(r"(?i)\.(?:zip|kmz|tar|tgz|tar\.gz|gz|7z|rar)(?=[/?!]|$)")
_ErrorHandler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)
_CE_FAILURE = 3
_SQLITE = b"SQLite format 3\0"
_SQLITE_HEADER_BYTES = 100  # they change when a program looks at the file
_FILE_BLOCK = 2**20


def stable_address(location: str) -> str:
    """Location without the signature of a signed URL, which is renewed while the image stays the same.

    >>> stable_address("https://host/x.tif?scene=1&X-Amz-Date=20260101&X-Amz-Signature=0123")
    'https://host/x.tif?scene=1'
    """
    if location.lower().startswith("/vsicurl"):
        location = unquote(location)  # /vsicurl?url=https%3A%2F%2F...
    names = {name.lower() for name in re.findall(r"[?&]([^=&?#]*)=", location)}
    signed = set[str]().union(*(marks | others for marks, others in SIGNATURES if marks <= names))
    end = r"[^&#!/{}]" if _IN_ARCHIVE.search(location) else r"[^&#]"  # a name in the archive follows
    for name in signed:
        location = re.sub(rf"(?i)(?<=[?&]){re.escape(name)}={end}*&?", "", location)
    return re.sub(r"[?&]+(?=$|[#!/{}])", "", location)


def address_digest(key: bytes, *locations: str) -> str:
    """Digest of whole addresses, as images may differ in a query, that is keyed, as they may hold passwords;
    without signatures."""
    addresses = json.dumps([stable_address(location) for location in locations])
    return hashlib.blake2b(addresses.encode(), key=key, digest_size=16).hexdigest()


def identify(location: str) -> Identity | None:
    """Identity of the file or object that a location reads, of an archive that of the archive; None where
    nothing is known of it. A remote one costs the request that opening it would make first.

    Raises: RasterioError where a server cannot be reached, or refuses.
    """
    if is_remote(location):
        location = normalize_location(location)
        return _identity_of_response(_response_headers(location, _container(_gdal_path(location)))) or None
    with suppress(OSError, ValueError):
        file = local_file(location)
        if file.is_file():
            status = file.stat()
            return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns, "inode": status.st_ino}
    return None


def current_identity(location: str) -> Identity | None:
    """`identify` outside a dataset; None also where a server does not answer."""
    with suppress(RasterioError), gdal_env(location):
        return identify(location)
    return None


def identify_all(location: str, identity: Identity | None, files: Iterable[str]) -> dict[str, Identity]:
    """Identities by file: that of an open dataset's location, and those of its other `files` that hold
    pixels or masks, such as the sources of a VRT. What programs add when they show an image is left out."""
    identities = {} if identity is None else {location: identity}
    for file in files:
        if file not in (location, _gdal_path(location)) and not file.lower().endswith((".aux.xml", ".ovr")):
            with suppress(RasterioError):
                identities |= {file: each} if (each := identify(file)) else {}
    return identities


def is_same(first: Identity | None, second: Identity | None, *, ignored: Iterable[str] = ()) -> bool:
    """False where two identities contradict each other; what only one knows does not count.

    An ETag decides over the time of the last change.
    """
    if first is None or second is None:
        return True
    keys = (first.keys() & second.keys()) - {*ignored}
    if "etag" in keys:
        keys -= {"modified"}
    return all(first[key] == second[key] for key in keys)


def content_identity(path: Path) -> Identity | None:
    """Digest of the content of a small file, such as an area of interest; None where it cannot be read.

    Of a GeoPackage without the header, and of a shapefile only the file of geometries.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            head = file.read(_SQLITE_HEADER_BYTES)
            digest.update(_SQLITE if head.startswith(_SQLITE) else head)
            while block := file.read(_FILE_BLOCK):
                digest.update(block)
    except (OSError, ValueError):
        return None
    return {"digest": digest.hexdigest()}


def _gdal_path(location: str) -> str:
    with suppress(ValueError, RasterioError):
        return str(_vsi_path(_parse_path(location)))
    return location


def _container(path: str) -> str:
    """GDAL's path of the archive that a path leads into, of an archive in an archive the outer one.

    >>> _container("/vsizip/vsicurl/https://host/a.zip/x.tif")
    '/vsicurl/https://host/a.zip'
    """
    while prefix := _ARCHIVE_PREFIX.match(path):
        path = path[prefix.end() :]
        if path.startswith("{"):
            path = path[1 : path.rfind("}")] if "}" in path else path[1:]
        elif end := _ARCHIVE_END.search(path):
            query = re.match(r"\?[^/]*", path[end.end() :])
            path = path[: end.end()] + (query[0] if query else "")
        if path.startswith("vsi"):
            path = f"/{path}"
    return path


def _identity_of_response(headers: Mapping[str, str]) -> Identity:
    identity: dict[str, int | str] = {}
    size = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
    if size.isdecimal():
        identity["bytes"] = int(size)
    for key, name in (("etag", "etag"), ("modified", "last-modified")):
        if name in headers:
            identity[key] = headers[name]
    return identity


@ensure_env_with_credentials  # type: ignore[untyped-decorator]  # it finds the credentials for the location
def _response_headers(location: str, path: str) -> dict[str, str]:
    """Headers of the response to a request for the size of a remote object, by name in lower case.

    Raises: RasterioIOError.
    """
    gdal = _gdal()
    if gdal is None:
        return {}
    problems: list[str] = []

    def note(kind: int, number: int, message: bytes) -> None:
        if kind >= _CE_FAILURE:
            problems.append(message.decode("utf-8", "replace"))

    handler = _ErrorHandler(note)  # a name of its own: it must live as long as GDAL may call it
    gdal.CPLPushErrorHandler(handler)
    try:
        lines = gdal.VSIGetFileMetadata(path.encode(), b"HEADERS", None)
    finally:
        gdal.CPLPopErrorHandler()
        gdal.CPLErrorReset()
    texts = takewhile(lambda line: line is not None, lines) if lines else ()
    pairs = [text.decode("utf-8", "replace").partition("=") for text in texts]
    gdal.CSLDestroy(lines)
    if not pairs and problems:
        raise RasterioIOError(problems[0])
    return {name.lower(): value for name, _, value in pairs}


@lru_cache(maxsize=1)
def _gdal() -> Any:
    """Functions of the GDAL that rasterio has loaded, as rasterio has none for headers; None where they are
    not found (Windows, which does not search the libraries of a library)."""
    with suppress(AttributeError, OSError):
        gdal = ctypes.CDLL(rasterio._base.__file__)
        strings = ctypes.POINTER(ctypes.c_char_p)
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "VSIGetFileMetadata": (strings, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]),
            "CSLDestroy": (None, [strings]),
            "CPLErrorReset": (None, []),
            "CPLPushErrorHandler": (None, [_ErrorHandler]),
            "CPLPopErrorHandler": (None, []),
        }
        for name, (result, arguments) in signatures.items():
            function: Callable[..., Any] = getattr(gdal, name)
            function.restype, function.argtypes = result, arguments  # type: ignore[attr-defined]
        return gdal
    return None
