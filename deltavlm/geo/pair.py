"""Reader of a raster pair: the same ground at two dates, chip by chip, as RGB uint8 on one pixel grid.

The grid is that of `before`, cropped to what both cover. Where `after` has the same pixels, both are read by
windows; otherwise it is warped. Nothing is printed: `PairReader.notes` says what was done.
"""

from __future__ import annotations

import filecmp
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import Alignment, align
from deltavlm.geo.aoi import aoi_file, aoi_from_bbox, aoi_from_file, aoi_from_shape, check_bbox
from deltavlm.geo.cloud_mask import CloudMask, parse_cloud_mask, parse_qa_band
from deltavlm.geo.cloud_source import open_cloud_mask
from deltavlm.geo.dates import are_swapped
from deltavlm.geo.gdal import gdal_env, log_decoder_warnings
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.georeferencing import ADD_A_CRS, check_georeferenced, datum_note, place_warnings
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.geo.identity import Identity, current_identity, is_same
from deltavlm.geo.location import check_exists
from deltavlm.geo.matching import ColorMatch, Matching, block_means, check_matching, fit_colors
from deltavlm.geo.radiometry import (
    Stretch,
    Stretches,
    contrast_warning,
    parse_scale,
    plan_stretches,
    to_uint8,
)
from deltavlm.geo.registration import Registration, Shift, lattice_windows, measure_shift
from deltavlm.geo.resampling import Resampling, parse_resampling
from deltavlm.geo.source import SourceOptions, open_source
from deltavlm.geo.view import FEW_WINDOWS, SAMPLE_WINDOWS, Raw, Source, View
from deltavlm.messages import redact, redact_address

__all__ = ["ChipPixels", "PairReader", "RasterPair", "ReadOptions", "check_options", "open_pair"]

MAX_CHIPS = 10_000_000
UNMATCHED = "`match`: there is too little unchanged ground with contrast, so colors are left as they are"
MAX_COMPARED = 2**28  # bytes of two files of one size whose contents are compared


@dataclass(frozen=True, slots=True)
class RasterPair:
    """Locations of the two images: paths, `https://`, `s3://` or `/vsi...`. Opens nothing.

    Dates are in ISO 8601; None: from the tags of the file.
    """

    before: str
    after: str
    name: str = ""
    before_date: str | None = None
    after_date: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """Options of `open_pair`. `bbox` is xmin, ymin, xmax, ymax in `bbox_crs`."""

    align: Literal["auto", "strict"] = "auto"
    resampling: Resampling = "bilinear"
    before_bands: tuple[int, ...] | None = None
    after_bands: tuple[int, ...] | None = None
    scale: str = "auto"  # as `parse_scale` reads it
    nodata: float | None = None
    alpha_band: Literal["auto", "none"] = "auto"
    gsd_m: float | None = None
    allow_no_crs: bool = False
    allow_vrt: bool = False
    bbox: tuple[float, float, float, float] | None = None
    bbox_crs: str = "EPSG:4326"
    aoi: Path | BaseGeometry | None = None  # a vector file, or polygons in longitude and latitude
    before_cloud_mask: str | None = None  # as `parse_cloud_mask` reads it
    after_cloud_mask: str | None = None
    qa_band: str | None = None  # of each image without a cloud mask, as `parse_qa_band` reads it
    register: bool = False  # correct the measured shift of `after`
    match: Matching = "none"  # of the colors of `after` to those of `before`
    outlines_only: bool = False  # chip footprints only: no pixel is read

    @property
    def cloud_masks(self) -> tuple[CloudMask | None, CloudMask | None]:
        """Cloud masks of before and after. Raises: ConfigError."""
        masks = (self.before_cloud_mask, self.after_cloud_mask)
        band = None if self.qa_band is None else parse_qa_band(self.qa_band)
        before, after = (band if mask is None else parse_cloud_mask(mask) for mask in masks)
        return before, after


