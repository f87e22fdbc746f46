"""Cloud masks of an image: rasters of classes or bits (SCL, QA_PIXEL, others), read as hidden pixels.

The raster is a file, or a band of the image itself. It is resampled to the grid of the analysis by nearest
neighbor, since classes and bits have no mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import ConfigError
from deltavlm.geo.gdal import UNREADABLE, trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import Window
from deltavlm.geo.identity import Identity
from deltavlm.messages import redact_address

__all__ = [
    "CloudMask",
    "CloudView",
    "HiddenValues",
    "kind_in",
    "parse_cloud_mask",
    "parse_qa_band",
    "relocate_cloud_mask",
]

SCL = {
    "no_data": (0,),
    "saturated_or_defective": (1,),
    "dark_area_pixels": (2,),
    "cloud_shadows": (3,),
    "vegetation": (4,),
    "not_vegetated": (5,),
    "water": (6,),
    "unclassified": (7,),
    "cloud_medium_probability": (8,),
    "cloud_high_probability": (9,),
    "thin_cirrus": (10,),
    "snow": (11,),
    "cloud": (8, 9),
    "cloud_shadow": (3,),
    "cirrus": (10,),
}
"""Classes of Sentinel-2's scene classification, and names of Landsat for some of them."""
SCL_DEFAULT = (
    *("no_data", "saturated_or_defective", "cloud_shadows"),
    *("cloud_medium_probability", "cloud_high_probability", "thin_cirrus"),
)
QA_PIXEL = {
    name: bit
    for bit, name in enumerate(
        ("fill", "dilated_cloud", "cirrus", "cloud", "cloud_shadow", "snow", "clear", "water")
    )
}
"""Bits of QA_PIXEL of Landsat collection 2."""
QA_PIXEL_DEFAULT = ("fill", "dilated_cloud", "cirrus", "cloud", "cloud_shadow")

KINDS = ("scl", "qa_pixel", "bits", "values")
TAIL = re.compile(rf"(?::(?P<kind>{'|'.join(KINDS)}))?(?:=(?P<hidden>[\w.,-]+))?", re.IGNORECASE)
SPEC = re.compile(rf"(?P<source>.+?)(?::(?P<band>\d+))?{TAIL.pattern}", re.IGNORECASE | re.DOTALL)
VALUES = re.compile(r"(-?\d+(?:\.\d+)?)(?:-(-?\d+(?:\.\d+)?))?")
KIND_IN_NAME = re.compile(r"(?<![a-z0-9])(scl|qa_pixel)(?![a-z0-9])", re.IGNORECASE)
WAYS = "FILE:scl, FILE:qa_pixel=cloud,cloud_shadow, FILE:bits=3,4 or FILE=3,8-10"
NOTED_SHARE = 0.001  # of the grid that a mask does not cover


@dataclass(frozen=True, slots=True)
class HiddenValues:
    """Values of a mask raster that hide pixels: those with one of `bits`, or in one of `ranges` (low, high);
    without either, all but 0 and nodata."""

    names: tuple[str, ...]  # classes, bits or values, as they were given
    bits: int = 0
    ranges: tuple[tuple[float, float], ...] = ()

    def hides(self, values: NDArray[Any], nodata: float | None = None) -> NDArray[np.bool_]:
        """True where values of any shape hide a pixel."""
        if self.bits:
            integers = values if values.dtype.kind in "iu" else np.nan_to_num(values)
            has_bit: NDArray[np.bool_] = (integers.astype(np.int64) & self.bits) != 0
            return has_bit
        hidden = np.zeros(values.shape, bool)
        for low, high in self.ranges:
            hidden |= (values >= low) & (values <= high)
        if not self.ranges:
            hidden = (values != 0) & (values == values)
            if nodata is not None:
                hidden &= values != nodata
        return hidden


