"""What GDAL may open: images that are read from their own bytes, and nothing that leads to other places.

A VRT or a WMS description renamed to .tif would otherwise make GDAL read any file, or ask any server. A list
of formats does not do alone: masks and overviews beside an image are opened whatever they are, and so are
files that some of its own tags name. So these are looked at as well.
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
from deltavlm.geo.location import redact_credentials

__all__ = ["MAX_BLOCK_BYTES", "MAX_PIXELS", "NOT_READ", "check_size", "open_image"]

logger = logging.getLogger(__name__)

SIGNED = ("GTiff", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "PNG", "JPEG", "JPEGXL", "WEBP", "HFA")
IMAGES = (*SIGNED, "ENVI", "EHdr")
"""Formats that hold their own pixels; the first of them begin with bytes that no text can begin with. Names
that this GDAL does not know do no harm."""

MAX_PIXELS = 40_000_000_000
MAX_BLOCK_BYTES = 256 * 2**20
"""What is larger is a broken or a made-up header, or cannot be read in pieces."""

NOT_READ = "cannot be read as a raster", "give a whole GeoTIFF or other image; gdal_translate makes one"
MAKE_ONE = "make a GeoTIFF of it (gdal_translate)"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BESIDE = (".msk", ".MSK", ".ovr", ".OVR")  # GDAL writes TIFFs under these names, but reads any format
LEADING = {"overview_file", "filename", "x_dataset", "y_dataset"}
LEADING_DOMAINS = {"overviews", "proxyoverviewrequest", "geolocation"}  # domains of tags that name files
LARGEST_VRT = 64 * 2**20  # bytes
PLAIN_VRTS = {"", "VRTWarpedDataset", "VRTPansharpenedDataset"}
PLAIN_BANDS = {"", "VRTSourcedRasterBand", "VRTWarpedRasterBand", "VRTPansharpenedRasterBand"}
ODD_PARTS = {"pixelfunctioncode", "group", "array", "processingsteps", "dempath", "geoloctransformer"}


def open_image(location: str, *, allow_vrt: bool = False, signed: bool = False) -> DatasetReader:
    """Open an image for reading; with `allow_vrt` also a local VRT of such images.

    `signed` leaves out raw formats, whose files GDAL by itself might take for something else.

    Raises:
        RasterError: it cannot be opened, is of another format, or leads to other files.
    """
    location = location.removeprefix("file://")
    kind = _kind_of_text(location)
    if kind == "a VRT":
        if not allow_vrt:
            raise RasterError(
                f"{location}: is a VRT, through which other files are read; if you trust it add --allow-vrt, "
                f"or {MAKE_ONE}"
            )
        _check_sources(location)
    elif kind is not None:
        raise RasterError(
            f"{location}: is {kind} and no image, so that other places might be read through it; {MAKE_ONE}"
        )
    _check_beside(location)
    with wrap_gdal_errors(location, *NOT_READ):
        dataset = _opened(location, ["VRT"] if kind else list(SIGNED if signed else IMAGES))
    try:
        _check_tags(dataset, location)
    except RasterError:
        dataset.close()
        raise
    return dataset


def check_size(dataset: DatasetReader, name: str) -> None:
    """Refuse what takes no end of time or memory, before a pixel is read.

    Raises:
        RasterError: more than MAX_PIXELS, or a block of more than MAX_BLOCK_BYTES when it is decoded.
    """
    if dataset.width * dataset.height > MAX_PIXELS:
        raise RasterError(
            f"{name}: says that it has {dataset.width} x {dataset.height} px, more than the "
            f"{MAX_PIXELS:,} that are read; cut it with gdal_translate -srcwin if that is true"
        )
    together = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
    for (rows, cols), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        size = rows * cols * together * _bytes_of(dtype)
        if size > MAX_BLOCK_BYTES:
            raise RasterError(
                f"{name}: one of its blocks ({cols} x {rows} px) takes {size / 2**20:.0f} MB, more than "
                f"{MAX_BLOCK_BYTES // 2**20}; write it in tiles with gdal_translate -co TILED=YES"
            )


def _bytes_of(dtype: str) -> int:
    bits = re.search(r"\d+$", dtype)
    return int(bits[0]) // 8 if bits else 1


@ensure_env_with_credentials  # type: ignore[untyped-decorator]  # as `rasterio.open`, which takes one driver
def _opened(location: str, drivers: list[str]) -> DatasetReader:
    return DatasetReader(_parse_path(location), driver=drivers)


def _kind_of_text(location: str) -> str | None:
    """What a local file is that GDAL could take for a description of where pixels are; no image begins so."""
    try:
        with Path(location).open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return None  # what is there is told when it is opened, or only GDAL can look
    if b"<VRTDataset" in head:  # as GDAL has it
        return "a VRT"
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16]
    return "XML" if begin.startswith((b"<?xml", b"<GDAL", b"<W", b"<!--")) else None


def _check_beside(location: str) -> None:
    """Masks and overviews beside a local file must be TIFFs, as GDAL writes them, and lead nowhere either."""
    for beside in (location + ending for ending in BESIDE):
        try:
            with Path(beside).open("rb") as file:
                head = file.read(4)
        except (OSError, ValueError):
            continue
        if head not in TIFF:
            raise RasterError(
                f"{beside}: is no TIFF, and would be read as a part of {location}; move it away"
            )
        with wrap_gdal_errors(beside, *NOT_READ), _opened(beside, ["GTiff"]) as dataset:
            _check_tags(dataset, beside)
        _check_beside(beside)


def _check_tags(dataset: DatasetReader, location: str) -> None:
    """Raises: RasterError where tags name a file that GDAL would open."""
    for domain in dataset.tag_namespaces():
        if domain.lower() in LEADING_DOMAINS and LEADING & {key.lower() for key in dataset.tags(ns=domain)}:
            raise RasterError(
                f"{redact_credentials(location)}: its tags ({domain}) name another file to read; {MAKE_ONE}"
            )


def _check_sources(location: str) -> None:
    """Say what a VRT reads, and open each of it as an image.

    Raises:
        RasterError: a source is none, or the VRT has parts that may read anything.
    """
    sources = dict.fromkeys(_sources(location))
    logger.warning(
        "%s: a VRT, which reads %s", location, ", ".join(map(redact_credentials, sources)) or "nothing"
    )
    for source in sources:
        try:
            with open_image(source, signed=True) as image:
                check_size(image, source)
        except RasterError as error:
            raise RasterError(f"{location}: a VRT of what cannot be read: {error}") from error


def _sources(location: str) -> Iterator[str]:
    """The files that a VRT names.

    GDAL reads XML less strictly than Python does. So only the form in which GDAL writes it is taken, and what
    the two could read differently is refused.
    """

    def refused(what: str) -> RasterError:
        return RasterError(f"{location}: a VRT with {what}, which may lead anywhere; {MAKE_ONE}")

    path = Path(location)
    if path.stat().st_size > LARGEST_VRT:
        raise refused(f"more than {LARGEST_VRT // 2**20} MB")
    text = path.read_bytes()
    if b"<!" in text or text.count(b"<?") > text.startswith(b"<?xml"):
        raise refused("comments or declarations")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise RasterError(f"{location}: is no valid VRT ({error}); {MAKE_ONE}") from error
    for element in root.iter():
        tag = element.tag.rpartition("}")[2].lower()
        marks = {name.lower(): value for name, value in element.items()}
        plain = {"vrtdataset": PLAIN_VRTS, "vrtrasterband": PLAIN_BANDS}.get(tag, {""})
        if marks.get("subclass", "") not in plain or tag == "subclass" or tag in ODD_PARTS:
            raise refused(f"a part {marks.get('subclass') or tag!r}")
        if {"sourcefilename", "sourcedataset"} & marks.keys() or tag == "relativetovrt":
            raise refused("its sources in an unusual place")
        if tag in ("sourcefilename", "sourcedataset"):
            name, relative = element.text or "", marks.get("relativetovrt", "0")
            odd = name != name.strip() or len(element) or relative not in ("0", "1")
            if odd or not name or ("://" in name and not name.startswith("/vsi")):
                raise refused(f"a source {name!r}")
            yield str(path.parent / name) if relative == "1" else name
