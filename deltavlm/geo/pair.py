"""Opening of a raster pair on one pixel grid, to be read chip by chip.

The grid is that of `before`, cropped to what both cover. Where `after` has the same pixels, both are read by
windows; otherwise it is warped. Nothing is printed: `PairReader.notes` says what was done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from deltavlm.geo.alignment import Offset, align
from deltavlm.geo.aoi import area_of_interest
from deltavlm.geo.cloud_mask import CloudMask
from deltavlm.geo.cloud_source import open_cloud_mask
from deltavlm.geo.gdal import gdal_env, log_decoder_warnings
from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.georeferencing import check_georeferenced
from deltavlm.geo.matching import ColorMatch
from deltavlm.geo.pair_measurements import (
    StretchPlan,
    check_stretches,
    measure_colors,
    measure_registration,
    measure_stretches,
)
from deltavlm.geo.pair_notes import dates_of, describe_pair
from deltavlm.geo.pair_reader import ChipPixels, PairReader
from deltavlm.geo.radiometry import Stretches
from deltavlm.geo.read_options import RasterPair, ReadOptions, check_options
from deltavlm.geo.registration import Registration
from deltavlm.geo.source import Source, SourceOptions, open_source
from deltavlm.geo.view import View, open_view

__all__ = ["ChipPixels", "PairReader", "RasterPair", "ReadOptions", "check_options", "open_pair"]

ShiftPx = tuple[float, float]  # columns, rows

UNMATCHED = "`match`: there is too little unchanged ground with contrast, so colors are left as they are"


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
    with ExitStack() as stack:
        masks = options.cloud_masks
        mask_locations = [mask.location or "" for mask in masks if mask is not None]
        stack.enter_context(gdal_env(pair.before, pair.after, *mask_locations))
        source_options = SourceOptions(
            bands=options.before_bands,
            nodata=options.nodata,
            trust_alpha=options.alpha_band == "auto",
            read_pixels=not options.outlines_only,
            allow_vrt=options.allow_vrt,
            resampling=options.resampling,
        )
        before = stack.enter_context(open_source(pair.before, source_options))
        after_options = replace(source_options, bands=options.after_bands)
        after = stack.enter_context(open_source(pair.after, after_options))
        names = dict.fromkeys((before.name, after.name))
        stack.enter_context(log_decoder_warnings(" or ".join(names)))
        check_georeferenced(before, after, options.allow_no_crs)
        is_strict = options.align == "strict"
        alignment = align(before, after, strict=is_strict, resampling=options.resampling, gsd_m=options.gsd_m)
        if geobox is not None:
            alignment = alignment.moved_to(geobox)
        grid = alignment.geobox

        def view_of(
            source: Source, mask: CloudMask | None, offset: Offset | None, shift: ShiftPx | None = None
        ) -> View:
            """View of one date on the common grid, with its cloud mask."""
            view = stack.enter_context(open_view(source, grid, offset, options.resampling, shift))
            if mask is None or options.outlines_only:
                return view
            clouds = open_cloud_mask(mask, source, grid, offset, shift=shift, allow_vrt=options.allow_vrt)
            return replace(view, clouds=stack.enter_context(clouds))

        views = (
            view_of(before, masks[0], alignment.before_offset),
            view_of(after, masks[1], alignment.after_offset),
        )
        aoi = area_of_interest(grid, options.bbox, options.bbox_crs, options.aoi)
        plan = _plan_stretches(views, grid, options, stretches)
        notes, warnings = describe_pair(
            pair, views, alignment.notes, plan, outlines_only=options.outlines_only
        )
        dates = dates_of(pair, views)
        reader = PairReader(alignment, views, plan.stretches, aoi, options, notes, warnings, dates)

        is_measured = registration is None and not options.outlines_only
        if is_measured:
            registration = measure_registration(reader)
            note = registration.note(grid, requested=options.register)
            reader = reader.with_note(*note) if note else reader
        if registration is not None:
            reader = replace(reader, registration=registration)
            if registration.correction is not None:
                moved = view_of(after, masks[1], alignment.after_offset, registration.correction)
                reader = replace(reader, views=(views[0], moved))
        if is_measured and options.match != "none":
            color_match = measure_colors(reader)
            note = (UNMATCHED, True) if color_match is None else (color_match.note, False)
            reader = reader.with_note(*note)
        if color_match is not None:
            matched = color_match.of_stretch(plan.stretches[1])
            reader = replace(reader, stretches=(plan.stretches[0], matched), color_match=color_match)
        yield reader


def _plan_stretches(
    views: tuple[View, View], grid: GeoBox, options: ReadOptions, stretches: Stretches | None
) -> StretchPlan:
    if stretches is not None:
        check_stretches(views, stretches)
        return StretchPlan(stretches)
    if options.outlines_only:
        return StretchPlan((None, None))
    return measure_stretches(views, grid, options.scale)
