"""Safe opening of rasters: image formats only, nothing through which GDAL reads other files or URLs.

A VRT or a WMS description renamed to .tif would otherwise make GDAL read any file, or contact any server. A
list of formats is not enough: GDAL opens masks and overviews next to an image in any format, and files that
some of its tags name. So these are checked as well.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath

import rasterio
from rasterio._path import _parse_path, _Path, _UnparsedPath
from rasterio.env import ensure_env_with_credentials
from rasterio.io import DatasetReader

from deltavlm.errors import RasterError
from deltavlm.files import special_kind
from deltavlm.geo.crs import CRS_SIDECARS, TIFF, check_named_grids, grid_problem
from deltavlm.geo.gdal import wrap_gdal_errors
from deltavlm.geo.location import check_exists, is_local, local_file, normalize_location
from deltavlm.geo.vrt import CONVERT, vrt_sources
from deltavlm.messages import redact_address

__all__ = ["MAX_BLOCK_BYTES", "MAX_PIXELS", "NOT_READ", "check_size", "open_image"]

logger = logging.getLogger(__name__)

SIGNED = ("GTiff", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "PNG", "JPEG", "JPEGXL", "WEBP", "HFA")
IMAGES = (*SIGNED, "ENVI", "EHdr")
"""Formats that contain their pixels; those of SIGNED begin with a signature that no text file has. GDAL
ignores names of drivers that it lacks."""

MAX_PIXELS = 40_000_000_000
MAX_BLOCK_BYTES = 256 * 2**20
"""Limits of a raster: larger ones have a broken or forged header, or cannot be read in parts."""

NOT_READ = "cannot be read as a raster", "give a whole GeoTIFF or other image; gdal_translate makes one"
PLACE_BY_ARRAYS = "it is placed by geolocation arrays, so warp it first (gdalwarp -geoloc -t_srs EPSG:...)"
SIDECARS = (".msk", ".MSK", ".ovr", ".OVR")  # GDAL writes TIFFs under these names, but reads any format
AUX = (".aux", ".AUX")  # overviews that ERDAS keeps beside other images, which GDAL reads in any format
AUX_MARK = b"EHFA_HEADER_TAG"  # of an Erdas Imagine file, together with a zero byte
TEXT_SIDECARS = (
    *CRS_SIDECARS,
    *(".clr", ".stx", ".blw", ".wld", ".tfw", ".tifw", ".tiffw", ".pgw", ".pngw", ".jgw"),
    *(".jpgw", ".jpegw", ".j2w", ".jp2w", ".wpw", ".webpw", ".jxlw", ".igw", ".imgw", ".ige", ".rrd", ".tab"),
    *(".imd", ".rpb", ".xml", ".pvl", ".att", ".eph", ".geo", "_rpc.txt", "_metadata.txt", "_mtl.txt"),
)
"""Suffixes, in place of an image's own, of texts and headers that GDAL may look for; they lead nowhere."""


FILE_TAGS = {"overview_file", "filename", "x_dataset", "y_dataset"}
FILE_TAG_DOMAINS = {"overviews", "proxyoverviewrequest", "geolocation"}  # of tags that name files


