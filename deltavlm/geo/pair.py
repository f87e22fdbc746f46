"""Two rasters read as one: the same ground at two dates, chip by chip, as RGB uint8 on one grid.

The grid is that of `before`, cut to what both cover. Where `after` has the same pixels, both are read by
windows; where it has not, it is warped. Nothing is printed: `PairReader.notes` says what was done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import ADD_A_CRS, Alignment, align, check_georeferenced
from deltavlm.geo.aoi import aoi_from_bbox, aoi_from_file, aoi_from_shape, check_bbox
from deltavlm.geo.gdal import gdal_env, log_decoder_warnings
from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.geo.location import check_exists
from deltavlm.geo.radiometry import Stretch, parse_scale, plan_stretches
from deltavlm.geo.resampling import Resampling
from deltavlm.geo.source import open_source
from deltavlm.geo.view import Raw, Source, View

__all__ = ["ChipPixels", "PairReader", "RasterPair", "ReadOptions", "check_options", "open_pair"]

MAX_CHIPS = 10_000_000


@dataclass(frozen=True, slots=True)
class RasterPair:
    """Where the two dates are: paths, `https://`, `s3://` or `/vsi...`. Opens nothing."""

    before: str
    after: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a pair is read; the defaults suit most. `bbox` is xmin, ymin, xmax, ymax in `bbox_crs`."""

    align: Literal["auto", "strict"] = "auto"
    resampling: Resampling = "bilinear"
    before_bands: tuple[int, ...] | None = None
    after_bands: tuple[int, ...] | None = None
    scale: str = "auto"
    nodata: float | None = None
    alpha_band: Literal["auto", "none"] = "auto"
    gsd_m: float | None = None
    allow_no_crs: bool = False
    allow_vrt: bool = False
    bbox: tuple[float, float, float, float] | None = None
    bbox_crs: str = "EPSG:4326"
    aoi: Path | BaseGeometry | None = None  # a vector file, or areas in longitude and latitude
    outlines_only: bool = False  # only where the chips lie is wanted: no pixel is read


@dataclass(frozen=True, slots=True)
class ChipPixels:
    """What the model sees of a chip. Where either date has no data, both show the chip's mean colour."""

    chip: Chip
    before: NDArray[np.uint8]  # (3, size, size) RGB
    after: NDArray[np.uint8]  # (3, size, size) RGB
    valid: NDArray[np.bool_]  # (size, size), True where both dates have data

    @property
    def valid_fraction(self) -> float:
        """Share of the chip's real pixels (padding apart) where both dates have data."""
        real = self.valid[: self.chip.window.height, : self.chip.window.width]
        return float(np.count_nonzero(real) / real.size)


