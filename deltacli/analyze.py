"""`deltavlm analyze`: two rasters in, answers on the map out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import options, parsing
from deltacli.console import console, print_notes, warn_about_scale
from deltacli.engine_flags import EngineFlags
from deltacli.flag_groups import ChipFlags, CommonFlags, ModelFlags, OutputFlags, RasterFlags, grouped
from deltacli.mask_flags import MaskFlags
from deltacli.metrics import run_metrics
from deltacli.one import answered_pair
from deltacli.outcome import changes_told, outcome, print_changes, print_outcome
from deltacli.pair_flags import PairFlags
from deltacli.pairs import analyze_many
from deltacli.plan import pair_plan, show_plan
from deltacli.show_flags import ShowFlags
from deltacli.terminal_images import show_thumbnails
from deltacli.wanted import Wanted
from deltavlm.config import shipped_config
from deltavlm.errors import ConfigError, PartialFailure

if TYPE_CHECKING:
    from deltavlm.pipeline.analyze import Progress


@grouped
def analyze(
    before: Annotated[
        str | None,
        typer.Argument(metavar="BEFORE", help="The earlier image: path, https://, s3:// or /vsi..."),
    ] = None,
    after: Annotated[
        str | None, typer.Argument(metavar="AFTER", help="The later image of the same place.")
    ] = None,
    *,
    many: PairFlags,
    out: OutputFlags,
    show: ShowFlags,
    questions: Annotated[
        Path | None,
        options.flag(
            *("--questions", "-Q"),
            panel=options.MODEL,
            metavar="FILE",
            help="YAML list of questions, instead of the built-in caption, change, count, location.",
        ),
    ] = None,
    ask: Annotated[
        str | None,
        options.flag(
            "--ask", panel=options.MODEL, metavar="NAME,NAME", help="Only these of the question set."
        ),
    ] = None,
    asked: ModelFlags,
    where: EngineFlags,
    drawn: MaskFlags,
    cascade: options.Cascade = False,
    batch_size: options.BatchSize = "auto",
    chips: ChipFlags,
    rasters: RasterFlags,
    common: CommonFlags,
    metrics: options.Metrics = None,
    json_summary: options.Json = False,
) -> None:
    """Say chip by chip what changed from BEFORE to AFTER, and write the answers as a map.

    Without -o the result is <AFTER's stem>_changes.gpkg in the current folder. Many pairs, by a list or from
    two folders, go into one output, or with -o FOLDER/ into one each.
    """
    from deltavlm.tasks.questions import load_questions, pick_questions

    specs = load_questions(questions or shipped_config("questions.yaml"))
    if ask is not None:
        specs = pick_questions(specs, [name.strip() for name in ask.split(",")])
    wanted = Wanted(
        specs=specs,
        out=out,
        asked=asked,
        chips=chips,
        rasters=rasters,
        cascade=cascade,
        batch_size=batch_size,
        json_summary=json_summary,
        where=where,
        show=show,
        masks=drawn,
    )
    places = many.places(before, after)
    if places is None:
        analyze_many(many, wanted)
    else:
        analyze_chips(places, wanted)


def analyze_chips(places: tuple[str, str], wanted: Wanted) -> None:
    """Ask the questions about every chip of the pair and write the layers; `ask --all-chips` comes here."""
    before, after = (
        parsing.check_location(name, place) for name, place in zip(("BEFORE", "AFTER"), places, strict=True)
    )
    out, chip_px, judged = wanted.out, wanted.chips.chip_size, wanted.judged
    target = out.output or parsing.default_output(after, "_changes.gpkg")
    if out.layer == "pairs":
        raise ConfigError("--layer pairs is for many pairs; choose chips or locations")
    run_metrics.start(target, dry_run=out.dry_run)
    read, run = wanted.check(target)

    from deltavlm.files import lock
    from deltavlm.geo.pair import RasterPair, open_pair

    path = None if target == "-" else Path(target)
    wanted.check_file(path, target)
    extras = wanted.masks.extras(path, out.layer)
    extras.check(wanted.replaced, (before, after))
    numbers = wanted.check_model()
    with open_pair(RasterPair(before, after), read) as reader:
        print_notes(reader)
        grid = reader.chips(chip_px, run.overlap_px)
        if out.dry_run:
            warn_about_scale(reader, numbers.training_gsd_m, chip_px / numbers.chip_px)
            plan = pair_plan(reader, grid, target) | {"extras": extras.told}
            plan |= {
                "limit": run.limit,
                "questions": [spec.name for spec in wanted.specs],
                "model": wanted.asked.model,
                "device": wanted.asked.device,
            }
            show_plan(plan, as_json=wanted.json_summary, on_stdout=path is not None)
            return
        with (
            nullcontext() if path is None else lock(path),
            extras.locked(),
            wanted.started() as (engine, load_s),
        ):
            model = engine.model
            warn_about_scale(reader, model.training_gsd_m, chip_px / model.chip_px)
            total = min(len(grid), run.limit or len(grid))
            with console.count_progress(total, "chips", stdout_has_data=path is None) as tell:

                def watch(progress: Progress) -> None:
                    run_metrics.watch(progress.summary)
                    found = f"{progress.changed} changed, " if judged else ""
                    tell(progress.done, f"{found}{progress.chips_per_s:.1f} chips/s")

                run = wanted.batched(run, model)
                summary = answered_pair(reader, engine, wanted, run, path, watch, extras=extras)
        run_metrics.watch(summary)
        print_outcome(summary, reader, target, judged, wanted.show.top)
        print_changes(summary, wanted, extras.told)
        show_thumbnails(reader, chip_px, summary.most_changed[: wanted.show.top], wanted.show.thumbnails)
        if wanted.json_summary:
            told = outcome(summary, reader, model) | {"load_seconds": round(load_s, 3), "output": target}
            told |= changes_told(summary, wanted, extras.told)
            told |= {} if judged else {"changed": None, "neither_yes_nor_no": None}
            typer.echo(json.dumps(told, ensure_ascii=False))
    with wanted.show.afterwards(path, (before, after), wanted.rasters.allow_vrt, wanted.replaced):
        if summary.failed:
            raise PartialFailure(
                f"{summary.failed} of {summary.chips} chips failed, the first because: "
                f"{summary.first_failure}{'' if path is None else '; --retry-failed asks them again'}"
            )
