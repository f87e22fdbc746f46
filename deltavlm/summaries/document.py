"""Document of a summary: the table for a terminal, and the blocks of one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deltavlm.messages import format_number, pluralize
from deltavlm.pipeline.schema import ANALYZED_STATUSES
from deltavlm.summaries.areas import OUTSIDE
from deltavlm.summaries.render import Block, Figure, Heading, Items, Table, Text
from deltavlm.summaries.results import UNSURE, Results
from deltavlm.summaries.summary import Summary
from deltavlm.summaries.svg_map import MAX_SHAPES, svg_map
from deltavlm.summaries.totals import AreaSummary

__all__ = ["TEXT_COLUMNS", "document", "table_rows"]

MAX_ROWS = 10  # of a table in the document
MAX_TOP_CHIPS = 5
MAX_CAPTION = 50  # characters of a cell

MEASURED_BY = "measured by"  # a column that is shown where the areas differ in it

COLUMNS: tuple[tuple[str, Callable[[AreaSummary], str]], ...] = (
    ("area", lambda area: area.name),
    ("chips", lambda area: f"{area.chips:,}"),
    ("not analyzed", lambda area: f"{area.nodata + area.failed:,}"),
    ("changed", lambda area: f"{area.changed:,}"),
    ("conflicts", lambda area: f"{area.conflicting:,}" if area.conflicting else ""),
    ("share", lambda area: _percent(area.changed_share)),
    (MEASURED_BY, lambda area: area.basis or ""),
    ("buildings", lambda area: _count(area.new_buildings)),
    ("roads", lambda area: _count(area.new_roads)),
    ("mean score", lambda area: "" if area.mean_score is None else f"{area.mean_score:.2f}"),
    ("unsure", lambda area: _percent(area.unsure_share)),
    ("coverage", lambda area: _percent(area.looked_at_share)),
    ("clouds", lambda area: _percent(area.cloud_share)),
    ("most changed chip", lambda area: area.top_chips[0].caption if area.top_chips else ""),
)
REQUIRED_COLUMNS = 4  # the first four are shown even if they are empty
TEXT_COLUMNS = ("area", MEASURED_BY, "most changed chip")


def table_rows(areas: Sequence[AreaSummary]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows as text; columns without any value are left out."""
    rows = [[to_text(area) for _, to_text in COLUMNS] for area in areas]
    is_mixed = len({area.basis for area in areas if area.basis}) > 1
    used = [
        number
        for number, (name, _) in enumerate(COLUMNS)
        if number < REQUIRED_COLUMNS
        or (any(row[number] for row in rows) and (is_mixed or name != MEASURED_BY))
    ]
    return [COLUMNS[number][0] for number in used], [[row[number] for number in used] for row in rows]


def document(summary: Summary) -> tuple[str, list[Block]]:
    """Title and blocks of the document."""
    blocks: list[Block] = [
        Text(_dates(summary.results)),
        Heading("Changes"),
        Text(_changes(summary.total)),
        *_map(summary),
        *_top_chips(summary.total),
    ]
    if summary.has_areas:
        columns, rows = table_rows(summary.by_area[:MAX_ROWS])
        rows = [[_shorten(cell) for cell in row] for row in rows]
        blocks += [
            Heading(f"By area: {summary.areas.kind}"),
            Table(columns, rows, text_columns=TEXT_COLUMNS),
            Text(_table_notes(summary)),
        ]
    if summary.review is not None:
        blocks += [Heading("Review"), Items(summary.review.lines())]
    blocks += [
        Heading("Confidence"),
        Text(_confidence(summary.total)),
        Heading("Not analyzed"),
        Text(_not_analyzed(summary)),
        Heading("Caveats"),
        Items(summary.caveats),
        Heading("Provenance"),
        Items(_provenance(summary.results)),
    ]
    names = ", ".join(path.name for path in summary.results.paths)
    return f"Changes: {names}", [block for block in blocks if block not in (Text(""), Items([]))]


def _dates(results: Results) -> str:
    before, after = (
        sorted(str(date) for date in results.chips[column].dropna().unique())
        for column in ("before_date", "after_date")
    )
    period = [*(f"from {date}" for date in before[:1]), *(f"to {date}" for date in after[-1:])]
    return f"Images {' '.join(period)}." if period else ""


def _changes(total: AreaSummary) -> str:
    text = f"{total.changed:,} of {pluralize(total.looked_at, 'analyzed chip')} changed"
    return f"{text}: {total.totals}." if total.looked_at and str(total.totals) else f"{text}."