@dataclass(frozen=True)
class PairReader:
    """An open pair; made by `open_pair`, valid inside its `with`, for one thread."""

    alignment: Alignment
    views: tuple[View, View] = field(repr=False)
    stretches: tuple[Stretch | None, Stretch | None]
    aoi: BaseGeometry | None  # bbox and area of interest of the options, in the CRS of the grid
    options: ReadOptions
    notes: tuple[str, ...]  # one sentence each, for the user
    warnings: tuple[str, ...]  # those of the notes that may make the answers wrong

    @property
    def geobox(self) -> GeoBox:
        """Common pixel grid: that of `before`, cropped to what both dates cover."""
        return self.alignment.geobox

    @cached_property
    def gsd_m(self) -> float | None:
        """Ground sample distance of the grid in metres, at its centre; None without a CRS."""
        return self.geobox.gsd_m

    def chips(self, size: int = 256, overlap: int = 0) -> ChipGrid:
        """Chips of the pair, in pixels; only those that touch the bbox or area of interest.

        Raises:
            ConfigError: more than MAX_CHIPS.
        """
        grid = ChipGrid(self.geobox, size, overlap, self.aoi)
        if grid.rows * grid.cols > MAX_CHIPS:
            raise ConfigError(
                f"{grid.rows} x {grid.cols} chips are more than {MAX_CHIPS:,}; cut larger ones, "
                "with less overlap"
            )
        return grid

    def read(self, chip: Chip) -> ChipPixels:
        """The pixels of a chip of `chips()`.

        Raises:
            RasterError: a part of a file cannot be decoded; other chips may be readable.
            ValueError: the pair was opened for outlines only.
        """
        if self.options.outlines_only:
            raise ValueError("a pair opened for outlines only has no pixels")
        _, _, width, height = chip.window
        try:
            raws = [view.read_raw(view.allocate(height, width), chip.window) for view in self.views]
        except RasterError as error:
            raise RasterError(f"chip {chip.chip_id}: {error}") from error
        return self.to_chip_pixels(chip, raws)

    def to_chip_pixels(self, chip: Chip, raws: Iterable[Raw]) -> ChipPixels:
        """What the model sees of a chip, from the raw pixels of its window at both dates."""
        parts = (view.to_rgb(raw) for view, raw in zip(self.views, raws, strict=True))
        values, valid = zip(*parts, strict=True)
        colours = [_to_uint8(one, stretch) for one, stretch in zip(values, self.stretches, strict=True)]
        both = valid[0] & valid[1]
        if both.shape == (chip.size, chip.size) and both.all():
            return ChipPixels(chip, colours[0], colours[1], both)
        seen = np.concatenate([colour[:, both] for colour in colours], axis=1)
        fill = seen.mean(axis=1).round() if both.any() else np.zeros(3)
        height, width = both.shape
        squares = np.empty((2, 3, chip.size, chip.size), np.uint8)
        squares[:] = fill.astype(np.uint8)[:, None, None]
        for square, colour in zip(squares, colours, strict=True):
            np.copyto(square[:, :height, :width], colour, where=both)
        mask = np.zeros((chip.size, chip.size), bool)
        mask[:height, :width] = both
        return ChipPixels(chip, squares[0], squares[1], mask)

    def provenance(self) -> dict[str, object]:
        """Where the pixels came from and what was done to them, as JSON values."""
        options, placement, geobox = self.options, self.alignment.placement, self.geobox
        return {
            "before": _described(self.views[0], self.stretches[0]),
            "after": _described(self.views[1], self.stretches[1]),
            "grid": {
                "crs": geobox.crs.to_string() if geobox.crs else None,
                "transform": list(geobox.transform)[:6],
                "width": geobox.width,
                "height": geobox.height,
                "gsd_m": self.gsd_m,
            },
            "alignment": {
                "same_grid": placement.offset is not None,
                "error_px": placement.error_px if math.isfinite(placement.error_px) else None,
                "resampling": options.resampling,
                "overlap_share": self.alignment.overlap_share,
            },
            "scale": options.scale,
            "bbox": list(options.bbox) if options.bbox else None,
            "bbox_crs": options.bbox_crs if options.bbox else None,
            "aoi": str(options.aoi) if options.aoi else None,
        }


def _to_uint8(values: NDArray[np.generic], stretch: Stretch | None) -> NDArray[np.uint8]:
    return values.astype(np.uint8, copy=False) if stretch is None else stretch.apply(values)


def _described(view: View, stretch: Stretch | None) -> dict[str, object]:
    source = view.source
    nodata = source.nodata
    return {
        "path": source.name,
        "crs": source.geobox.crs.to_string() if source.geobox.crs else None,
        "width": source.geobox.width,
        "height": source.geobox.height,
        "dtype": source.dtype,
        "bands": list(source.bands),
        "nodata": None if nodata is None else nodata if math.isfinite(nodata) else str(nodata),
        "warped": view.dataset is not source.dataset,
        "stretch": {"low": list(stretch.low), "high": list(stretch.high)} if stretch else None,
    }


def check_options(options: ReadOptions) -> None:
    """Find out whether any pair can be read like this, before one is opened.

    Raises:
        ConfigError: the scale, the resampling or the bbox cannot be.
        RasterError: the file of the area of interest is missing.
    """
    methods = get_args(Resampling)
    if options.resampling not in methods:
        raise ConfigError(f"resampling {options.resampling!r} is not one of {', '.join(methods)}")
    parse_scale(options.scale)
    if options.bbox is not None:
        check_bbox(options.bbox, options.bbox_crs)
    if isinstance(options.aoi, Path):
        check_exists(str(options.aoi))


