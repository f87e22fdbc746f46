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
from typing import Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import PixelGrid, ground_size_m
from deltavlm.geo.area import area_of_box, area_of_file, area_of_shape, check_box
from deltavlm.geo.decoding import complaints_told
from deltavlm.geo.grid import Chip, ChipGrid, polygon
from deltavlm.geo.location import gdal_settings, refuse_a_missing_file
from deltavlm.geo.meeting import ADD_A_CRS, Meeting, check_placed, meet
from deltavlm.geo.radiometry import Stretch, parse_scale, plan_stretches
from deltavlm.geo.source import open_source
from deltavlm.geo.view import Raw, Source, View

__all__ = ["ChipPixels", "PairReader", "RasterPair", "ReadOptions", "check_options", "open_pair"]

MAX_CHIPS = 10_000_000
RESAMPLING = ("nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average", "mode")


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
    resampling: str = "bilinear"
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

    meeting: Meeting
    views: tuple[View, View] = field(repr=False)
    stretches: tuple[Stretch | None, Stretch | None]
    area: BaseGeometry | None  # what was asked for, in the grid's CRS
    options: ReadOptions
    notes: tuple[str, ...]  # one sentence each, for the user
    warnings: tuple[str, ...]  # those of the notes that may make the answers wrong

    @property
    def width(self) -> int:
        return self.meeting.grid.width

    @property
    def height(self) -> int:
        return self.meeting.grid.height

    @property
    def transform(self) -> Affine:
        return self.meeting.grid.transform

    @property
    def crs(self) -> CRS | None:
        return self.meeting.grid.crs

    @property
    def overlap_share(self) -> float:
        """Share of before's area that after covers, 0 to 1."""
        return self.meeting.overlap_share

    @cached_property
    def gsd_m(self) -> float | None:
        """Length of a pixel on the ground in metres, at the centre; None without CRS."""
        size_m = ground_size_m(self.meeting.grid)
        return math.sqrt(size_m[0] * size_m[1]) if size_m else None

    @property
    def footprint(self) -> Polygon:
        """The ground of the grid: what both dates cover, as a rectangle of its pixels."""
        return polygon(self.transform, 0, 0, self.width, self.height)

    def grid(self, size_px: int = 256, overlap_px: int = 0) -> ChipGrid:
        """The chips of the pair, or those of them that touch the bbox or area of interest.

        Raises:
            ConfigError: more than anybody can have meant.
        """
        grid = ChipGrid(self.width, self.height, self.transform, size_px, overlap_px, self.area)
        if grid.rows * grid.cols > MAX_CHIPS:
            raise ConfigError(
                f"{grid.rows} x {grid.cols} chips are more than {MAX_CHIPS:,}; cut larger ones, "
                "with less overlap"
            )
        return grid

    def read(self, chip: Chip) -> ChipPixels:
        """The pixels of a chip of `grid()`.

        Raises:
            RasterError: a part of a file cannot be decoded; other chips may be readable.
            ValueError: the pair was opened for outlines only.
        """
        if self.options.outlines_only:
            raise ValueError("a pair opened for outlines only has no pixels")
        _, _, width, height = chip.window
        try:
            raws = [view.raw(view.room(height, width), chip.window) for view in self.views]
        except RasterError as error:
            raise RasterError(f"chip {chip.chip_id}: {error}") from error
        return self.shown(chip, raws)

    def shown(self, chip: Chip, raws: Iterable[Raw]) -> ChipPixels:
        """What the model sees of a chip, from the raw pixels of its window at both dates."""
        parts = (view.shown(raw) for view, raw in zip(self.views, raws, strict=True))
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
        options, placement = self.options, self.meeting.placement
        return {
            "before": _described(self.views[0], self.stretches[0]),
            "after": _described(self.views[1], self.stretches[1]),
            "grid": {
                "crs": self.crs.to_string() if self.crs else None,
                "transform": list(self.transform)[:6],
                "width": self.width,
                "height": self.height,
                "gsd_m": self.gsd_m,
            },
            "alignment": {
                "same_grid": placement.offset is not None,
                "error_px": placement.error_px if math.isfinite(placement.error_px) else None,
                "resampling": options.resampling,
                "overlap_share": self.overlap_share,
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
        "crs": source.grid.crs.to_string() if source.grid.crs else None,
        "width": source.grid.width,
        "height": source.grid.height,
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
    if options.resampling not in RESAMPLING:
        raise ConfigError(f"resampling {options.resampling!r} is not one of {', '.join(RESAMPLING)}")
    parse_scale(options.scale)
    if options.bbox is not None:
        check_box(options.bbox, options.bbox_crs)
    if isinstance(options.aoi, Path):
        refuse_a_missing_file(str(options.aoi))


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
        stack.enter_context(gdal_settings(pair.before, pair.after))
        before, after = (
            stack.enter_context(opened(path, bands=bands))
            for path, bands in ((pair.before, options.before_bands), (pair.after, options.after_bands))
        )
        names = dict.fromkeys((before.name, after.name))
        stack.enter_context(complaints_told(" or ".join(names)))
        check_placed(before, after, options.allow_no_crs)
        meeting = meet(
            before,
            after,
            strict=options.align == "strict",
            resampling=options.resampling,
            gsd_m=options.gsd_m,
        )
        grid = meeting.grid
        views = (
            stack.enter_context(before.seen_on(grid, meeting.before_offset, options.resampling)),
            stack.enter_context(after.seen_on(grid, meeting.after_offset, options.resampling)),
        )
        area = _area(grid, options)
        stretches, scale_notes = _stretches(views, grid, options)
        notes = (*_dated(before, after, before.notes, after.notes), *meeting.notes, *scale_notes)
        warnings = _dated(before, after, before.warnings, after.warnings)
        yield PairReader(meeting, views, stretches, area, options, tuple(notes), tuple(warnings))


def _dated(before: Source, after: Source, first: tuple[str, ...], second: tuple[str, ...]) -> Iterator[str]:
    """The notes on each date with its name, unless one image is both."""
    for note in dict.fromkeys(first + second):
        date = "both dates" if note in first and note in second else "before" if note in first else "after"
        yield note if before.location == after.location else f"{date}: {note}"


def _stretches(
    views: tuple[View, View], grid: PixelGrid, options: ReadOptions
) -> tuple[tuple[Stretch | None, Stretch | None], tuple[str, ...]]:
    """The stretch of each date and notes on it; files of which no part can be read are refused here."""
    spec = parse_scale(options.scale)
    if options.outlines_only:
        return (None, None), ()
    if spec.kind == "fixed" or (
        spec.kind != "percent" and all(view.source.dtype == "uint8" for view in views)
    ):
        for view in views:
            view.check_readable(grid)
        return plan_stretches(spec, *(np.empty((3, 0), view.source.dtype) for view in views))
    before, after = (view.sample(grid) for view in views)
    return plan_stretches(spec, before, after)


def _area(grid: PixelGrid, options: ReadOptions) -> BaseGeometry | None:
    if options.bbox is None and options.aoi is None:
        return None
    if grid.crs is None:
        raise ConfigError(f"bbox and aoi need rasters with a CRS; leave them out, or {ADD_A_CRS}")
    areas = [] if options.bbox is None else [area_of_box(options.bbox, options.bbox_crs, grid)]
    if options.aoi is not None:
        areas.append(
            area_of_file(options.aoi, grid)
            if isinstance(options.aoi, Path)
            else area_of_shape(options.aoi, grid)
        )
    area = areas[0].intersection(areas[-1])
    if area.area == 0:
        raise RasterError("bbox and aoi have no ground in common; leave one of them out")
    return area
