"""Totals as comma-separated values, for spreadsheets and pipes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from deltavlm.summaries.totals import AREAS, AreaSummary, as_row

__all__ = ["to_csv"]

STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_csv(found: Sequence[AreaSummary]) -> str:
    """A row for each area, below the names of the columns.

    A text that a spreadsheet would run as a formula (names of areas come from files of others) gets an
    apostrophe before it; one that is a number stays as it is.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in AREAS.fields], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in as_row(one).items()} for one in found)
    return stream.getvalue()


def _inert(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(STARTS_A_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