@dataclass(frozen=True, slots=True)
class ChipPixels:
    """Input of the model for a chip. Pixels without data at either date have the mean color in both."""

    chip: Chip
    before: NDArray[np.uint8]  # (3, size, size) RGB
    after: NDArray[np.uint8]  # (3, size, size) RGB
    valid: NDArray[np.bool_]  # (size, size), True where both dates have data
    cloud_share: float | None = None  # of the real pixels, hidden by a cloud mask alone; None without one

    @property
    def valid_fraction(self) -> float:
        """Share of the chip's real pixels, padding apart, where both dates have data."""
        real = self.valid[: self.chip.window.height, : self.chip.window.width]
        return float(np.count_nonzero(real) / real.size)

    def measure_shift(self) -> Shift | None:
        """Shift of `after` against `before`; None where it cannot be measured."""
        rows, cols = slice(self.chip.window.height), slice(self.chip.window.width)
        return measure_shift(self.before[:, rows, cols], self.after[:, rows, cols], self.valid[rows, cols])


@dataclass(frozen=True)
class PairReader:
    """Open pair; made by `open_pair`, valid inside its `with`, for one thread."""

    alignment: Alignment
    views: tuple[View, View] = field(repr=False)
    stretches: Stretches
    aoi: BaseGeometry | None  # bbox and area of interest of the options, in the CRS of the grid
    options: ReadOptions
    notes: tuple[str, ...]  # for the user, a sentence each
    warnings: tuple[str, ...]  # those of the notes that may make the answers wrong
    dates: tuple[str | None, str | None] = (None, None)  # ISO 8601, of before and after
    registration: Registration = field(default_factory=Registration)
    color_match: ColorMatch | None = None  # part of the stretch of `after` already

    @property
    def geobox(self) -> GeoBox:
        """Common pixel grid: that of `before`, cropped to what both dates cover."""
        return self.alignment.geobox

    @cached_property
    def gsd_m(self) -> float | None:
        """Ground sample distance of the grid in metres, at its center; None without a CRS."""
        return self.geobox.gsd_m

    def with_note(self, note: str, is_warning: bool) -> PairReader:
        """The same reader with one more note."""
        warnings = (*self.warnings, note) if is_warning else self.warnings
        return replace(self, notes=(*self.notes, note), warnings=warnings)

    @property
    def aoi_window(self) -> Window:
        """Pixels under the bounds of the bbox or area of interest; without one, the whole grid."""
        geobox = self.geobox
        if self.aoi is None:
            return Window(0, 0, geobox.width, geobox.height)
        corners = geobox.to_pixels(shapely.get_coordinates(self.aoi))
        xmin, ymin, xmax, ymax = shapely.MultiPoint(corners).bounds
        first = max(0, math.floor(xmin + 1e-6)), max(0, math.floor(ymin + 1e-6))
        last = min(geobox.width, math.ceil(xmax - 1e-6)), min(geobox.height, math.ceil(ymax - 1e-6))
        return Window(*first, max(1, last[0] - first[0]), max(1, last[1] - first[1]))

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
        """Read the pixels of a chip of `chips()`.

        Raises:
            RasterError: a block of a file cannot be decoded; other chips may be readable.
            ValueError: the pair was opened with `outlines_only`.
        """
        if self.options.outlines_only:
            raise ValueError("a pair opened for outlines only has no pixels")
        _, _, width, height = chip.window
        try:
            raws = [view.read_raw(view.allocate(height, width), chip.window) for view in self.views]
        except RasterError as error:
            raise RasterError(f"chip {chip.chip_id}: {error}") from error
        return self.to_chip_pixels(chip, raws)

    def to_chip_pixels(self, chip: Chip, raws: Sequence[Raw]) -> ChipPixels:
        """Convert the raw pixels of a chip's window at both dates to the input of the model."""
        converted = (view.to_rgb(raw) for view, raw in zip(self.views, raws, strict=True))
        values, masks = zip(*converted, strict=True)
        images = [to_uint8(date, stretch) for date, stretch in zip(values, self.stretches, strict=True)]
        valid = masks[0] & masks[1]
        clouds = [raw.clouds for raw in raws if raw.clouds is not None]
        cloud_share = None
        if clouds:
            hidden = valid & np.logical_or.reduce(clouds)
            cloud_share = float(np.count_nonzero(hidden) / hidden.size)
            valid &= ~hidden
        if valid.shape == (chip.size, chip.size) and valid.all():
            return ChipPixels(chip, images[0], images[1], valid, cloud_share)
        valid_colors = np.concatenate([image[:, valid] for image in images], axis=1)
        fill = valid_colors.mean(axis=1).round() if valid.any() else np.zeros(3)
        height, width = valid.shape
        squares = np.empty((2, 3, chip.size, chip.size), np.uint8)
        squares[:] = fill.astype(np.uint8)[:, None, None]
        for square, image in zip(squares, images, strict=True):
            np.copyto(square[:, :height, :width], image, where=valid)
        mask = np.zeros((chip.size, chip.size), bool)
        mask[:height, :width] = valid
        return ChipPixels(chip, squares[0], squares[1], mask, cloud_share)

    @property
    def files(self) -> tuple[Mapping[str, Identity], ...]:
        """Files that each date reads, as they were when they were opened."""
        return tuple(
            {**view.source.files, **({} if view.clouds is None else view.clouds.files)} for view in self.views
        )

    def changed_file(self) -> str | None:
        """Name of a file that was written over or replaced since it was opened, None if there is none."""
        for file, identity in (item for files in self.files for item in files.items()):
            if not is_same(identity, current_identity(file)):
                return redact_address(file)
        return None

    def provenance(self) -> dict[str, object]:
        """Origin of the pixels and their processing, as JSON values."""
        options, placement, geobox = self.options, self.alignment.placement, self.geobox
        return {
            "before": _describe(self.views[0], self.stretches[0]),
            "after": _describe(self.views[1], self.stretches[1]),
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
            "registration": self.registration.record(geobox),
            "scale": options.scale,
            "match": self.color_match and self.color_match.record(),
            "bbox": list(options.bbox) if options.bbox else None,
            "bbox_crs": options.bbox_crs if options.bbox else None,
            "aoi": redact(str(options.aoi)) if options.aoi else None,
        }


