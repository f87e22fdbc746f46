"""Totals as CSV that is safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from deltavlm.summaries.totals import AREAS, AreaSummary, as_row

__all__ = ["to_csv"]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def to_csv(areas: Sequence[AreaSummary]) -> str:
    """CSV with a header and one row per area.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, since names of areas come
    from other people's files. A text that is a number stays as it is.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in AREAS.fields], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _escape(value) for name, value in as_row(area).items()} for area in areas)
    return stream.getvalue()


def _escape(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