@contextmanager
def open_pair(pair: RasterPair, options: ReadOptions | None = None) -> Iterator[PairReader]:
    """Check a pair, put both dates on one grid, and read it chip by chip inside the `with`.

    Raises:
        RasterError: a file cannot be read, not even in part, or the two cannot be compared: no CRS, no
            overlap, or grids that differ under `align="strict"`.
        ConfigError: an option does not fit the files.
    """
    options = options or ReadOptions()
    check_options(options)
    opened = partial(
        open_source,
        nodata=options.nodata,
        trust_alpha=options.alpha_band == "auto",
        look=not options.outlines_only,
        allow_vrt=options.allow_vrt,
    )
    with ExitStack() as stack:
        stack.enter_context(gdal_env(pair.before, pair.after))
        before, after = (
            stack.enter_context(opened(path, bands=bands))
            for path, bands in ((pair.before, options.before_bands), (pair.after, options.after_bands))
        )
        names = dict.fromkeys((before.name, after.name))
        stack.enter_context(log_decoder_warnings(" or ".join(names)))
        check_georeferenced(before, after, options.allow_no_crs)
        alignment = align(
            before,
            after,
            strict=options.align == "strict",
            resampling=options.resampling,
            gsd_m=options.gsd_m,
        )
        geobox = alignment.geobox
        views = (
            stack.enter_context(before.view_on(geobox, alignment.before_offset, options.resampling)),
            stack.enter_context(after.view_on(geobox, alignment.after_offset, options.resampling)),
        )
        aoi = _aoi(geobox, options)
        stretches, scale_notes = _stretches(views, geobox, options)
        notes = (*_dated(before, after, before.notes, after.notes), *alignment.notes, *scale_notes)
        warnings = _dated(before, after, before.warnings, after.warnings)
        yield PairReader(alignment, views, stretches, aoi, options, tuple(notes), tuple(warnings))


def _dated(before: Source, after: Source, first: tuple[str, ...], second: tuple[str, ...]) -> Iterator[str]:
    """The notes on each date with its name, unless one image is both."""
    for note in dict.fromkeys(first + second):
        date = "both dates" if note in first and note in second else "before" if note in first else "after"
        yield note if before.location == after.location else f"{date}: {note}"


def _stretches(
    views: tuple[View, View], geobox: GeoBox, options: ReadOptions
) -> tuple[tuple[Stretch | None, Stretch | None], tuple[str, ...]]:
    """The stretch of each date and notes on it; files of which no part can be read are refused here."""
    spec = parse_scale(options.scale)
    if options.outlines_only:
        return (None, None), ()
    if spec.kind == "fixed" or (
        spec.kind != "percent" and all(view.source.dtype == "uint8" for view in views)
    ):
        for view in views:
            view.check_readable(geobox)
        return plan_stretches(spec, *(np.empty((3, 0), view.source.dtype) for view in views))
    before, after = (view.sample(geobox) for view in views)
    return plan_stretches(spec, before, after)


def _aoi(geobox: GeoBox, options: ReadOptions) -> BaseGeometry | None:
    if options.bbox is None and options.aoi is None:
        return None
    if geobox.crs is None:
        raise ConfigError(f"bbox and aoi need rasters with a CRS; leave them out, or {ADD_A_CRS}")
    areas = [] if options.bbox is None else [aoi_from_bbox(options.bbox, options.bbox_crs, geobox)]
    if options.aoi is not None:
        areas.append(
            aoi_from_file(options.aoi, geobox)
            if isinstance(options.aoi, Path)
            else aoi_from_shape(options.aoi, geobox)
        )
    area = areas[0].intersection(areas[-1])
    if area.area == 0:
        raise RasterError("bbox and aoi have no ground in common; leave one of them out")
    return area