def _describe(view: View, stretch: Stretch | None) -> dict[str, object]:
    source = view.source
    geobox = source.geobox
    nodata = [value if value is None or math.isfinite(value) else str(value) for value in source.nodata]
    return {
        "path": source.name,
        "crs": geobox.crs.to_string() if geobox.crs else None,
        "width": geobox.width,
        "height": geobox.height,
        "dtype": source.dtype,
        "bands": list(source.bands),
        "nodata": nodata[0] if len(set(nodata)) == 1 else nodata,
        "warped": view.dataset is not source.dataset,
        "stretch": {"low": list(stretch.low), "high": list(stretch.high)} if stretch else None,
        "cloud_mask": view.clouds.record() if view.clouds else None,
    }


def check_options(options: ReadOptions) -> None:
    """Validate options before any pair is opened.

    Raises:
        ConfigError: the scale, the resampling method, the bbox or a cloud mask is invalid.
        RasterError: the file of the area of interest or of a cloud mask is missing.
    """
    parse_resampling(options.resampling)
    parse_scale(options.scale)
    check_matching(options.match)
    for mask in options.cloud_masks:
        if mask is not None and mask.location is not None:
            check_exists(mask.location)
    if options.bbox is not None:
        check_bbox(options.bbox, options.bbox_crs)
    if isinstance(options.aoi, Path):
        check_exists(str(aoi_file(options.aoi)))