@contextmanager
def open_image(location: str, *, allow_vrt: bool = False, signed: bool = False) -> Iterator[DatasetReader]:
    """Open an image for reading; with `allow_vrt` also a local VRT of such images.

    Files beside an image are read where they were checked first: beside a local file.

    `signed` leaves out raw formats without a signature: inside a VRT, GDAL could take their files for another
    format.

    Raises:
        RasterError: it cannot be opened, has another format, or references other files.
    """
    location = normalize_location(location)
    check_exists(location)
    kind = _text_format(location)
    are_local = is_local(location)
    if kind == "a VRT":
        if not allow_vrt:
            raise RasterError(
                f"{location}: is a VRT, through which other files are read; if you trust it add "
                f"`allow_vrt=True`, or {CONVERT}"
            )
        are_local = all(map(is_local, _check_sources(location)))
    elif kind is not None:
        raise RasterError(
            f"{location}: is {kind} and no image, so other files or URLs might be read through it; {CONVERT}"
        )
    _check_sidecars(location)
    check_named_grids(location)
    _log_unread_sidecars(location)
    beside = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE" if are_local else "EMPTY_DIR")
    with ExitStack() as stack:
        if kind:  # GDAL opens the sources of a VRT when they are read
            stack.enter_context(beside)
        with wrap_gdal_errors(location, *NOT_READ), nullcontext() if kind else beside:
            drivers = ["VRT"] if kind else list(SIGNED if signed else IMAGES)
            dataset = stack.enter_context(_open_with(location, drivers))
        _check_dataset(dataset, location)
        yield dataset


def check_size(dataset: DatasetReader, name: str) -> None:
    """Refuse rasters that would take excessive time or memory, before a pixel is read.

    Raises:
        RasterError: more than MAX_PIXELS, or a block of more than MAX_BLOCK_BYTES when it is decoded.
    """
    if dataset.width * dataset.height > MAX_PIXELS:
        raise RasterError(
            f"{name}: says that it has {dataset.width} x {dataset.height} px, more than the "
            f"{MAX_PIXELS:,} that are read; cut it with gdal_translate -srcwin if that is true"
        )
    bands = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
    for (rows, cols), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        size = rows * cols * bands * _bytes_of(dtype)
        if size > MAX_BLOCK_BYTES:
            raise RasterError(
                f"{name}: one of its blocks ({cols} x {rows} px) takes {size / 2**20:.0f} MB, more than "
                f"{MAX_BLOCK_BYTES // 2**20}; write it in tiles with gdal_translate -co TILED=YES"
            )


def _bytes_of(dtype: str) -> int:
    bits = re.search(r"\d+$", dtype)
    return int(bits[0]) // 8 if bits else 1


@ensure_env_with_credentials  # type: ignore[untyped-decorator]  # as `rasterio.open`, which takes one driver
def _open_with(location: str, drivers: list[str]) -> DatasetReader:
    return DatasetReader(_gdal_path(location), driver=drivers)


def _gdal_path(location: str) -> _Path:
    """Path for GDAL, which takes no local file for a subdataset or a URL because of its name."""
    if not is_local(location):
        return _parse_path(location)
    is_ambiguous = ":" in location and not Path(location).is_absolute()
    return _UnparsedPath(os.path.join(".", location) if is_ambiguous else location)  # noqa: PTH118


def _text_format(location: str) -> str | None:
    """Name of a text format that GDAL reads as a reference to other files; None for images."""
    try:
        with Path(location).open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return None  # an error is reported on opening; or only GDAL can read the location
    if b"<VRTDataset" in head:  # GDAL's own test
        return "a VRT"
    if b"<GDALTileIndexDataset" in head:
        return "a tile index"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16]
    return "XML" if start.startswith((b"<?xml", b"<GDAL", b"<W", b"<!--")) else None


def _check_sidecars(location: str) -> None:
    """Check what lies next to a local file: masks and overviews are of the one format that is written under
    these names, without references, and nothing is a pipe or a device.

    Raises:
        RasterError: a file that GDAL would open is of another kind.
    """
    if not is_local(location):
        return
    stem = str(Path(location).with_suffix(""))
    suffixes = [*TEXT_SIDECARS, *map(str.upper, TEXT_SIDECARS), *AUX]
    for sidecar in (location + ".aux.xml", *(stem + suffix for suffix in suffixes)):
        with suppress(OSError, ValueError):
            if kind := special_kind(Path(sidecar)):
                raise _foreign_sidecar(sidecar, kind, location)
    for sidecar in dict.fromkeys(base + suffix for base in (stem, location) for suffix in AUX):
        head = _head(sidecar, location)
        if head.startswith(AUX_MARK) and not head.startswith(AUX_MARK + b"\0"):
            raise _foreign_sidecar(sidecar, "no Erdas Imagine file", location)
    for sidecar in (location + suffix for suffix in SIDECARS):
        head = _head(sidecar, location)
        if not head:
            continue
        if not head.startswith(TIFF):
            raise _foreign_sidecar(sidecar, "no TIFF", location)
        check_named_grids(sidecar)
        with wrap_gdal_errors(sidecar, *NOT_READ), _open_with(sidecar, ["GTiff"]) as dataset:
            _check_dataset(dataset, sidecar)
        _check_sidecars(sidecar)


