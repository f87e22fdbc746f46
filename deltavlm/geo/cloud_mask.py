"""Cloud masks of an image: rasters of classes or bits (SCL, QA_PIXEL, others), read as hidden pixels.

The raster is a file, or a band of the image itself. It is resampled to the grid of the analysis by nearest
neighbor, since classes and bits have no mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import Offset, locate
from deltavlm.geo.gdal import trim_malloc, wrap_gdal_errors
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.identity import Identity
from deltavlm.geo.source import open_source
from deltavlm.geo.view import ANY_PLANE, UNREADABLE, Source, alpha_band, without_alpha
from deltavlm.messages import redact_address

__all__ = ["CloudMask", "CloudView", "HiddenValues", "open_cloud_mask", "parse_cloud_mask", "parse_qa_band"]

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
    if match is None:
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


def _kind_of(name: str, hidden: str | None) -> str | None:
    """Kind by the name of a file or band; None where numbers of values are given."""
    match = KIND_IN_NAME.search(name)
    return match[1] if match and not (hidden and all(map(VALUES.fullmatch, hidden.split(",")))) else None


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

    source: Source
    dataset: DatasetReader | WarpedVRT
    band: int  # from 1
    kind: str | None
    values: HiddenValues
    offset: Offset  # of the grid's corner in `dataset`
    coverage: int | None  # alpha band of a warp, 0 outside of the mask
    covered_share: float  # of the grid

    @property
    def name(self) -> str:
        """Location without secrets."""
        return self.source.name

    @property
    def files(self) -> Mapping[str, Identity]:
        """Files that it reads, as they were when they were opened."""
        return self.source.files

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
        with wrap_gdal_errors(self.source.location, *UNREADABLE):
            values = self.dataset.read(self.band, window=area, out_shape=shape)
            hidden = self.values.hides(values, self.dataset.nodatavals[self.band - 1])
            if self.coverage is not None:
                hidden &= self.dataset.read(self.coverage, window=area, out_shape=shape) > 0
        trim_malloc()
        return hidden


@contextmanager
def open_cloud_mask(
    mask: CloudMask,
    image: Source,
    grid: GeoBox,
    offset: Offset | None,
    *,
    shift: tuple[float, float] | None = None,
    allow_vrt: bool = False,
) -> Iterator[CloudView]:
    """Open the cloud mask of an image on the grid of the analysis.

    offset: (column, row) of the grid's corner in the image, where both have the same pixels. Without a CRS a
        mask has the pixels of its image.
    shift: as in `Source.view_on`; a mask is misregistered as its image is.

    Raises:
        RasterError: it cannot be opened, does not overlap the grid, or cannot be placed on it.
        ConfigError: it has no such band, or no such classes.
    """
    location = image.location if mask.location is None else mask.location
    with ExitStack() as stack:
        source = stack.enter_context(
            open_source(location, bands=(1,), read_pixels=False, allow_vrt=allow_vrt, resampling="nearest")
        )
        band = _find_band(source, mask)
        description = source.dataset.descriptions[band - 1] or ""
        named = KIND_IN_NAME.search(description) if mask.kind is None and not mask.hidden else None
        kind = named[1].lower() if named else mask.kind
        values = mask.values_of(kind)
        _check_placed(source, image, grid)
        if grid.crs is None:
            assert offset is not None  # without a CRS nothing is warped
            corner: Offset | None = offset
            share = 1.0
            grid = replace(grid, crs=ANY_PLANE)
            placed = grid.translate(-offset[0], -offset[1])
        else:
            placement = locate(source.geobox, grid)
            corner = placement.offset
            share = min(1.0, placement.covered.area / (grid.width * grid.height))
            placed = source.geobox.wrapping_onto(grid)
        if not share:
            raise RasterError(
                f"{source.name}: the cloud mask does not overlap the pair; give that of its image"
            )
        contains = corner and source.geobox.contains(Window(*corner, grid.width, grid.height))
        if corner is not None and contains and shift is None:
            yield CloudView(source, source.dataset, band, kind, values, corner, None, share)
            return
        target = grid.translate(*(shift or (0, 0)))
        with wrap_gdal_errors(location, "cannot be warped", "check its CRS, or warp it with gdalwarp first"):
            dataset = source.dataset
            if alpha_band(dataset):  # which would hide values of the mask
                dataset = stack.enter_context(without_alpha(dataset))
            warped = WarpedVRT(
                dataset,
                src_crs=placed.crs,
                src_transform=placed.transform,
                crs=target.crs,
                transform=target.transform,
                width=target.width,
                height=target.height,
                resampling=Resampling.nearest,
                src_nodata=None,
                nodata=None,
                add_alpha=True,
            )
            stack.enter_context(warped)
        yield CloudView(source, warped, band, kind, values, (0, 0), warped.count, share)


def _find_band(source: Source, mask: CloudMask) -> int:
    """Number of the band of a mask. Raises: ConfigError."""
    dataset = source.dataset
    descriptions = [description or "" for description in dataset.descriptions]
    if isinstance(mask.band, int):
        if not 1 <= mask.band <= dataset.count:
            raise ConfigError(f"{source.name}: has no band {mask.band}; there are 1 to {dataset.count}")
        return mask.band
    if mask.band is None and dataset.count == 1:
        return 1
    searched = (mask.band or mask.kind or "").lower()
    bands = [
        band
        for band, description in enumerate(descriptions, 1)
        if description.lower() == searched
        or (mask.band is None and searched and searched in description.lower())
    ]
    if len(bands) == 1:
        return bands[0]
    names = ", ".join(f"{band} ({name})" if name else str(band) for band, name in enumerate(descriptions, 1))
    if mask.band is None:
        raise ConfigError(f"{source.name}: has {dataset.count} bands; which is the mask? FILE:1 is the first")
    raise ConfigError(f"{source.name}: has no single band named {mask.band!r}; there are {names}")


def _check_placed(source: Source, image: Source, grid: GeoBox) -> None:
    """Check that a mask can be placed on the grid.

    Raises:
        RasterError: only one of the two has a CRS, or sizes differ without one.
    """
    if (source.geobox.crs is None) != (grid.crs is None):
        raise RasterError(
            f"{source.name}: the cloud mask has {'no' if grid.crs else 'a'} CRS, and the pair has "
            f"{'one' if grid.crs else 'none'}; assign one (gdal_edit.py -a_srs EPSG:...)"
        )
    sizes = [f"{each.geobox.width} x {each.geobox.height} px" for each in (source, image)]
    if grid.crs is None and sizes[0] != sizes[1]:
        raise RasterError(
            f"{source.name}: the cloud mask has {sizes[0]}, and {image.name} {sizes[1]}: without a CRS both "
            "must have the same size"
        )
