"""Totals laid out: the table that a terminal shows, and a page that says what changed, where, how sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deltavlm.summaries.areas import OUTSIDE, Areas
from deltavlm.summaries.caveats import caveats
from deltavlm.summaries.render import Block, Heading, Items, Picture, Table, Text
from deltavlm.summaries.results import ANSWERED, Results
from deltavlm.summaries.svg_map import MAX_SHAPES, svg_map
from deltavlm.summaries.totals import UNSURE, AreaSummary

__all__ = ["document", "table_rows"]

MOST_ROWS = 10  # of a table on a page
MOST_CHIPS = 5
LONGEST_CAPTION = 50

COLUMNS: tuple[tuple[str, Callable[[AreaSummary], str]], ...] = (
    ("area", lambda one: one.name),
    ("chips", lambda one: f"{one.chips:,}"),
    ("not looked at", lambda one: f"{one.nodata + one.failed:,}"),
    ("changed", lambda one: f"{one.changed:,}"),
    ("share", lambda one: _percent(one.changed_share)),
    ("buildings", lambda one: _number(one.new_buildings)),
    ("roads", lambda one: _number(one.new_roads)),
    ("mean score", lambda one: "" if one.mean_score is None else f"{one.mean_score:.2f}"),
    ("unsure", lambda one: _percent(one.unsure_share)),
    ("seen", lambda one: _percent(one.looked_at_share)),
    ("most changed chip", lambda one: one.top[0].caption if one.top else ""),
)


def table_rows(found: Sequence[AreaSummary]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows as text; columns that are empty in all rows are left out."""
    rows = [[tell(one) for _, tell in COLUMNS] for one in found]
    kept = [number for number in range(len(COLUMNS)) if number < 4 or any(row[number] for row in rows)]
    return [COLUMNS[number][0] for number in kept], [[row[number] for number in kept] for row in rows]


def document(
    results: Results, areas: Areas, found: Sequence[AreaSummary], whole: AreaSummary
) -> tuple[str, list[Block]]:
    """Title and blocks of the report."""
    names = ", ".join(path.name for path in results.paths)
    blocks: list[Block] = [
        Text(_dates(results)),
        Heading("What changed"),
        Text(_changed(whole)),
        *_picture(results, areas, found),
        *_tops(whole),
    ]
    if areas.kind != "whole":
        columns, rows = table_rows(found[:MOST_ROWS])
        rows = [[_short(cell) for cell in row] for row in rows]
        blocks += [
            Heading(f"Where, by {areas.kind}"),
            Table(columns, rows, words=["most changed chip"]),
            Text(_below(areas, found)),
        ]
    blocks += [
        Heading("How sure"),
        Text(_sure(whole)),
        Heading("What was not looked at"),
        Text(_unseen(results, whole, found)),
        Heading("Keep in mind"),
        Items(caveats(results, whole, found)),
        Heading("How it was made"),
        Items(_made(results)),
    ]
    return f"What changed: {names}", [block for block in blocks if block not in (Text(""), Items([]))]


def _dates(results: Results) -> str:
    parts = []
    for word, name in (("from", "before_date"), ("to", "after_date")):
        dates = sorted(str(one) for one in results.chips[name].dropna().unique())
        if dates:
            parts.append(f"{word} {(dates[0] if word == 'from' else dates[-1])}")
    return f"Images {' '.join(parts)}." if parts else ""


def _changed(whole: AreaSummary) -> str:
    told = f"{whole.changed:,} of {whole.looked_at:,} chips that were looked at have changed"
    if whole.changed_share is not None and whole.changed_km2 is not None:
        told += f": {whole.changed_km2:,.2f} km² of ground, {whole.changed_share:.1%} of what was looked at"
    counts = [
        f"{number:,} new {thing}"
        for number, thing in ((whole.new_buildings, "buildings"), (whole.new_roads, "roads"))
        if number is not None
    ]
    return told + (f". Counted chip by chip: {' and '.join(counts)}." if counts else ".")


