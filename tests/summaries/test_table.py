"""A table for a spreadsheet: no text of a file or a model runs as a formula."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from deltavlm.summaries.table import to_csv
from deltavlm.summaries.totals import TopChip, summarize_chips
from tests.summaries.outputs import written


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ('=HYPERLINK("http://e.org","x")', '\'=HYPERLINK("http://e.org","x")'),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1+1", "'+1+1"),
        ("-cmd", "'-cmd"),
        ("\t=1", "'\t=1"),
        ("-5", "-5"),
        ("+1e3", "+1e3"),
        ("west, north", "west, north"),
        ("", ""),
    ],
)
def test_formulas_are_escaped(tmp_path: Path, name: str, expected: str) -> None:
    total = summarize_chips(written(tmp_path / "out.gpkg"))
    area = replace(total, name=name, top_chips=(TopChip("r0_c0", 0.5, name, 15.0, 48.0),))
    (row,) = csv.DictReader(io.StringIO(to_csv([area])))
    assert row["name"] == row["top_caption"] == expected
    assert float(row["top_score"]) == 0.5
