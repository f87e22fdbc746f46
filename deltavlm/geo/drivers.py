"""Safe opening of rasters: image formats only, nothing through which GDAL reads other files or URLs.

A VRT or a WMS description renamed to .tif would otherwise make GDAL read any file, or contact any server. A
list of formats is not enough: GDAL opens masks and overviews next to an image in any format, and files that
some of its tags name. So these are checked as well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from rasterio._path import _parse_path
from rasterio.env import ensure_env_with_credentials
from rasterio.io import DatasetReader

from deltavlm.errors import RasterError
from deltavlm.geo.gdal import wrap_gdal_errors
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
CONVERT = "make a GeoTIFF of it (gdal_translate)"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIDECARS = (".msk", ".MSK", ".ovr", ".OVR")  # GDAL writes TIFFs under these names, but reads any format
FILE_TAGS = {"overview_file", "filename", "x_dataset", "y_dataset"}
FILE_TAG_DOMAINS = {"overviews", "proxyoverviewrequest", "geolocation"}  # of tags that name files
MAX_VRT_BYTES = 64 * 2**20
VRT_SUBCLASSES = {"", "VRTWarpedDataset", "VRTPansharpenedDataset"}
BAND_SUBCLASSES = {"", "VRTSourcedRasterBand", "VRTWarpedRasterBand", "VRTPansharpenedRasterBand"}
FORBIDDEN_ELEMENTS = {
    "pixelfunctioncode",
    "group",
    "array",
    "processingsteps",
    "dempath",
    "geoloctransformer",
}


def open_image(location: str, *, allow_vrt: bool = False, signed: bool = False) -> DatasetReader:
    """Open an image for reading; with `allow_vrt` also a local VRT of such images.

    `signed` leaves out raw formats without a signature: inside a VRT, GDAL could take their files for another
    format.

    Raises:
        RasterError: it cannot be opened, has another format, or references other files.
    """
    location = location.removeprefix("file://")
    kind = _text_format(location)
    if kind == "a VRT":
        if not allow_vrt:
            raise RasterError(
                f"{location}: is a VRT, through which other files are read; if you trust it add --allow-vrt, "
                f"or {CONVERT}"
            )
        _check_sources(location)
    elif kind is not None:
        raise RasterError(
            f"{location}: is {kind} and no image, so other files or URLs might be read through it; {CONVERT}"
        )
    _check_sidecars(location)
    with wrap_gdal_errors(location, *NOT_READ):
        dataset = _open_with(location, ["VRT"] if kind else list(SIGNED if signed else IMAGES))
    try:
        _check_tags(dataset, location)
    except RasterError:
        dataset.close()
        raise
    return dataset


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
    return DatasetReader(_parse_path(location), driver=drivers)


def _text_format(location: str) -> str | None:
    """Name of a text format that GDAL reads as a reference to other files; None for images."""
    try:
        with Path(location).open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return None  # an error is reported on opening; or only GDAL can read the location
    if b"<VRTDataset" in head:  # GDAL's own test
        return "a VRT"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16]
    return "XML" if start.startswith((b"<?xml", b"<GDAL", b"<W", b"<!--")) else None


def _check_sidecars(location: str) -> None:
    """Check masks and overviews next to a local file: TIFFs, as GDAL writes them, without references."""
    for sidecar in (location + suffix for suffix in SIDECARS):
        try:
            with Path(sidecar).open("rb") as file:
                head = file.read(4)
        except (OSError, ValueError):
            continue
        if head not in TIFF:
            raise RasterError(
                f"{sidecar}: is no TIFF, and would be read as a part of {location}; move it away"
            )
        with wrap_gdal_errors(sidecar, *NOT_READ), _open_with(sidecar, ["GTiff"]) as dataset:
            _check_tags(dataset, sidecar)
        _check_sidecars(sidecar)


def _check_tags(dataset: DatasetReader, location: str) -> None:
    """Check that no tag names a file that GDAL would open. Raises: RasterError."""
    for domain in dataset.tag_namespaces():
        if domain.lower() in FILE_TAG_DOMAINS and FILE_TAGS & {
            key.lower() for key in dataset.tags(ns=domain)
        }:
            raise RasterError(
                f"{redact_address(location)}: its tags ({domain}) name another file to read; {CONVERT}"
            )


def _check_sources(location: str) -> None:
    """Log the sources of a VRT, and check that each is an image.

    Raises:
        RasterError: a source is no image, or the VRT has elements that may read any file.
    """
    sources = dict.fromkeys(_sources(location))
    logger.warning(
        "%s: a VRT, which reads %s", location, ", ".join(map(redact_address, sources)) or "nothing"
    )
    for source in sources:
        try:
            with open_image(source, signed=True) as image:
                check_size(image, source)
        except RasterError as error:
            raise RasterError(f"{location}: a source of this VRT cannot be read: {error}") from error


def _sources(location: str) -> Iterator[str]:
    """Source files that a VRT names.

    GDAL parses XML less strictly than Python. So only XML as GDAL writes it is accepted, and everything that
    the two could parse differently is refused.
    """

    def refusal(content: str) -> RasterError:
        return RasterError(f"{location}: a VRT with {content}, which may lead anywhere; {CONVERT}")

    path = Path(location)
    if path.stat().st_size > MAX_VRT_BYTES:
        raise refusal(f"more than {MAX_VRT_BYTES // 2**20} MB")
    text = path.read_bytes()
    if b"<!" in text or text.count(b"<?") > text.startswith(b"<?xml"):
        raise refusal("comments or declarations")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise RasterError(f"{location}: is no valid VRT ({error}); {CONVERT}") from error
    for element in root.iter():
        tag = element.tag.rpartition("}")[2].lower()
        attributes = {name.lower(): value for name, value in element.items()}
        subclasses = {"vrtdataset": VRT_SUBCLASSES, "vrtrasterband": BAND_SUBCLASSES}.get(tag, {""})
        subclass = attributes.get("subclass", "")
        if subclass not in subclasses or tag == "subclass" or tag in FORBIDDEN_ELEMENTS:
            raise refusal(f"a part {subclass or tag!r}")
        if {"sourcefilename", "sourcedataset"} & attributes.keys() or tag == "relativetovrt":
            raise refusal("its sources in an unusual place")
        if tag in ("sourcefilename", "sourcedataset"):
            name, relative = element.text or "", attributes.get("relativetovrt", "0")
            malformed = name != name.strip() or len(element) or relative not in ("0", "1")
            if malformed or not name or ("://" in name and not name.startswith("/vsi")):
                raise refusal(f"a source {name!r}")
            yield str(path.parent / name) if relative == "1" else name