def _picture(results: Results, areas: Areas, found: Sequence[AreaSummary]) -> list[Block]:
    """The areas by their share, or, where these have no outlines, the chips by their scores."""
    shapes = [one.shape for one in found]
    if any(shape is not None for shape in shapes):
        drawn = svg_map(shapes, [one.changed_share for one in found])
        caption = "Areas by the share of the ground looked at that lies in changed chips."
    else:
        chips = results.chips
        if len(chips) > MAX_SHAPES:
            return []
        scores = chips["changed_score"].to_numpy(dtype=float, na_value=np.nan)
        seen = chips["status"].isin(ANSWERED).to_numpy() & np.isfinite(scores)
        told = [float(score) if is_seen else None for score, is_seen in zip(scores, seen, strict=True)]
        drawn = svg_map(list(results.lonlat), told)
        caption = "Chips by score of change."
    return [Picture(drawn, f"{caption} North is up.")] if drawn else []


def _tops(whole: AreaSummary) -> list[Block]:
    if not whole.top:
        return []
    rows = [
        (
            one.chip_id,
            f"{one.score:.2f}",
            "" if one.lon is None or one.lat is None else f"{one.lat:.5f}, {one.lon:.5f}",
            one.caption,
        )
        for one in whole.top[:MOST_CHIPS]
    ]
    columns = ("most changed chips", "score", "lat, lon", "caption")
    return [Table(columns, rows, words=["caption"])]


def _below(areas: Areas, found: Sequence[AreaSummary]) -> str:
    parts = []
    if len(found) > MOST_ROWS:
        parts.append(f"{len(found) - MOST_ROWS:,} more are in a table as .csv.")
    if areas.empty_count:
        parts.append(f"{areas.empty_count:,} areas have no chip and are left out.")
    parts.append("A chip belongs to the area that its middle lies in.")
    if any(one.looked_at_share is not None for one in found):
        parts.append("Seen: share of the area under chips that were looked at.")
    return " ".join(parts)


def _sure(whole: AreaSummary) -> str:
    if whole.mean_score is None:
        return "The run has no scores of change: the yes/no question was not asked."
    return (
        f"The mean score of change is {whole.mean_score:.2f} (0: surely not, 1: surely). "
        f"{whole.unsure:,} chips ({whole.unsure_share or 0:.0%}) score from {UNSURE[0]} to {UNSURE[1]}: "
        "they lean to neither side."
    )


def _unseen(results: Results, whole: AreaSummary, found: Sequence[AreaSummary]) -> str:
    parts = [f"{len(results.lost_pairs):,} pairs that could not be opened."] if results.lost_pairs else []
    if whole.nodata or whole.failed:
        parts.append(
            f"{whole.nodata:,} chips without enough data, {whole.failed:,} not readable or not answered."
        )
    else:
        parts.append("Every chip of the output was looked at.")
    partly = [one for one in found if one.looked_at_share is not None and one.looked_at_share < 0.5]
    if partly:
        parts.append(f"Of {len(partly):,} areas less than half was seen.")
    outside = next((one for one in found if one.name == OUTSIDE), None)
    if outside:
        parts.append(f"{outside.chips:,} chips lie outside of all areas.")
    return " ".join(parts)


def _made(results: Results) -> list[str]:
    told = []
    for path, run in zip(results.paths, results.runs, strict=True):
        if not run:
            continue
        model, versions = run.get("model", {}), run.get("versions", {})
        inputs = run.get("inputs", {})
        named = [inputs[date]["path"] for date in ("before", "after") if date in inputs]
        source = " and ".join(map(str, named)) or f"the pairs of {run.get('pairs', 'a list')}"
        told.append(
            f"{path.name}: {source}, by deltavlm {versions.get('deltavlm', '')} with {model.get('name')} "
            f"({model.get('fingerprint')})."
        )
    return told


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_CAPTION else text[: LONGEST_CAPTION - 1].rstrip() + "…"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