@contextmanager
def open_pair(
    pair: RasterPair,
    options: ReadOptions | None = None,
    *,
    geobox: GeoBox | None = None,
    stretches: Stretches | None = None,
    registration: Registration | None = None,
    color_match: ColorMatch | None = None,
) -> Iterator[PairReader]:
    """Open a pair on one grid, to be read chip by chip inside the `with`.

    geobox: grid to use instead of the common one, such as that of an earlier run.
    stretches: stretch of each date to use instead of what `options.scale` computes; None for 8-bit values.
    registration: shift of the pair to use instead of measuring it; colors are then not measured either.
    color_match: match of the colors to use, together with `registration`.

    Raises:
        RasterError: a file cannot be read, not even in part, or the two cannot be compared: no CRS, no
            overlap, or grids that differ under `align="strict"`.
        ConfigError: an option is invalid or does not fit the files.
    """
    options = options or ReadOptions()
    check_options(options)
    before_options = SourceOptions(
        bands=options.before_bands,
        nodata=options.nodata,
        trust_alpha=options.alpha_band == "auto",
        read_pixels=not options.outlines_only,
        allow_vrt=options.allow_vrt,
        resampling=options.resampling,
    )
    after_options = replace(before_options, bands=options.after_bands)
    with ExitStack() as stack:
        masks = options.cloud_masks
        stack.enter_context(
            gdal_env(pair.before, pair.after, *(mask.location or "" for mask in masks if mask is not None))
        )
        before = stack.enter_context(open_source(pair.before, before_options))
        after = stack.enter_context(open_source(pair.after, after_options))
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
        if geobox is not None:
            alignment = alignment.moved_to(geobox)
        views = (
            stack.enter_context(
                before.view_on(alignment.geobox, alignment.before_offset, options.resampling)
            ),
            stack.enter_context(after.view_on(alignment.geobox, alignment.after_offset, options.resampling)),
        )
        if not options.outlines_only:
            before_view, after_view = (
                stack.enter_context(_with_clouds(view, mask, alignment.geobox, offset, options))
                for view, mask, offset in zip(
                    views,
                    masks,
                    (alignment.before_offset, alignment.after_offset),
                    strict=True,
                )
            )
            views = before_view, after_view
        aoi = area_of_interest(alignment.geobox, options)
        scale_notes: tuple[str, ...] = ()
        contrast: Texts = ((), ())
        if stretches is None:
            stretches, scale_notes, contrast = _stretches(views, alignment.geobox, options)
        else:
            _check_stretches(views, stretches)
        cloud_notes, cloud_warnings = _cloud_texts(views)
        warnings = (
            *_with_dates(before, after, before.warnings, after.warnings),
            *_with_dates(before, after, tuple(place_warnings(before)), tuple(place_warnings(after))),
            *_with_dates(before, after, *contrast),
            *_with_dates(before, after, *cloud_warnings),
            *(() if options.outlines_only else _color_warnings(before, after)),
        )
        datums, is_doubtful = datum_note(before, after) or ("", False)
        if is_doubtful:
            warnings = (*warnings, datums)
        dates = pair.before_date or before.date, pair.after_date or after.date
        doubts = () if options.outlines_only else tuple(_order_warnings(pair, dates))
        tagged = tuple(
            f"{name}: dated {source.date} by its tags"
            for name, given, source in (
                ("before", pair.before_date, before),
                ("after", pair.after_date, after),
            )
            if source.date is not None and given is None
        )
        notes = dict.fromkeys(
            (
                *doubts,
                *_with_dates(before, after, before.notes, after.notes),
                *_with_dates(before, after, *cloud_notes),
                *(() if options.outlines_only else _band_notes(before, after)),
                *alignment.notes,
                *((datums,) if datums else ()),
                *scale_notes,
                *warnings,
                *tagged,
            )
        )
        reader = PairReader(
            alignment, views, stretches, aoi, options, tuple(notes), (*doubts, *warnings), dates
        )
        is_measured = registration is None and not options.outlines_only
        if is_measured:
            registration = _measure(reader)
            note = registration.note(reader.geobox, requested=options.register)
            reader = reader.with_note(*note) if note else reader
        if registration is not None:
            reader = replace(reader, registration=registration)
            correction = registration.correction
            if correction is not None:
                moved = after.view_on(
                    alignment.geobox, alignment.after_offset, options.resampling, correction
                )
                moved_view = stack.enter_context(moved)
                clouds = _with_clouds(
                    moved_view, masks[1], alignment.geobox, alignment.after_offset, options, correction
                )
                reader = replace(reader, views=(views[0], stack.enter_context(clouds)))
        if is_measured and options.match != "none":
            color_match = _match_colors(reader)
            note = (UNMATCHED, True) if color_match is None else (color_match.note, False)
            reader = reader.with_note(*note)
        if color_match is not None:
            matched = color_match.of_stretch(stretches[1])
            reader = replace(reader, stretches=(stretches[0], matched), color_match=color_match)
        yield reader


