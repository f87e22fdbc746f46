"""`deltavlm analyze --pairs LIST -o FOLDER/`: a GeoPackage a pair, as a run over it alone writes it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deltacli.console import console, pluralize
from deltacli.metrics import run_metrics
from deltacli.one import answered_pair
from deltacli.outcome import print_changes
from deltacli.pairs import print_many, progress_told
from deltacli.wanted import Wanted
from deltavlm.errors import ConfigError, InputError, OutputError

if TYPE_CHECKING:
    from deltavlm.geo.pair import ReadOptions
    from deltavlm.pipeline.analyze import AnalyzeOptions, Engine, Progress
    from deltavlm.pipeline.many import Run
    from deltavlm.pipeline.pairs import Pair, PairList

SUFFIX = ".gpkg"


def analyze_into_folder(
    found: PairList, wanted: Wanted, read: ReadOptions, run: AnalyzeOptions, target: str
) -> None:
    """An output for each pair; those that are there are left as they are, unless they are to be replaced."""
    from deltavlm.pipeline.journal import journal_path
    from deltavlm.pipeline.many import Run
    from deltavlm.pipeline.pairs import file_names

    if wanted.out.layer == "pairs":
        raise ConfigError("--layer pairs is for one output; choose chips or locations")
    folder = Path(target)
    paths = {one: folder / name for one, name in file_names(found.pairs, SUFFIX).items()}
    left = [pair for pair in found.pairs if not _is_done(paths[pair.id], wanted)]
    there = len(found.pairs) - len(left)
    if there:
        console.info(f"{pluralize(there, 'output')} in {folder} there already; --overwrite makes them anew")
    to_ask = {pair.id for pair in left}
    holes = [id_ for id_, path in paths.items() if id_ not in to_ask and journal_path(path).exists()]
    if holes:
        some = f"{', '.join(holes[:3])}{', ...' if len(holes) > 3 else ''}"
        console.warning(
            f"chips failed in {pluralize(len(holes), 'output')} ({some}); --retry-failed asks them again"
        )
    rasters = wanted.masks.folders()
    for one in (folder, *map(Path, rasters.values())):
        try:
            one.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{one}: cannot be made ({error.strerror}); choose another folder") from error
    if not left:
        print_many(Run(), found, wanted, None, target, 0.0, there=there)
        return
    with wanted.started() as (engine, load_s):
        model = engine.model
        done = _each(left, paths, wanted, read, wanted.batched(run, model), engine)
    for outcome in done.failures:
        console.info(f"failed: {outcome.pair.id}: {outcome.why}", pair=outcome.pair.id, status=outcome.status)
    again = "; the same command tries failed pairs again, --retry-failed chips too"
    print_changes(done.summary, wanted, rasters)
    print_many(done, found, wanted, model, target, load_s, there=there, again=again, extras=rasters)


def _is_done(path: Path, wanted: Wanted) -> bool:
    """Whether the output is there and stays; with --retry-failed, one with failed chips is made again."""
    from deltavlm.pipeline.journal import journal_path

    again = wanted.out.overwrite or (wanted.out.retry_failed and journal_path(path).exists())
    return path.exists() and not again


def _each(
    pairs: Sequence[Pair],
    paths: dict[str, Path],
    wanted: Wanted,
    read: ReadOptions,
    run: AnalyzeOptions,
    engine: Engine,
) -> Run:
    from deltavlm.files import lock
    from deltavlm.geo.sinks import check_output
    from deltavlm.pipeline.many import Outcome, PairRecord, Run, logged_notes, opened_pair

    done, told, started = Run(), set[str](), time.monotonic()
    with console.count_progress(len(pairs), "pairs") as tell:
        for pair in pairs:
            seen = done.summary.chips
            if run.limit is not None and seen >= run.limit:
                break
            outcome = done.outcomes[pair.id] = Outcome(pair)

            def watch(progress: Progress) -> None:
                run_metrics.watch(done.summary, progress.summary, pairs=done)
                chips, changed = done.summary.chips + progress.done, done.summary.changed + progress.changed
                speed = (done.summary.chips - done.summary.earlier + progress.done) / (
                    time.monotonic() - started
                )
                so_far = replace(progress, done=chips, changed=changed, chips_per_s=speed)
                tell(len(done.outcomes) - 1, progress_told(so_far, wanted.judged))

            try:
                path = paths[pair.id]
                extras = wanted.masks.extras(path, wanted.out.layer, path.stem)
                check_output(path, wanted.replaced)
                extras.check(wanted.replaced, (pair.before, pair.after))
                with lock(path), extras.locked(), opened_pair(pair, read) as reader:
                    logged_notes(pair, reader, engine.model, run, told)
                    part = run if run.limit is None else replace(run, limit=run.limit - seen)
                    summary = answered_pair(reader, engine, wanted, part, path, watch, pair, extras)
                    grid = reader.chips(run.chip_px, run.overlap_px)
                    outcome.record = PairRecord.of(pair, reader, grid)
            except InputError as error:
                if run.on_error == "fail":
                    raise
                outcome.reason = str(error)
                console.warning(f"pair {pair.id} failed: {error}", pair=pair.id)
                continue
            outcome.chips, outcome.changed, outcome.failed = summary.chips, summary.changed, summary.failed
            outcome.reason = summary.first_failure
            done.summary.include(summary, pair.id)
            run_metrics.watch(done.summary, pairs=done)
    done.summary.seconds = time.monotonic() - started
    return done
