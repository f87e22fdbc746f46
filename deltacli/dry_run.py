"""Dry run of a job: check of each pair, chip grid, model and output, as lines or as JSON."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from deltacli.console import console, duration, with_flags
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltacli.analyze_flags import RunFlags
    from deltavlm.pipeline.estimate import Estimate
    from deltavlm.pipeline.job import AnalyzeJob
    from deltavlm.pipeline.plan import PairPlan

__all__ = ["plan_dict", "print_dry_run", "print_plan"]

Line = tuple[str, str]  # name and text

MAX_WEIGHTS = 2e9  # bytes of weights of a model that is loaded for an estimate


def print_dry_run(job: AnalyzeJob, plans: Sequence[PairPlan], flags: RunFlags, *, as_json: bool) -> None:
    """Print what a run of the job would do, and what it would take, by a sample of it that writes nothing."""
    from deltavlm.pipeline.outputs import OutputFiles

    extras = {name: str(path) for name, path in OutputFiles.of(job.output).by_name().items()}
    target, limit = str(job.output.path or "-"), job.options.limit
    questions = [spec.name for spec in job.questions]
    model = {"model": flags.model.model, "device": flags.model.device}
    evidence = {} if flags.model.evidence_name is None else {"evidence": flags.model.evidence_name}
    if job.is_single:
        _print_notes(plans[0])
    estimate = _estimate(job, plans, flags)
    memory = _memory(job, plans, flags) if isinstance(estimate, str) else {}
    if as_json:
        pairs = plan_dict(plans[0]) if job.is_single else _list_dict(job, plans)
        values = {
            "output": target,
            "extras": extras,
            "limit": limit,
            "questions": questions,
            **model,
            **evidence,
        }
        unmeasured: dict[str, Any] = {"unmeasured": estimate, **memory}
        values["estimate"] = unmeasured if isinstance(estimate, str) else asdict(estimate)
        typer.echo(json.dumps({"dry_run": True, **pairs, **values}, ensure_ascii=False))
        return
    lines = _pair_lines(plans[0]) if job.is_single else _list_lines(job, plans)
    if limit:
        lines.append(("limit", f"only the first {pluralize(limit, 'chip')}"))
    lines += [
        ("questions", ", ".join(questions)),
        ("model", f"{model['model']} on {model['device']}"),
        *evidence.items(),
        ("output", "stdout" if target == "-" else target),
        *extras.items(),
        *(
            [("time", estimate), *_memory_lines(memory)]
            if isinstance(estimate, str)
            else _estimate_lines(estimate)
        ),
    ]
    _print_lines(lines, on_stdout=target != "-")


def _estimate(job: AnalyzeJob, plans: Sequence[PairPlan], flags: RunFlags) -> Estimate | str:
    """Estimate of the run, or why there is none."""
    from deltavlm.model.kinds import kind_of
    from deltavlm.pipeline.estimate import estimate_run

    chips = {plan.pair.id: plan.chips for plan in plans if plan.reason is None}
    if not sum(chips.values()):
        return "not estimated: there is nothing to ask about"
    if flags.engine.engine != "local":
        return "not estimated: a cluster is not started for it"
    if "openai" in map(kind_of, flags.model.names):
        return "not estimated: a server is asked nothing for it; --limit 1 measures a chip"
    specs = flags.model.read_spec(), flags.model.read_evidence_spec()
    size = sum(spec.weights_bytes for spec in specs if spec is not None)
    if size > MAX_WEIGHTS:
        return (
            f"not estimated: {size / 1e9:.0f} GB of weights are not loaded for it; --limit 1 measures a chip"
        )
    logger = logging.getLogger("deltavlm")
    level = logger.level
    start = time.monotonic()
    any_scale = job.options.any_scale
    with flags.engine.start(flags.model, flags.rasters, any_scale=any_scale) as engine:
        load_s = time.monotonic() - start
        try:
            logger.setLevel(logging.ERROR)  # the warnings about the pairs have been printed
            return estimate_run(job, engine, chips, load_s)
        finally:
            logger.setLevel(level)


def _memory(job: AnalyzeJob, plans: Sequence[PairPlan], flags: RunFlags) -> dict[str, int | None]:
    """Memory that the models will take together, what must be free for it, and what is free, in bytes; empty
    where it is not known before they are loaded, or is that of other machines."""
    from deltavlm.model.kinds import kind_of, read_footprint
    from deltavlm.model.memory import free_memory

    if flags.engine.engine != "local" or any(map(kind_of, flags.model.names)):
        return {}
    options = flags.model.runtime_options()
    read = [read_footprint(name, options) for name in flags.model.names]
    footprints = [footprint for footprint in read if footprint is not None]
    if not footprints:
        return {}
    chips = sum(plan.chips for plan in plans if plan.reason is None)
    pairs = min(job.options.batch_size or chips, job.options.limit or chips)
    peak = sum(each.peak(pairs) - each.libraries for each in footprints) + footprints[0].libraries
    return {
        "memory_bytes": peak,
        "needed_bytes": sum(each.needed for each in footprints),
        "free_bytes": free_memory(footprints[0].device),
    }


def _memory_lines(memory: dict[str, int | None]) -> list[Line]:
    peak, needed, free = (memory.get(key) for key in ("memory_bytes", "needed_bytes", "free_bytes"))
    if peak is None or needed is None:
        return []
    text = f"about {_size_text(peak)}, by the sizes of its weights"
    if free is not None:
        refused = " this run would be refused" if needed > free else ""
        text += f"; {_size_text(free)} free{';' if refused else ''}{refused}"
    return [("memory", text)]


def _estimate_lines(estimate: Estimate) -> list[Line]:
    sample = f"{estimate.chips_per_s:.3g} chips/s in a sample of {pluralize(estimate.sample_chips, 'chip')}"
    output, journal = (_size_text(size) for size in (estimate.output_bytes, estimate.journal_bytes))
    return [
        ("time", f"about {duration(estimate.seconds)}: {sample}"),
        ("memory", f"about {_size_text(estimate.memory_bytes)}"),
        ("disk", f"about {output}, and {journal} while it runs"),
    ]


def _size_text(size: float) -> str:
    """`1_234_567` -> `1.2 MB`."""
    power = next((power for power in (0, 1, 2) if size < 999.5 * 1000**power), 3)
    return f"{size / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"


def _print_notes(plan: PairPlan) -> None:
    for note in plan.notes:
        (console.warning if note in plan.warnings else console.info)(note)
    if plan.gsd_m is not None:
        console.info(f"pixel size {plan.gsd_m:.3g} m")


def print_plan(plan: PairPlan, target: str) -> None:
    """Print the plan of one pair, and where the output goes."""
    output = ("output", "stdout" if target == "-" else target)
    _print_lines([*_pair_lines(plan), output], on_stdout=target != "-")


def _print_lines(lines: Iterable[Line], *, on_stdout: bool) -> None:
    """Print to stdout, or to stderr where stdout is for features."""
    for name, text in lines:
        line = f"{name:<10} {text}" if name else text
        if on_stdout:
            typer.echo(with_flags(line))
        else:
            console.info(line)


def plan_dict(plan: PairPlan) -> dict[str, Any]:
    """Plan of a pair as plain values, ready for JSON."""
    return {
        "inputs": plan.inputs,
        "notes": list(plan.notes),
        "gsd_m": plan.gsd_m,
        "overlap_share": plan.overlap_share,
        "chips": plan.chips,
        "rows": plan.rows,
        "cols": plan.cols,
        "chip_px": plan.chip_px,
        "overlap_px": plan.overlap_px,
    }


def _list_dict(job: AnalyzeJob, plans: Sequence[PairPlan]) -> dict[str, Any]:
    return {
        "pairs": [_row_dict(plan) for plan in plans],
        "unmatched": {"before": job.pairs.unmatched[0], "after": job.pairs.unmatched[1]},
        "chip_px": job.options.chip_px,
        "overlap_px": job.options.grid[1],
    }


def _row_dict(plan: PairPlan) -> dict[str, Any]:
    from deltavlm.messages import redact_address

    row: dict[str, Any] = {
        "pair_id": plan.pair.id,
        "before": redact_address(plan.pair.before),
        "after": redact_address(plan.pair.after),
        "before_date": plan.pair.before_date,
        "after_date": plan.pair.after_date,
        "reason": plan.reason,
    }
    if plan.reason is not None:
        return row
    return row | {
        "chips": plan.chips,
        "crs": plan.crs,
        "gsd_m": plan.gsd_m,
        "overlap_share": plan.overlap_share,
        "notes": list(plan.notes),
    }


def _list_lines(job: AnalyzeJob, plans: Sequence[PairPlan]) -> list[Line]:
    opened = [plan for plan in plans if plan.reason is None]
    chips = sum(plan.chips for plan in opened)
    size = f"{job.options.chip_px} px, overlap {job.options.grid[1]} px"
    return [
        *(("", _row_text(plan)) for plan in plans),
        ("pairs", f"{len(opened)} of {len(plans)} can be opened"),
        ("chips", f"{chips} of {size}"),
    ]


def _row_text(plan: PairPlan) -> str:
    if plan.reason is not None:
        return f"{plan.pair.id}: FAILS: {plan.reason}"
    size = f"{plan.gsd_m:.3g} m a pixel" if plan.gsd_m else "pixels of unknown size"
    notes = "".join(f"; {note}" for note in plan.notes)
    return f"{plan.pair.id}: {pluralize(plan.chips, 'chip')}, {plan.crs or 'no CRS'}, {size}{notes}"


def _pair_lines(plan: PairPlan) -> list[Line]:
    rows, cols = pluralize(plan.rows, "row"), pluralize(plan.cols, "column")
    return [
        ("before", _raster_text(plan.inputs["before"])),
        ("after", _raster_text(plan.inputs["after"])),
        ("pair", _alignment_text(plan.inputs["alignment"], plan.inputs["registration"])),
        ("pixel", f"{plan.gsd_m:.3g} m on the ground" if plan.gsd_m else "ground size not known"),
        ("chips", f"{plan.chips} of {plan.chip_px} px, in {rows} and {cols}, overlap {plan.overlap_px} px"),
    ]


def _raster_text(raster: dict[str, Any]) -> str:
    bands = ",".join(map(str, raster["bands"]))
    text = (
        f"{raster['path']}: {raster['width']} x {raster['height']} px, "
        f"{raster['crs'] or 'no CRS'}, {raster['dtype']}, bands {bands}"
    )
    stretch = raster["stretch"]
    if stretch:
        low, high = (",".join(f"{value:g}" for value in stretch[edge]) for edge in ("low", "high"))
        text += f", {low} to {high} scaled to 0 to 255"
    return text


def _alignment_text(alignment: dict[str, Any], shift: dict[str, Any]) -> str:
    share = f"{alignment['overlap_share']:.1%} of before is covered by after"
    if shift["corrected"]:
        share += f"; after is moved by {shift['shift_px']:.1f} px"
    if alignment["same_grid"]:
        return f"same grid, {share}"
    return f"after is warped onto the grid of before ({alignment['resampling']}), {share}"