@dataclass(frozen=True, slots=True)
class CloudMask:
    """Cloud mask of an image, as it was asked for."""

    location: str | None  # None: the image itself
    band: int | str | None  # number from 1, or description; None: the only one, or that of the kind
    kind: str | None  # one of KINDS; None: by the name of the band, else "values"
    hidden: tuple[str, ...]  # classes, bits or values; empty: those that the kind hides by default

    def values_of(self, kind: str | None) -> HiddenValues:
        """Values that are hidden, where the raster is of this kind. Raises: ConfigError."""
        if kind == "scl":
            names = self.hidden or SCL_DEFAULT
            classes = {name: tuple((float(value),) * 2 for value in values) for name, values in SCL.items()}
            ranges = [
                classes.get(name) or _range(name) or _unknown(name, SCL, "class of SCL") for name in names
            ]
            return HiddenValues(names, ranges=tuple(each for several in ranges for each in several))
        if kind == "qa_pixel":
            names = self.hidden or QA_PIXEL_DEFAULT
            for name in names:
                _ = name in QA_PIXEL or _unknown(name, QA_PIXEL, "bit of QA_PIXEL")
            return HiddenValues(names, bits=sum({1 << QA_PIXEL[name] for name in names}))
        if kind == "bits":
            numbers = [int(name) if re.fullmatch(r"\d{1,2}", name) else 64 for name in self.hidden]
            if not numbers or max(numbers) > 62:
                raise ConfigError("bits: give their numbers, from 0 for the lowest, such as :bits=3,4")
            return HiddenValues(self.hidden, bits=sum({1 << number for number in numbers}))
        for name in self.hidden:
            if not _range(name):
                raise ConfigError(f"{name!r} is no number; of what are these names? Write {WAYS}")
        return HiddenValues(self.hidden, ranges=sum(map(_range, self.hidden), ()))


def _range(text: str) -> tuple[tuple[float, float], ...]:
    """A number or a range such as 8-10, as the only (low, high) of a tuple, which is empty for other text."""
    match = VALUES.fullmatch(text)
    if match is None:
        return ()
    low, high = float(match[1]), float(match[2] or match[1])
    if low > high:
        raise ConfigError(f"{text}: the first number must not be above the second")
    return ((low, high),)


def _unknown(name: str, names: Mapping[str, object], noun: str) -> NoReturn:
    """Raise an error that suggests a known name."""
    close = get_close_matches(name, names, n=1)
    hint = f"is {close[0]} meant?" if close else "there are " + ", ".join(names)
    raise ConfigError(f"{name!r} is no {noun}; {hint}")


def parse_cloud_mask(text: str) -> CloudMask:
    """Parse FILE, FILE:scl, FILE:qa_pixel=cloud,cloud_shadow, FILE:bits=3,4 or FILE=3,8-10.

    A band of a file with several follows it: FILE:2:scl. Of a URL with a query, nothing behind it is values
    unless the kind is there too.

    >>> parse_cloud_mask("scl.tif:scl=cloud,snow")
    CloudMask(location='scl.tif', band=None, kind='scl', hidden=('cloud', 'snow'))

    Raises:
        ConfigError: a kind, class or bit is unknown, or the location is missing.
    """
    match = SPEC.fullmatch(text.strip())
    if match is None or match["source"].startswith((":", "=")):
        raise ConfigError(f"cloud mask {text!r}: names no file; write {WAYS}")
    source, band, kind, hidden = match.group("source", "band", "kind", "hidden")
    if ("?" in source and kind is None and hidden is not None) or _is_file(text):
        source, band, kind, hidden = text, None, None, None
    other = re.search(r":([A-Za-z_]\w*)$", source)
    if other and not _is_file(source):
        close = get_close_matches(other[1].lower(), KINDS, n=1)
        hint = f"is {close[0]} meant?" if close else f"there are {', '.join(KINDS)}"
        raise ConfigError(f"cloud mask {redact_address(text)}: {other[1]!r} is no kind of mask; {hint}")
    file_name = re.split(r"[\\/]", source.partition("?")[0])[-1]
    return _checked(text, source, int(band) if band else None, kind or _kind_of(file_name, hidden), hidden)


def relocate_cloud_mask(text: str, move: Callable[[str], str]) -> str:
    """Text of a cloud mask whose location is what `move` makes of it. Raises: ConfigError.

    >>> relocate_cloud_mask("scl.tif:scl=cloud", lambda location: "/data/" + location)
    '/data/scl.tif:scl=cloud'
    """
    text, location = text.strip(), parse_cloud_mask(text).location or ""
    return move(location) + text[len(location) :]


