"""`deltavlm analyze`: two rasters in, answers on the map out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options, values
from deltacli.console import counted, voice
from deltacli.flags import ChipFlags, ModelFlags, OutputFlags, RasterFlags, TalkFlags, grouped
from deltacli.plan import pair_plan, show_plan
from deltavlm.config import shipped
from deltavlm.errors import ConfigError, PartialFailure

if TYPE_CHECKING:
    from deltavlm.geo.pair import PairReader
    from deltavlm.model.interface import ChangeModel
    from deltavlm.pipeline.analyze import AnalyzeOptions, Progress, Summary
    from deltavlm.tasks.questions import QuestionSpec

_WRITTEN_AT_ONCE = 1024  # chips, from the journal to the output


@grouped
def analyze(
    before: options.Before,
    after: options.After,
    *,
    out: OutputFlags,
    questions: Annotated[
        Path | None,
        options.flag(
            *("--questions", "-Q"),
            panel=options.ASK,
            metavar="FILE",
            help="YAML list of questions, instead of the built-in caption, change, count, location.",
        ),
    ] = None,
    ask: Annotated[
        str | None,
        options.flag("--ask", panel=options.ASK, metavar="NAME,NAME", help="Only these of the question set."),
    ] = None,
    asked: ModelFlags,
    cascade: options.Cascade = False,
    batch_size: options.BatchSize = "auto",
    chips: ChipFlags,
    rasters: RasterFlags,
    talk: TalkFlags,
    json_summary: options.Json = False,
) -> None:
    """Say chip by chip what changed from BEFORE to AFTER, and write the answers as a map.

    Without -o the result is <AFTER's stem>_changes.gpkg in the current folder.
    """
    from deltavlm.tasks.questions import load_questions, pick_questions

    specs = load_questions(questions or shipped("questions.yaml"))
    if ask is not None:
        specs = pick_questions(specs, [name.strip() for name in ask.split(",")])
    analyze_chips(
        (before, after),
        specs,
        out,
        asked,
        chips,
        rasters,
        cascade=cascade,
        batch_size=batch_size,
        json_summary=json_summary,
    )


def analyze_chips(
    places: tuple[str, str],
    specs: Sequence[QuestionSpec],
    out: OutputFlags,
    asked: ModelFlags,
    chips: ChipFlags,
    rasters: RasterFlags,
    *,
    cascade: bool,
    batch_size: str,
    json_summary: bool,
) -> None:
    """Ask the questions about every chip of the pair and write the layers; `ask --all-chips` comes here."""
    before, after = (
        values.location_of(name, place) for name, place in zip(("BEFORE", "AFTER"), places, strict=True)
    )
    target = out.output or values.default_output(after, "_changes.gpkg")
    if target == "-" and json_summary:
        raise typer.BadParameter("stdout is taken by the features of -o -", param_hint="--json")
    overlap_px, wanted_batch = chips.overlap_px, values.batch_size_of(batch_size)
    read_options = rasters.read_options(chips.bbox, chips.bbox_crs, chips.aoi)
    running = asked.running()
    judged = any(spec.task == "change" for spec in specs)
    if cascade and not judged:
        raise ConfigError("--cascade needs the yes/no question; add an entry 'task: change', or leave it out")

    from deltavlm.geo.pair import RasterPair, open_pair
    from deltavlm.geo.sinks import check_output
    from deltavlm.locks import locked
    from deltavlm.model.folder import find_folder, read_config
    from deltavlm.pipeline import analyze as pipeline
    from deltavlm.pipeline.journal import journal_path

    path = None if target == "-" else Path(target)
    if path is not None:
        check_output(path, out.overwrite or out.retry_failed)
    if out.retry_failed and (path is None or not journal_path(path).exists()):
        raise ConfigError(f"--retry-failed: nothing is known of a run into {target} with chips that failed")
    numbers = running.applied(read_config(find_folder(asked.model)))
    asked.check_place()
    run = pipeline.AnalyzeOptions(
        chip_px=chips.chip_size,
        overlap_px=overlap_px,
        max_nodata=chips.max_nodata,
        limit=chips.limit,
        on_error=chips.on_error,
        cascade=cascade,
    )
    with open_pair(RasterPair(before, after), read_options) as reader:
        tell_notes(reader)
        grid = reader.grid(chips.chip_size, overlap_px)
        if out.dry_run:
            warn_of_scale(reader, numbers.training_gsd_m, chips.chip_size / numbers.chip_px)
            plan = pair_plan(reader, grid, target)
            plan |= {
                "limit": chips.limit,
                "questions": [spec.name for spec in specs],
                "model": asked.model,
                "device": running.device,
            }
            show_plan(plan, as_json=json_summary, on_stdout=path is not None)
            return
        with nullcontext() if path is None else locked(path):
            model, load_s = asked.load()
            warn_of_scale(reader, model.training_gsd_m, chips.chip_size / model.chip_px)
            run = replace(run, batch_size=wanted_batch or model.auto_batch_size())
            summary = _answer(reader, model, specs, run, out, path, judged)
        _tell_outcome(summary, reader, target, judged)
        if json_summary:
            outcome = _outcome(summary, reader, model) | {"load_seconds": round(load_s, 3), "output": target}
            outcome |= {} if judged else {"changed": None, "neither_yes_nor_no": None}
            typer.echo(json.dumps(outcome, ensure_ascii=False))
    if summary.failed:
        raise PartialFailure(
            f"{summary.failed} of {summary.chips} chips failed, the first because: {summary.first_failure}"
            f"{'' if path is None else '; --retry-failed asks them again'}"
        )


def _answer(
    reader: PairReader,
    model: ChangeModel,
    specs: Sequence[QuestionSpec],
    run: AnalyzeOptions,
    out: OutputFlags,
    path: Path | None,
    judged: bool,
) -> Summary:
    """Ask what is left to ask, and write the output: to stdout as answers come, to a file at the end."""
    from deltavlm.geo.sinks import open_sink
    from deltavlm.pipeline.analyze import Book
    from deltavlm.pipeline.analyze import analyze as asked_of
    from deltavlm.pipeline.journal import journal_path, open_journal
    from deltavlm.pipeline.layers import LOCATIONS, Origin, Stream, chips_layer, write_results
    from deltavlm.pipeline.provenance import provenance, settings

    grid = reader.grid(run.chip_px, run.overlap_px)
    total = min(len(grid), run.limit or len(grid))
    origin, layers = Origin.of(reader, model), (chips_layer(specs), LOCATIONS)
    record = provenance(reader, model, specs, run)

    def fill(book: Book, options: AnalyzeOptions) -> Summary:
        with voice.counting(total, "chips", beside_data=path is None) as tell:

            def watch(progress: Progress) -> None:
                found = f"{progress.changed} changed, " if judged else ""
                tell(progress.done, f"{found}{progress.chips_per_s:.1f} chips/s")

            return asked_of(reader, model, specs, book, options, watch)

    if path is None:
        with open_sink(path, layers, reader.crs, record, only_layer=out.layer) as sink:
            return fill(Stream(sink, specs, origin), run)
    with open_journal(
        journal_path(path),
        settings(reader, model, run),
        specs,
        grid,
        afresh=not out.resume,
        retry=out.retry_failed,
        limit=run.limit,
    ) as journal:
        known = sum(1 for _ in journal.earlier())
        if known:
            voice.say(f"{counted(known, 'chip')} of {total} answered already; going on")
        try:
            summary = fill(journal, replace(run, batch_size=min(run.batch_size, journal.batch_size or 4096)))
        except BaseException:
            if len(journal):
                voice.say(f"{counted(len(journal), 'chip')} kept in {journal.path}; the same command goes on")
            raise
        replaced = out.overwrite or out.retry_failed
        with open_sink(path, layers, reader.crs, record, overwrite=replaced, only_layer=out.layer) as sink:
            results = journal.results()
            while part := list(islice(results, _WRITTEN_AT_ONCE)):
                write_results(sink, part, specs, origin)
        journal.finish()
    return summary


def tell_notes(reader: PairReader) -> None:
    """What was found of the pair, and how large a pixel is."""
    for note in reader.notes:
        (voice.warn if note in reader.warnings else voice.say)(note)
    if reader.gsd_m is not None:
        voice.say(f"a pixel is {reader.gsd_m:.3g} m on the ground")


def warn_of_scale(reader: PairReader, training_gsd_m: float, shrink: float) -> None:
    """Warn where the model, which sees pictures `shrink` times smaller, sees ground at a scale far from its
    training's."""
    from deltavlm.pipeline.analyze import scale_warning

    warning = scale_warning(reader.gsd_m, training_gsd_m, shrink)
    if warning:
        voice.warn(warning)


