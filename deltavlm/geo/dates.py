"""Dates of images: from the tags of a file, and whether two are in order."""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from datetime import UTC, datetime

__all__ = ["DATE_TAGS", "are_swapped", "as_datetime", "date_of_tags"]

DATE_TAGS = (
    *("ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "ACQUISITION_DATE", "DATE_ACQUIRED"),
    *("SENSING_TIME", "START_DATETIME", "DATETIME", "TIFFTAG_DATETIME"),
)
"""Names of tags with the date of an image, the surest first. Acquisition is what the first ones say (GDAL's
domain IMAGERY, Landsat, Sentinel-2); `datetime` is STAC's; TIFF's own is the date of the file's image, which
many programs set to when they wrote it."""

_COARSE_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")
_TIFF_DATE = re.compile(r"(\d{4}):(\d{2}):(\d{2})(?: (\d{2}:\d{2}:\d{2}))?")  # TIFF 6.0, section 8


def date_of_tags(tags: Mapping[str, str]) -> str | None:
    """Date of an image in ISO 8601 from the tags of its file; None where no tag has a valid one."""
    by_name = {name.upper(): value.strip() for name, value in tags.items()}
    for name in DATE_TAGS:
        text = by_name.get(name, "")
        match = _TIFF_DATE.fullmatch(text)
        if match is not None:
            year, month, day, time = match.groups()
            text = f"{year}-{month}-{day}" + (f"T{time}" if time and time != "00:00:00" else "")
        try:
            is_date = as_datetime(text, is_end=False).year > 1
        except ValueError:
            continue
        if is_date:
            return text
    return None


def as_datetime(text: str, *, is_end: bool) -> datetime:
    """Moment in UTC of a date in ISO 8601: the first second of a day, month or year, or the last (`is_end`).

    Raises: ValueError for other text.

    >>> as_datetime("2024-02", is_end=True).isoformat()
    '2024-02-29T23:59:59+00:00'
    """
    match = _COARSE_DATE.fullmatch(text)
    if match is None:
        moment = datetime.fromisoformat(text)
        try:
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        except OverflowError:  # at the first or last day that datetime knows
            raise ValueError(text) from None
    year, month, day = (int(digits) if digits else 0 for digits in match.groups())
    month = month or (12 if is_end else 1)
    if not 1 <= month <= 12:
        raise ValueError(f"month {month} of {text}")
    day = day or (calendar.monthrange(year, month)[1] if is_end else 1)
    return datetime(year, month, day, *((23, 59, 59) if is_end else (0, 0, 0)), tzinfo=UTC)


def are_swapped(before: str | None, after: str | None) -> bool:
    """True if all of `after` lies before all of `before`: a year and a day in it are not swapped."""
    if before is None or after is None:
        return False
    return as_datetime(after, is_end=True) < as_datetime(before, is_end=False)
