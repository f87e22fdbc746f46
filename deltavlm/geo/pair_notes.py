"""Notes and warnings for the user on how a pair is read: its dates, places, bands, colors and clouds."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from deltavlm.geo.dates import are_swapped
from deltavlm.geo.georeferencing import datum_note, place_warnings
from deltavlm.geo.pair_measurements import StretchPlan
from deltavlm.geo.read_options import RasterPair
from deltavlm.geo.source import Source
from deltavlm.geo.view import View

__all__ = ["dates_of", "describe_pair"]

MAX_COMPARED = 2**28  # bytes of two files of one size whose contents are compared

Texts = tuple[str, ...]


def describe_pair(
    pair: RasterPair,
    views: tuple[View, View],
    alignment_notes: Texts,
    stretch_plan: StretchPlan,
    *,
    outlines_only: bool,
) -> tuple[Texts, Texts]:
    """Notes, a sentence each, and those of them that are warnings: what they tell may make answers wrong.

    outlines_only: no pixels are read, so nothing is said about dates, bands and colors.
    """
    before, after = (view.source for view in views)
    clouds = [view.clouds for view in views]
    datums, is_doubtful = datum_note(before, after) or ("", False)
    doubts = () if outlines_only else tuple(_order_warnings(pair, dates_of(pair, views)))

    def by_date(before_texts: Texts, after_texts: Texts) -> Iterator[str]:
        return _with_dates(before, after, before_texts, after_texts)

    def cloud_texts(name: str) -> Iterator[str]:
        texts = [getattr(mask, name) if mask else None for mask in clouds]
        return by_date(*((text,) if text else () for text in texts))

    warnings = (
        *by_date(before.warnings, after.warnings),
        *by_date(tuple(place_warnings(before)), tuple(place_warnings(after))),
        *by_date(*stretch_plan.warnings),
        *cloud_texts("warning"),
        *(() if outlines_only else _color_warnings(before, after)),
        *((datums,) if is_doubtful else ()),
    )
    notes = (
        *doubts,
        *by_date(before.notes, after.notes),
        *cloud_texts("note"),
        *(() if outlines_only else _band_notes(before, after)),
        *alignment_notes,
        *((datums,) if datums else ()),
        *stretch_plan.notes,
        *warnings,
        *_tag_notes(pair, before, after),
    )
    return tuple(dict.fromkeys(notes)), (*doubts, *warnings)


def dates_of(pair: RasterPair, views: tuple[View, View]) -> tuple[str | None, str | None]:
    """Dates of before and after in ISO 8601: as given, or from the tags of the files."""
    return pair.before_date or views[0].source.date, pair.after_date or views[1].source.date


def _with_dates(before: Source, after: Source, before_texts: Texts, after_texts: Texts) -> Iterator[str]:
    """Texts on both dates, prefixed with the date unless both are the same image."""
    for text in dict.fromkeys(before_texts + after_texts):
        in_before, in_after = text in before_texts, text in after_texts
        date = "both dates" if in_before and in_after else "before" if in_before else "after"
        yield text if before.location == after.location else f"{date}: {text}"


def _tag_notes(pair: RasterPair, before: Source, after: Source) -> Iterator[str]:
    """Note on each date that comes from the tags of a file."""
    for name, given, source in (("before", pair.before_date, before), ("after", pair.after_date, after)):
        if source.date is not None and given is None:
            yield f"{name}: dated {source.date} by its tags"


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