def _log_unread_sidecars(location: str) -> None:
    """Warn about files next to an image in a zip archive, which may change its pixels or its place."""
    archive = local_file(location)
    if is_local(location) or not archive.is_file() or not zipfile.is_zipfile(archive):
        return
    name = location.rpartition(archive.name)[2].lstrip("}!/")
    stem = name.removesuffix(PurePosixPath(name).suffix)
    try:
        with zipfile.ZipFile(archive) as members:
            unread = {name + ".msk", name + ".aux.xml", stem + ".tfw", stem + ".wld"} & {*members.namelist()}
    except (OSError, zipfile.BadZipFile):
        return  # opening the image says what is wrong
    if unread:
        logger.warning(
            "%s: files beside it in the archive are not read (%s); unpack the archive if they matter",
            redact_address(location),
            ", ".join(sorted(unread)),
        )


def _head(sidecar: str, location: str) -> bytes:
    """First bytes of a file next to `location`; none where there is no such file.

    Raises:
        RasterError: it is a pipe or a device.
    """
    try:
        if kind := special_kind(Path(sidecar)):
            raise _foreign_sidecar(sidecar, kind, location)
        with Path(sidecar).open("rb") as file:
            return file.read(16)
    except (OSError, ValueError):
        return b""


def _foreign_sidecar(sidecar: str, kind: str, location: str) -> RasterError:
    return RasterError(f"{sidecar}: is {kind}, and would be read as a part of {location}; move it away")


def _check_dataset(dataset: DatasetReader, location: str) -> None:
    """Check that neither tags, nor a CRS, nor the header of an image name files elsewhere.

    Raises:
        RasterError: one of them does.
    """
    _check_tags(dataset, location)
    for crs in (dataset.crs, dataset.gcps[1]):
        if crs and (problem := grid_problem(crs.to_wkt())):
            raise RasterError(f"{redact_address(location)}: {problem}")
    if dataset.driver == "HFA":  # its header names files with further pixels
        folder = Path(location).parent
        others = [file for file in dataset.files if Path(file).parent != folder]
        if others:
            raise RasterError(f"{location}: its header names another file ({others[0]}); {CONVERT}")


def _check_tags(dataset: DatasetReader, location: str) -> None:
    """Check that no tag names a file that GDAL would open. Raises: RasterError."""
    for domain in dataset.tag_namespaces():
        if domain.lower() in FILE_TAG_DOMAINS and FILE_TAGS & {
            key.lower() for key in dataset.tags(ns=domain)
        }:
            advice = PLACE_BY_ARRAYS if domain.lower() == "geolocation" else CONVERT
            raise RasterError(
                f"{redact_address(location)}: its tags ({domain}) name another file to read; {advice}"
            )


def _check_sources(location: str) -> list[str]:
    """Log the sources of a VRT, check that each is an image, and return them.

    Raises:
        RasterError: a source is no image, or the VRT has elements that may read any file.
    """
    sources = dict.fromkeys(vrt_sources(location))
    logger.warning(
        "%s: a VRT, which reads %s", location, ", ".join(map(redact_address, sources)) or "nothing"
    )
    for source in sources:
        try:
            with open_image(source, signed=True) as image:
                check_size(image, source)
        except RasterError as error:
            raise RasterError(f"{location}: a source of this VRT cannot be read: {error}") from error
    return list(sources)