def _places(summary: Summary, reader: PairReader) -> tuple[str, list[tuple[float, float]]]:
    """Where the most changed chips are, and in what; without a way to lon/lat, as the output has it."""
    from deltavlm.geo.alignment import lonlat

    xs, ys = [chip.x for chip in summary.most_changed], [chip.y for chip in summary.most_changed]
    known = lonlat(reader.crs, xs, ys)
    if known is not None:
        return "lon/lat", known
    return ("x/y px" if reader.crs is None else "x/y"), list(zip(xs, ys, strict=True))


def _tell_outcome(summary: Summary, reader: PairReader, target: str, judged: bool) -> None:
    """judged: whether the yes/no question was asked."""
    where, places = _places(summary, reader)
    digits = 5 if where == "lon/lat" else 0
    rows = [
        (chip.chip_id, f"{x:.{digits}f}, {y:.{digits}f}", f"{chip.score:.2f}", chip.caption)
        for chip, (x, y) in zip(summary.most_changed, places, strict=True)
    ]
    voice.table("Most changed chips", ("chip", where, "score", "caption"), rows)
    parts = [f"{summary.changed} changed"] if judged else []
    parts += [f"{count} {status}" for status, count in summary.statuses.items() if status != "answered"]
    if summary.unread:
        voice.warn(
            f"the model said neither yes nor no to whether {counted(summary.unread, 'chip')} changed; the"
            f" answers as written are in answer_change"
        )
    voice.say(
        f"{': '.join(filter(None, [counted(summary.chips, 'chip'), ', '.join(parts)]))}; "
        f"{summary.seconds:.1f} s, {summary.chips_per_s:.1f} chips/s; "
        f"output {'on stdout' if target == '-' else target}"
    )


def _outcome(summary: Summary, reader: PairReader, model: ChangeModel) -> dict[str, Any]:
    """The summary as one JSON object."""
    where, places = _places(summary, reader)
    x_name, y_name = ("lon", "lat") if where == "lon/lat" else ("x", "y")
    return {
        "chips": summary.chips,
        **{
            status: summary.statuses[status]
            for status in ("answered", "cascaded", "nodata", "unreadable", "error")
        },
        "earlier": summary.earlier,
        "changed": summary.changed,
        "neither_yes_nor_no": summary.unread,
        "seconds": round(summary.seconds, 3),
        "chips_per_s": round(summary.chips_per_s, 3),
        "gsd_m": reader.gsd_m,
        "overlap_share": reader.overlap_share,
        "notes": list(reader.notes),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "device": model.device,
        "batch_size": summary.batch_size,
        "first_failure": summary.first_failure or None,
        "most_changed": [
            {"chip_id": chip.chip_id, "score": chip.score, x_name: x, y_name: y, "caption": chip.caption}
            for chip, (x, y) in zip(summary.most_changed, places, strict=True)
        ],
    }
