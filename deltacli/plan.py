"""What a dry run shows: the pair check, the grid, and where the result would go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from deltacli.console import console, pluralize

if TYPE_CHECKING:
    from deltavlm.geo.grid import ChipGrid
    from deltavlm.geo.pair import PairReader, ReadOptions
    from deltavlm.model.config import DeltaVLMConfig
    from deltavlm.pipeline.analyze import AnalyzeOptions
    from deltavlm.pipeline.pairs import Pair, PairList


def pair_plan(reader: PairReader, grid: ChipGrid, target: str) -> dict[str, Any]:
    """The plan as plain values, ready for JSON."""
    return {
        "dry_run": True,
        "inputs": reader.provenance(),
        "notes": list(reader.notes),
        "gsd_m": reader.gsd_m,
        "overlap_share": reader.alignment.overlap_share,
        "chips": len(grid),
        "rows": grid.rows,
        "cols": grid.cols,
        "chip_px": grid.size,
        "overlap_px": grid.overlap,
        "output": target,
    }


def show_plan(plan: dict[str, Any], *, as_json: bool, on_stdout: bool) -> None:
    """Print the plan: one JSON object, or a line for each thing; on stderr where stdout is for features."""
    if as_json:
        typer.echo(json.dumps(plan, ensure_ascii=False))
        return
    inputs = plan["inputs"]
    lines = [(date, _raster(inputs[date])) for date in ("before", "after")]
    lines += [
        ("pair", _pair(inputs["alignment"])),
        (
            "pixel",
            f"{plan['gsd_m']:.3g} m on the ground" if plan["gsd_m"] else "size on the ground not known",
        ),
        (
            "chips",
            f"{plan['chips']} of {plan['chip_px']} px, in {pluralize(plan['rows'], 'row')} and "
            f"{pluralize(plan['cols'], 'column')}, "
            f"overlap {plan['overlap_px']} px",
        ),
    ]
    if plan.get("limit"):
        lines.append(("limit", f"only the first {pluralize(plan['limit'], 'chip')}"))
    if "questions" in plan:
        lines += [
            ("questions", ", ".join(plan["questions"])),
            ("model", f"{plan['model']} on {plan['device']} (not loaded)"),
        ]
    lines.append(("output", "stdout" if plan["output"] == "-" else plan["output"]))
    lines += plan.get("extras", {}).items()
    for name, text in lines:
        line = f"{name:<10} {text}"
        if on_stdout:
            typer.echo(line)
        else:
            console.info(line)


def pairs_plan(
    found: PairList, read: ReadOptions, run: AnalyzeOptions, numbers: DeltaVLMConfig, target: str
) -> dict[str, Any]:
    """The check of each pair as plain values, ready for JSON."""
    return {
        "dry_run": True,
        "pairs": [_checked(pair, read, run, numbers) for pair in found.pairs],
        "unmatched": {"before": found.unmatched[0], "after": found.unmatched[1]},
        "chip_px": run.chip_px,
        "overlap_px": run.overlap_px,
        "limit": run.limit,
        "output": target,
    }


def _checked(pair: Pair, read: ReadOptions, run: AnalyzeOptions, numbers: DeltaVLMConfig) -> dict[str, Any]:
    from deltavlm.errors import InputError
    from deltavlm.geo.location import redact_credentials
    from deltavlm.pipeline.analyze import scale_warning
    from deltavlm.pipeline.many import opened_pair

    told: dict[str, Any] = {
        "pair_id": pair.id,
        "before": redact_credentials(pair.before),
        "after": redact_credentials(pair.after),
        "before_date": pair.before_date,
        "after_date": pair.after_date,
        "reason": None,
    }
    try:
        with opened_pair(pair, read) as reader:
            warning = scale_warning(reader.gsd_m, numbers.training_gsd_m, run.chip_px / numbers.chip_px)
            return told | {
                "chips": len(reader.chips(run.chip_px, run.overlap_px)),
                "crs": reader.geobox.crs.to_string() if reader.geobox.crs else None,
                "gsd_m": reader.gsd_m,
                "overlap_share": reader.alignment.overlap_share,
                "notes": [*reader.notes, *([warning] if warning else [])],
            }
    except InputError as error:
        return told | {"reason": str(error)}


def show_pairs_plan(plan: dict[str, Any], *, as_json: bool, on_stdout: bool) -> None:
    """Print the plan: one JSON object, or a line for each pair and one for all."""
    if as_json:
        typer.echo(json.dumps(plan, ensure_ascii=False))
        return
    rows = plan["pairs"]
    good = [row for row in rows if not row["reason"]]
    lines = []
    for row in rows:
        if row["reason"]:
            lines.append(f"{row['pair_id']}: FAILS: {row['reason']}")
            continue
        size = f"{row['gsd_m']:.3g} m a pixel" if row["gsd_m"] else "pixels of unknown size"
        notes = "".join(f"; {note}" for note in row["notes"])
        lines.append(
            f"{row['pair_id']}: {pluralize(row['chips'], 'chip')}, {row['crs'] or 'no CRS'}, {size}{notes}"
        )
    limit = f", only the first {plan['limit']}" if plan["limit"] else ""
    lines += [
        f"pairs      {len(good)} of {len(rows)} can be opened",
        f"chips      {sum(row['chips'] for row in good)} of {plan['chip_px']} px, "
        f"overlap {plan['overlap_px']} px{limit}",
        f"questions  {', '.join(plan['questions'])}",
        f"model      {plan['model']} (not loaded)",
        f"output     {'stdout' if plan['output'] == '-' else plan['output']}",
        *(f"{name:<10} {path}" for name, path in plan["extras"].items()),
    ]
    for line in lines:
        if on_stdout:
            typer.echo(line)
        else:
            console.info(line)


def _raster(described: dict[str, Any]) -> str:
    bands = ",".join(map(str, described["bands"]))
    text = (
        f"{described['path']}: {described['width']} x {described['height']} px, "
        f"{described['crs'] or 'no CRS'}, {described['dtype']}, bands {bands}"
    )
    stretch = described["stretch"]
    if stretch:
        low, high = (",".join(f"{value:g}" for value in stretch[edge]) for edge in ("low", "high"))
        text += f", {low} to {high} become 0 to 255"
    return text


def _pair(alignment: dict[str, Any]) -> str:
    share = f"{alignment['overlap_share']:.1%} of before is covered by after"
    if alignment["same_grid"]:
        return f"same grid, {share}"
    return f"after is warped onto the grid of before ({alignment['resampling']}), {share}"
