"""`deltavlm analyze` over many pairs: one output for all, and what is said of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from deltacli.console import console, pluralize
from deltacli.extras import Extras, write_many_changes
from deltacli.metrics import run_metrics
from deltacli.one import kept
from deltacli.outcome import (
    changed_told,
    changes_told,
    chips_counted,
    chips_told,
    places,
    print_changes,
    print_unread,
)
from deltacli.pair_flags import PairFlags
from deltacli.wanted import Wanted
from deltavlm.errors import PartialFailure

if TYPE_CHECKING:
    from deltavlm.geo.pair import ReadOptions
    from deltavlm.model.interface import ModelFacts
    from deltavlm.pipeline.analyze import AnalyzeOptions, Engine, Progress
    from deltavlm.pipeline.many import Run
    from deltavlm.pipeline.pairs import PairList


def analyze_many(many: PairFlags, wanted: Wanted) -> None:
    """Ask the questions about every chip of every pair, and write one output, or one a pair into a folder."""
    from deltavlm.geo.pair import check_options

    target, extras = wanted.out.output or many.target, dict[str, str]()
    run_metrics.start(target, dry_run=wanted.out.dry_run)
    read, run = wanted.check(target, many=True)
    check_options(read)
    if target != "-" and (target.endswith(("/", os.sep)) or Path(target).is_dir()):
        from deltacli.folder import SUFFIX, analyze_into_folder

        wanted.show.refuse(f"-o {target}, which is a folder", "each output in it")
        found, analyzed = many.read(SUFFIX), analyze_into_folder
        extras = wanted.masks.folders()
    else:
        wanted.show.refuse_quicklook()
        wanted.masks.refuse_rasters()
        wanted.check_file(None if target == "-" else Path(target), target)
        found, analyzed = many.read(), _analyze_into_one
        if target != "-":
            beside = wanted.masks.extras(Path(target), wanted.out.layer)
            beside.check(wanted.replaced, ())
            extras = beside.told
    numbers = wanted.check_model()
    if wanted.out.dry_run:
        from deltacli.plan import pairs_plan, show_pairs_plan

        plan = pairs_plan(found, read, run, numbers, target)
        plan |= {"extras": extras}
        plan |= {"questions": [spec.name for spec in wanted.specs], "model": wanted.asked.model}
        show_pairs_plan(plan, as_json=wanted.json_summary, on_stdout=target != "-")
        bad = [row for row in plan["pairs"] if row["reason"]]
        if bad:
            raise PartialFailure(
                f"{len(bad)} of {pluralize(len(found.pairs), 'pair')} cannot be opened, the first because: "
                f"{bad[0]['reason']}"
            )
        return
    analyzed(found, wanted, read, run, target)


def _analyze_into_one(
    found: PairList, wanted: Wanted, read: ReadOptions, run: AnalyzeOptions, target: str
) -> None:
    from contextlib import nullcontext

    from deltavlm.files import lock

    path = None if target == "-" else Path(target)
    extras = wanted.masks.extras(path, wanted.out.layer)
    with (
        nullcontext() if path is None else lock(path),
        extras.locked(),
        wanted.started() as (engine, load_s),
    ):
        run = wanted.batched(run, engine.model)
        if path is None:
            done = _streamed(found, wanted, read, run, engine)
        else:
            done = _written(found, wanted, read, run, engine, path, extras)
    with wanted.show.afterwards(path, (None, None), wanted.rasters.allow_vrt, wanted.replaced):
        print_changes(done.summary, wanted, extras.told)
        print_many(done, found, wanted, engine.model, target, load_s, extras=extras.told)


def _asked(
    found: PairList,
    wanted: Wanted,
    read: ReadOptions,
    run: AnalyzeOptions,
    engine: Engine,
    book: Any,
    beside_data: bool,
) -> Run:
    from deltavlm.pipeline.many import analyze_pairs

    with console.count_progress(len(found.pairs), "pairs", stdout_has_data=beside_data) as tell:

        def watch(so_far: Run, progress: Progress) -> None:
            run_metrics.watch(progress.summary, pairs=so_far)
            tell(len(so_far.outcomes), progress_told(progress, wanted.judged))

        return analyze_pairs(found.pairs, read, engine, wanted.specs, book, run, watch)


def progress_told(progress: Progress, judged: bool) -> str:
    """`120 chips, 3 changed, 20.1 chips/s`."""
    found = f", {progress.changed} changed" if judged else ""
    return f"{pluralize(progress.done, 'chip')}{found}, {progress.chips_per_s:.1f} chips/s"


def _streamed(found: PairList, wanted: Wanted, read: ReadOptions, run: AnalyzeOptions, engine: Engine) -> Run:
    """Features on stdout as answers come; those of --layer pairs at the end."""
    from deltavlm.geo.geobox import LONLAT
    from deltavlm.geo.sinks import open_sink
    from deltavlm.pipeline.many import first_crs
    from deltavlm.pipeline.pair_layers import PAIRS, Ground, PairStream, many_layers, pair_feature
    from deltavlm.pipeline.provenance import pairs_provenance

    model = engine.model
    ground = Ground(None if first_crs(found.pairs, read) is None else LONLAT)
    record = pairs_provenance(found.name, read, model, wanted.specs, run)
    layers = many_layers(wanted.specs)
    with open_sink(None, layers, ground.crs, record, only_layer=wanted.out.layer) as sink:
        done = _asked(
            found, wanted, read, run, engine, PairStream(sink, wanted.specs, model, ground), beside_data=True
        )
        sink.write(PAIRS.name, [pair_feature(outcome, ground) for outcome in done.outcomes.values()])
    _tell_ground(ground)
    return done


def _written(
    found: PairList,
    wanted: Wanted,
    read: ReadOptions,
    run: AnalyzeOptions,
    engine: Engine,
    path: Path,
    extras: Extras,
) -> Run:
    """All into the journal, and from there into the output."""
    from deltavlm.geo.sinks import open_sink
    from deltavlm.pipeline.changes import CHANGES
    from deltavlm.pipeline.journal import journal_path
    from deltavlm.pipeline.pair_journal import open_pair_journal
    from deltavlm.pipeline.pair_layers import (
        PAIRS,
        Ground,
        common_crs,
        many_layers,
        pair_feature,
        write_chips,
    )
    from deltavlm.pipeline.provenance import pairs_provenance, pairs_settings

    specs, out, model = wanted.specs, wanted.out, engine.model
    layers = many_layers(specs, (CHANGES,) if wanted.masks.polygons and extras.polygons is None else ())
    taken = extras.replaceable()
    with open_pair_journal(
        journal_path(path),
        pairs_settings(read, model, run),
        specs,
        found.pairs,
        (run.chip_px, run.overlap_px),
        afresh=not out.resume,
        retry=out.retry_failed,
        limit=run.limit,
        masks=run.masks,
    ) as journal:
        if len(journal):
            console.info(f"{pluralize(len(journal), 'chip')} answered already; going on")
        with kept(journal, journal.lines.path):
            size = min(run.batch_size, journal.batch_size or 4096)
            done = _asked(
                found, wanted, read, replace(run, batch_size=size), engine, journal, beside_data=False
            )
            records = [outcome.record for outcome in done.outcomes.values() if outcome.record is not None]
            ground = Ground(common_crs(records))
            record = pairs_provenance(found.name, read, model, specs, run) | wanted.masks.record()
            with (
                done.summary.stages.timed("write"),
                open_sink(
                    path,
                    layers,
                    ground.crs,
                    record,
                    overwrite=wanted.replaced,
                    only_layer=out.layer,
                ) as sink,
            ):
                write_chips(sink, journal.results(), done.outcomes, specs, model, ground)
                sink.write(PAIRS.name, [pair_feature(outcome, ground) for outcome in done.outcomes.values()])
                if wanted.masks.polygons:
                    done.summary.polygons = write_many_changes(
                        done.outcomes.values(),
                        journal,
                        (run.chip_px, run.overlap_px),
                        wanted,
                        extras,
                        sink,
                        ground,
                        record,
                        overwrite=wanted.replaced or bool(taken),
                    )
        journal.finish()
    if len({one.crs for one in records}) > 1 and path.suffix.lower() in (".gpkg", ".fgb", ".parquet"):
        console.info("the pairs have several CRSs, so the output is in longitude and latitude (EPSG:4326)")
    _tell_ground(ground)
    return done


def _tell_ground(ground: Any) -> None:
    if ground.placeless:
        first = min(ground.placeless)
        console.warning(
            f"{pluralize(len(ground.placeless), 'pair')}, {first} among them, cannot lie beside the others,"
            " so their rows have no polygon; give them a CRS like the others', or -o FOLDER/"
        )


def print_many(
    done: Run,
    found: PairList,
    wanted: Wanted,
    model: ModelFacts | None,
    target: str,
    load_s: float,
    *,
    there: int = 0,
    again: str | None = None,
    extras: Mapping[str, str] | None = None,
) -> None:
    """The end of a run over many pairs; `there`: how many more had their output already; `again`: how to try
    what failed again; `extras`: what lies beside the output, by what it is. Without a model nothing was left
    to ask.

    Raises: PartialFailure if a pair or a chip failed.
    """
    from rasterio.crs import CRS

    summary = done.summary
    run_metrics.watch(summary, pairs=done)
    found_at = []
    for chip in summary.most_changed:
        record = done.outcomes[chip.pair].record
        crs = CRS.from_wkt(record.crs) if record is not None and record.crs else None
        where, points = places([chip], crs)
        found_at.append((chip, where, points[0]))
    rows = [
        (chip.pair, chip.chip_id, f"{x:.5f}", f"{y:.5f}", f"{chip.score:.2f}", chip.caption)
        for chip, _, (x, y) in found_at[: wanted.show.top]
    ]
    console.table("Most changed chips", ("pair", "chip", "lon or x", "lat or y", "score", "caption"), rows)
    print_unread(summary)
    failed = [outcome for outcome in done.outcomes.values() if outcome.record is None]
    console.info(
        f"{pluralize(len(done.outcomes), 'pair')}{f', {len(failed)} failed' if failed else ''}; "
        f"{chips_told(summary, wanted.judged)}; output {'on stdout' if target == '-' else target}"
    )
    failures = done.failures
    if wanted.json_summary:
        told = {
            "pairs": len(done.outcomes),
            **{
                f"pairs_{status}": sum(one.status == status for one in done.outcomes.values())
                for status in ("answered", "partly", "failed")
            },
            "failures": [
                {"pair_id": one.pair.id, "status": one.status, "reason": one.why} for one in failures
            ],
            "unmatched": {"before": found.unmatched[0], "after": found.unmatched[1]},
            **chips_counted(summary),
            **changes_told(summary, wanted, extras or {}),
            "model": model.name if model else None,
            "fingerprint": model.fingerprint if model else None,
            "device": model.device if model else None,
            "batch_size": summary.batch_size,
            "first_failure": failures[0].why if failures else None,
            "most_changed": [changed_told(*one) for one in found_at],
            "load_seconds": round(load_s, 3),
            "outputs_there_already": there,
            "output": target,
        }
        told |= {} if wanted.judged else {"changed": None, "neither_yes_nor_no": None}
        typer.echo(json.dumps(told, ensure_ascii=False))
    if failures:
        parts = [f"{len(failed)} of {pluralize(len(done.outcomes), 'pair')} failed"] if failed else []
        parts += [f"{summary.failed} of {pluralize(summary.chips, 'chip')} failed"] if summary.failed else []
        again = {"-": ""}.get(target, "; --retry-failed tries them again") if again is None else again
        raise PartialFailure(
            f"{' and '.join(parts)}, the first because: {failures[0].pair.id}: {failures[0].why}{again}"
        )