def _match_colors(reader: PairReader) -> ColorMatch | None:
    """Match of the colors by windows in the area of interest; None where it cannot be found."""
    means = [block_means((pixels.before, pixels.after), pixels.valid) for pixels in _samples(reader)]
    samples = np.concatenate(means, axis=2) if means else np.empty((2, 3, 0))
    return fit_colors(samples[0], samples[1])


def _measure(reader: PairReader) -> Registration:
    """Registration by windows in the area of interest."""
    shifts = [pixels.measure_shift() for pixels in _samples(reader)]
    measured = [shift for shift in shifts if shift is not None]
    return Registration.of(measured, correct=reader.options.register)


def _samples(reader: PairReader) -> Iterator[ChipPixels]:
    """Windows in the area of interest; those that cannot be read are left out."""
    for window in lattice_windows(reader.aoi_window):
        chip = Chip(0, 0, window, max(window.width, window.height), reader.geobox.transform)
        with suppress(RasterError):
            yield reader.read(chip)


def _order_warnings(pair: RasterPair, dates: tuple[str | None, str | None]) -> Iterator[str]:
    """Warnings about dates in the wrong order, and one image given as both."""
    with suppress(ValueError):  # of a date that is not in ISO 8601
        if are_swapped(*dates):
            yield f"before is dated {dates[0]} and after {dates[1]}: are they swapped?"
    if _is_same_image(pair.before, pair.after):
        yield "before and after are the same image, so nothing can have changed"


def _is_same_image(before: str, after: str) -> bool:
    """True for one location, links to one file, and files up to MAX_COMPARED with the same bytes."""
    if before == after:
        return True
    try:
        sizes = {Path(location).stat().st_size for location in (before, after)}
        if Path(before).samefile(after):
            return True
        return len(sizes) == 1 and max(sizes) <= MAX_COMPARED and filecmp.cmp(before, after, shallow=False)
    except (OSError, ValueError):
        return False  # a remote one


def _with_dates(
    before: Source, after: Source, before_notes: tuple[str, ...], after_notes: tuple[str, ...]
) -> Iterator[str]:
    """Notes on both dates, prefixed with the date unless both are the same image."""
    for note in dict.fromkeys(before_notes + after_notes):
        in_before, in_after = note in before_notes, note in after_notes
        date = "both dates" if in_before and in_after else "before" if in_before else "after"
        yield note if before.location == after.location else f"{date}: {note}"


@contextmanager
def _with_clouds(
    view: View,
    mask: CloudMask | None,
    grid: GeoBox,
    offset: tuple[int, int] | None,
    options: ReadOptions,
    shift: tuple[float, float] | None = None,
) -> Iterator[View]:
    """The view with its cloud mask, if there is one, both misregistered by `shift`."""
    if mask is None:
        yield view
        return
    opened = open_cloud_mask(mask, view.source, grid, offset, shift=shift, allow_vrt=options.allow_vrt)
    with opened as clouds:
        yield replace(view, clouds=clouds)


Texts = tuple[tuple[str, ...], tuple[str, ...]]  # of before and after


