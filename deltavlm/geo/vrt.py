"""VRT, the XML format in which GDAL describes a raster by others: the files that one reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from deltavlm.errors import RasterError
from deltavlm.geo.crs import grid_problem

__all__ = ["CONVERT", "vrt_sources"]

CONVERT = "make a GeoTIFF of it (gdal_translate)"
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


def vrt_sources(location: str) -> Iterator[str]:
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
    if problem := grid_problem(text.decode("utf-8", "replace")):
        raise RasterError(f"{location}: {problem}")
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