def _map(summary: Summary) -> list[Block]:
    """Map of the areas by their share of change; of the chips by score if areas have no outline."""
    shapes = [area.shape for area in summary.by_area]
    if any(shape is not None for shape in shapes):
        svg = svg_map(shapes, [area.changed_share for area in summary.by_area])
        caption = "Areas by the changed share of their analyzed ground."
    else:
        chips = summary.results.chips
        if len(chips) > MAX_SHAPES:
            return []
        scores = chips["changed_score"].to_numpy(dtype=float, na_value=np.nan)
        scored = chips["status"].isin(ANALYZED_STATUSES).to_numpy() & np.isfinite(scores)
        values = [float(score) if valid else None for score, valid in zip(scores, scored, strict=True)]
        svg = svg_map(list(summary.results.lonlat), values)
        caption = "Chips by score of change."
    return [Figure(svg, f"{caption} North is up.")] if svg else []


def _top_chips(total: AreaSummary) -> list[Block]:
    if not total.top_chips:
        return []
    rows = [
        (
            chip.chip_id,
            f"{chip.score:.2f}",
            "" if chip.lon is None or chip.lat is None else f"{chip.lat:.5f}, {chip.lon:.5f}",
            chip.caption,
        )
        for chip in total.top_chips[:MAX_TOP_CHIPS]
    ]
    columns = ("most changed chips", "score", "lat, lon", "caption")
    return [Table(columns, rows, text_columns=["caption"])]


def _table_notes(summary: Summary) -> str:
    sentences = []
    if len(summary.by_area) > MAX_ROWS:
        sentences.append(f"In a table as .csv: {pluralize(len(summary.by_area) - MAX_ROWS, 'more area')}.")
    if summary.areas.empty_count:
        sentences.append(f"Left out, without a chip: {pluralize(summary.areas.empty_count, 'area')}.")
    sentences.append(
        "A chip is counted in the area that contains its centre; its ground is divided among areas."
    )
    if any(area.looked_at_share is not None for area in summary.by_area):
        sentences.append("Coverage: share of the area that was analyzed.")
    return " ".join(sentences)


def _confidence(total: AreaSummary) -> str:
    if total.mean_score is None:
        return "The run has no scores of change: the yes/no question was not asked."
    return (
        f"The mean score of change is {total.mean_score:.2f} (0: certainly unchanged, 1: certainly changed). "
        f"Undecided, with a score from {UNSURE[0]} to {UNSURE[1]}: {pluralize(total.unsure, 'chip')} "
        f"({total.unsure_share or 0:.0%})."
    )


def _not_analyzed(summary: Summary) -> str:
    total, lost_pairs = summary.total, summary.results.lost_pairs
    sentences = [f"{pluralize(len(lost_pairs), 'pair')} that could not be opened."] if lost_pairs else []
    if total.nodata or total.failed:
        sentences.append(
            f"{pluralize(total.nodata, 'chip')} without enough data, "
            f"{total.failed:,} that could not be read or answered."
        )
    else:
        sentences.append("Every chip of the output was analyzed.")
    low_coverage = [
        area for area in summary.by_area if area.looked_at_share is not None and area.looked_at_share < 0.5
    ]
    if low_coverage:
        sentences.append(
            f"In {pluralize(len(low_coverage), 'area')} less than half of the ground was analyzed."
        )
    outside = next((area for area in summary.by_area if area.name == OUTSIDE), None)
    if outside:
        sentences.append(f"Outside of all areas: {pluralize(outside.chips, 'chip')}.")
    return " ".join(sentences)


def _provenance(results: Results) -> list[str]:
    lines = []
    for path, run in zip(results.paths, results.runs, strict=True):
        if not run:
            continue
        model, versions = run.get("model", {}), run.get("versions", {})
        inputs = run.get("inputs", {})
        images = [inputs[date]["path"] for date in ("before", "after") if date in inputs]
        source = " and ".join(map(str, images)) or f"the pairs of {run.get('pairs', 'a list')}"
        lines.append(
            f"{path.name}: {source}, by deltavlm {versions.get('deltavlm', '')} with {model.get('name')} "
            f"({model.get('fingerprint')})."
        )
    return lines


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CAPTION else text[: MAX_CAPTION - 1].rstrip() + "…"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _count(value: float | None) -> str:
    return "" if value is None else format_number(value)