def _cloud_texts(views: tuple[View, View]) -> tuple[Texts, Texts]:
    """Notes and warnings about the cloud masks of both dates."""
    masks = [view.clouds for view in views]
    notes = [(mask.note,) if mask else () for mask in masks]
    warnings = [(mask.warning,) if mask and mask.warning else () for mask in masks]
    return (notes[0], notes[1]), (warnings[0], warnings[1])


def _band_notes(before: Source, after: Source) -> Iterator[str]:
    """Note where red, green and blue are other bands at one date."""
    if before.bands != after.bands and min(len(before.distinct_bands), len(after.distinct_bands)) > 1:
        names = [",".join(map(str, source.bands)) for source in (before, after)]
        yield f"red, green, blue are bands {names[0]} of before, and bands {names[1]} of after"


def _color_warnings(before: Source, after: Source) -> Iterator[str]:
    """Warning where one date has colors and the other has none, or only one has a color table."""
    if before.is_gray != after.is_gray:
        names = ("before", "after") if before.is_gray else ("after", "before")
        yield (
            f"{names[0]} is gray and {names[1]} has colors, which may look like change; show one band of each"
            f" (`{names[1]}_bands`), or give both in colors"
        )
    elif (before.palette is None) != (after.palette is None):
        name = "after" if before.palette is None else "before"
        yield f"only {name} is read through a color table: if it is a map of classes, its colors are no image"


def _stretches(
    views: tuple[View, View], geobox: GeoBox, options: ReadOptions
) -> tuple[Stretches, tuple[str, ...], Texts]:
    """Stretch of each date, notes on it, and warnings for each date of which it leaves nothing to see.

    Raises:
        RasterError: no part of a file can be read.
    """
    spec = parse_scale(options.scale)
    if options.outlines_only:
        return (None, None), (), ((), ())
    for view in views:
        view.check_readable(geobox)
    before, after = (
        view.sample(geobox, FEW_WINDOWS if view.source.is_8bit else SAMPLE_WINDOWS) for view in views
    )
    planned, notes = plan_stretches(spec, before, after)
    stretches = (  # values of a color table are colors, whatever the scale
        None if views[0].source.palette is not None else planned[0],
        None if views[1].source.palette is not None else planned[1],
    )
    contrast = []
    for view, values, stretch in zip(views, (before, after), stretches, strict=True):
        warning = _contrast_warning(view, values, stretch, options.scale)
        if warning and view.source.is_8bit:  # look again, at more of it
            warning = _contrast_warning(view, view.sample(geobox), stretch, options.scale)
        contrast.append((warning,) if warning else ())
    return stretches, notes, (contrast[0], contrast[1])


def _contrast_warning(view: View, values: NDArray[Any], stretch: Stretch | None, scale: str) -> str | None:
    return contrast_warning(values, stretch, scale, view.source.scale_offset is not None)


def _check_stretches(views: tuple[View, View], stretches: Stretches) -> None:
    for view, stretch in zip(views, stretches, strict=True):
        if stretch is None and not view.source.is_8bit:
            raise ConfigError(f"{view.source.name}: has values of {view.source.dtype}, which need a stretch")


def area_of_interest(geobox: GeoBox, options: ReadOptions) -> BaseGeometry | None:
    """Intersection of bbox and area of interest in the CRS of the grid; None without either."""
    if options.bbox is None and options.aoi is None:
        return None
    if geobox.crs is None:
        raise ConfigError(f"bbox and aoi need rasters with a CRS; leave them out, or {ADD_A_CRS}")
    shapes = [] if options.bbox is None else [aoi_from_bbox(options.bbox, options.bbox_crs, geobox)]
    if options.aoi is not None:
        shapes.append(
            aoi_from_file(options.aoi, geobox)
            if isinstance(options.aoi, Path)
            else aoi_from_shape(options.aoi, geobox)
        )
    aoi = shapes[0].intersection(shapes[-1])
    if aoi.area == 0:
        raise RasterError("bbox and aoi do not overlap; leave one of them out")
    return aoi