def parse_qa_band(text: str) -> CloudMask:
    """Parse a band of the image itself, by number or description: SCL, 5:scl, QA_PIXEL=cloud, 5=3,8-10.

    >>> parse_qa_band("QA_PIXEL=cloud")
    CloudMask(location=None, band='QA_PIXEL', kind='qa_pixel', hidden=('cloud',))

    Raises:
        ConfigError: as for `parse_cloud_mask`; or it is not said what the values of a band mean.
    """
    match = re.fullmatch(rf"(?P<band>[^:=]+){TAIL.pattern}", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"QA band {text!r}: write a band, and what its values mean: SCL, 5:scl or 5=3,8-10")
    band, kind, hidden = match.group("band", "kind", "hidden")
    kind = kind or _kind_of(band, hidden)
    if not kind and not hidden:
        raise ConfigError(f"QA band {text}: what do its values mean? Write {text}:scl or {text}=3,8-10")
    return _checked(text, None, int(band) if band.isdecimal() else band.strip(), kind, hidden)


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def kind_in(name: str) -> str | None:
    """Kind of mask in the name of a file or band: scl or qa_pixel."""
    match = KIND_IN_NAME.search(name)
    return match[1].lower() if match else None


def _kind_of(name: str, hidden: str | None) -> str | None:
    """Kind by the name of a file or band; None where numbers of values are given."""
    return None if hidden and all(map(VALUES.fullmatch, hidden.split(","))) else kind_in(name)


def _checked(
    text: str, location: str | None, band: int | str | None, kind: str | None, hidden: str | None
) -> CloudMask:
    """Mask with these parts. Raises: ConfigError that names it."""
    names = tuple(name for name in (hidden or "").lower().split(",") if name)
    mask = CloudMask(location, band, kind and kind.lower(), names)
    try:
        mask.values_of(mask.kind)
    except ConfigError as error:
        raise ConfigError(f"cloud mask {redact_address(text)}: {error}") from None
    return mask


@dataclass(frozen=True, slots=True)
class CloudView:
    """Open cloud mask on the grid of the analysis; windows are in the pixels of that grid."""

    location: str
    files: Mapping[str, Identity]  # that it reads, as they were when opened
    dataset: DatasetReader | WarpedVRT
    band: int  # from 1
    kind: str | None
    values: HiddenValues
    offset: tuple[int, int]  # column, row the grid's corner in `dataset`
    coverage: int | None  # alpha band of a warp, 0 outside of the mask
    covered_share: float  # of the grid

    @property
    def name(self) -> str:
        """Location without secrets."""
        return redact_address(self.location)

    @property
    def note(self) -> str:
        """Sentence on what is hidden."""
        names = ", ".join(self.values.names)
        is_named = self.kind in ("scl", "qa_pixel")
        hidden = names if is_named else f"{self.kind or 'values'} {names}" if names else "all values but 0"
        return f"cloud mask {self.name}, band {self.band}: {hidden} are nodata"

    @property
    def warning(self) -> str | None:
        """Warning where the mask does not cover the pair."""
        if self.covered_share > 1 - NOTED_SHARE:
            return None
        return (
            f"cloud mask {self.name} covers {self.covered_share:.1%} of the pair; elsewhere it hides nothing"
        )

    def record(self) -> dict[str, object]:
        """Mask as JSON values, for the provenance."""
        return {
            "path": self.name,
            "band": self.band,
            "kind": self.kind or "values",
            "hidden": list(self.values.names),
        }

    def read(self, window: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Hidden pixels of a window, decimated to `shape` (rows, cols).

        Raises:
            RasterError: a block of the file cannot be decoded.
        """
        area = RasterioWindow(window.col_off + self.offset[0], window.row_off + self.offset[1], *window[2:])
        with wrap_gdal_errors(self.location, *UNREADABLE):
            values = self.dataset.read(self.band, window=area, out_shape=shape)
            hidden = self.values.hides(values, self.dataset.nodatavals[self.band - 1])
            if self.coverage is not None:
                hidden &= self.dataset.read(self.coverage, window=area, out_shape=shape) > 0
        trim_malloc()
        return hidden
