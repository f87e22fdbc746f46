"""Run a job: chips are analyzed into a journal, and the journal becomes the output."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deltavlm.errors import InputError, OutputError
from deltavlm.geo.geobox import LONLAT, GeoBox
from deltavlm.geo.pair import PairReader, check_options
from deltavlm.geo.sinks import is_in_lonlat, open_sink
from deltavlm.messages import pluralize
from deltavlm.pipeline.analyze import analyze_chips
from deltavlm.pipeline.engine import Engine
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.file import journal_path
from deltavlm.pipeline.journal.store import Journal, check_journal_pair, open_journal
from deltavlm.pipeline.ordered_map import map_ordered
from deltavlm.pipeline.output_layers import Output, warn_unplaced, write_layers
from deltavlm.pipeline.outputs import (
    OutputFiles,
    check_format,
    check_format_of_list,
    check_outputs,
    is_complete,
    layers_of_job,
    output_paths,
)
from deltavlm.pipeline.pair_record import PairResult
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.provenance import journal_settings
from deltavlm.pipeline.reading import first_crs, open_listed_pair
from deltavlm.pipeline.run_result import RunResult
from deltavlm.pipeline.writer import OutputCRS, StreamStore

__all__ = ["RunHooks", "run"]

logger = logging.getLogger(__name__)

_MAX_BATCH_SIZE = 4096
_MAX_OPEN = 8  # pairs that are opened at a time, to check the format of the output


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True)
class RunHooks:
    """Callbacks of a run: `on_progress` after each batch, `notify` with messages for the user."""

    on_progress: Callable[[RunResult], None] = _ignore
    notify: Callable[[str], None] = _ignore


def run(job: AnalyzeJob, engine: AbstractContextManager[Engine], hooks: RunHooks | None = None) -> RunResult:
    """Run a job and write its output: one file, one file for each pair, or a stream on standard output.

    `engine` is entered, and its model loaded, after all checks, and left at the end. Results are kept in a
    journal next to the output, from which the same job resumes.

    Raises:
        InputError: a single pair cannot be opened; or one of several, with `on_error="fail"`.
        OutputError: the output exists, cannot be written, is being written by another process, or has a
            journal of a run with other settings.
        ConfigError: there is nothing to retry, or the model has no mask head and masks are needed.
        WriteError: writing fails, as on a full disk; the same job resumes.
        RasterError, ModelError: a chip fails, with `on_error="fail"`.
    """
    hooks = hooks or RunHooks()
    check_options(job.read)
    check_outputs(job)
    if job.output.per_pair:
        result = _run_folder(job, engine, hooks)
        _notify_unknown_shift(result, hooks)
        return result
    files = OutputFiles.of(job.output)
    result = RunResult(
        is_single=job.is_single, output=files.path, files=files.by_name(), total=len(job.pairs.pairs)
    )
    with ExitStack() as stack:
        opened = None
        if job.is_single:
            (pair,) = job.pairs.pairs
            opened = stack.enter_context(open_listed_pair(pair, job.read))
            files.check_images(opened)
            _notify_notes(opened, hooks)
            grid = opened.chips(*job.options.grid)
            result.total = min(len(grid), job.options.limit or len(grid))
            if files.path is not None:
                check_journal_pair(journal_path(files.path), job, opened)
        stack.enter_context(files.locked())
        if opened is not None:
            check_format(job, opened.geobox)
        else:
            _check_format_of_list(job)
        started = stack.enter_context(_started(engine, result))
        job = _with_batch_size(job, job.options.batch_size or started.model.auto_batch_size())
        output = Output(job, files, started, result, opened)
        (_stream if files.path is None else _write)(output, hooks)
    _notify_unknown_shift(result, hooks)
    return result


def _notify_unknown_shift(result: RunResult, hooks: RunHooks) -> None:
    """Say where no shift could be measured, neither of a chip nor of a pair."""
    summary, records = result.summary, [pair.record for pair in result.pairs.values()]
    was_asked = summary.chips > summary.statuses["nodata"] + summary.failed
    is_known = summary.with_shift or any(each and each.shift_px is not None for each in records)
    if was_asked and not is_known:
        hooks.notify(
            "the shift between the dates cannot be measured in any chip, so misregistration goes unnoticed"
        )


def _check_format_of_list(job: AnalyzeJob) -> None:
    """Check by the pairs of a list that can be opened. Raises: OutputError."""
    read = replace(job.read, outlines_only=True)

    def geobox_of(pair: Pair) -> GeoBox | None:
        try:
            with open_listed_pair(pair, read) as reader:
                return reader.geobox
        except InputError:  # which is found again, and told, when it is its turn
            return None

    workers = _MAX_OPEN if is_in_lonlat(job.output.path) else 1
    opened = map_ordered(geobox_of, iter(job.pairs.pairs), workers, lambda: None)
    with closing(opened) as geoboxes:
        pairs = zip(job.pairs.pairs, geoboxes, strict=False)
        check_format_of_list(job, ((pair, geobox) for pair, geobox in pairs if geobox is not None))


def _run_folder(job: AnalyzeJob, engine: AbstractContextManager[Engine], hooks: RunHooks) -> RunResult:
    """An output for each pair; complete ones are skipped, unless they are to be replaced."""
    options, paths = job.output, output_paths(job)
    folders = {"mask": options.mask, "probability": options.probability}
    result = RunResult(output=options.path, files={k: v for k, v in folders.items() if v is not None})
    pending = [pair for pair in job.pairs.pairs if not is_complete(paths[pair.id], options)]
    _notify_complete(job, paths, pending, result, hooks)
    assert options.path is not None
    for folder in (options.path, *result.files.values()):
        _create(folder)
    result.total = len(pending)
    if not pending:
        return result
    limit = job.options.limit
    with _started(engine, result) as started:
        job = _with_batch_size(job, job.options.batch_size or started.model.auto_batch_size())
        for pair in pending:
            if limit is not None and result.chips >= limit:
                break
            result.pairs[pair.id] = PairResult(pair)
            remaining = None if limit is None else limit - result.chips
            try:
                _write_pair(job.for_pair(pair, paths[pair.id], remaining), pair, started, result, hooks)
            except InputError as error:
                if job.options.on_error == "fail":
                    raise
                result.pairs[pair.id].reason = str(error)
                logger.warning("pair %s failed: %s", pair.id, error, extra={"pair": pair.id})
    return result


def _create(folder: Path) -> None:
    """Create the folder, if it is not there. Raises: OutputError."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created ({error.strerror}); choose another folder") from error


def _notify_complete(
    job: AnalyzeJob, paths: dict[str, Path], pending: list[Pair], result: RunResult, hooks: RunHooks
) -> None:
    """Messages about the outputs of a folder that are complete, and those of them with failed chips."""
    result.outputs_skipped = len(paths) - len(pending)
    if result.outputs_skipped:
        outputs = pluralize(result.outputs_skipped, "output")
        hooks.notify(f"{outputs} in {job.output.path} already complete; `overwrite=True` replaces them")
    names = {pair.id for pair in pending}
    partial = [name for name, path in paths.items() if name not in names and journal_path(path).exists()]
    if partial:
        some = f"{', '.join(partial[:3])}{', ...' if len(partial) > 3 else ''}"
        logger.warning(
            "chips failed in %s (%s); `retry_failed=True` tries them again",
            pluralize(len(partial), "output"),
            some,
        )


def _write_pair(job: AnalyzeJob, pair: Pair, engine: Engine, result: RunResult, hooks: RunHooks) -> None:
    """Output of one pair of a folder."""
    files = OutputFiles.of(job.output)
    files.check(may_replace=job.output.may_replace)
    with files.locked(), open_listed_pair(pair, job.read) as opened:
        files.check_images(opened)
        check_format(job, opened.geobox)
        _write(Output(job, files, engine, result, opened), hooks)


@contextmanager
def _started(engine: AbstractContextManager[Engine], result: RunResult) -> Iterator[Engine]:
    """Enter the engine, and note its model and how long it took to load."""
    start = time.monotonic()
    with engine as started:
        result.load_seconds = time.monotonic() - start
        result.model = started.model
        yield started


def _with_batch_size(job: AnalyzeJob, size: int) -> AnalyzeJob:
    return replace(job, options=replace(job.options, batch_size=size))


def _notify_notes(reader: PairReader, hooks: RunHooks) -> None:
    """Notes of a single pair, and the ground size of its pixels."""
    for note in reader.notes:
        if note in reader.warnings:
            logger.warning("%s", note)
        else:
            hooks.notify(note)
    if reader.gsd_m is not None:
        hooks.notify(f"pixel size {reader.gsd_m:.3g} m")


def _stream(output: Output, hooks: RunHooks) -> None:
    """Write features to standard output as answers come; rows of the layer `pairs` at the end."""
    job, opened = output.job, output.opened
    if opened is not None:
        crs = OutputCRS(opened.geobox.crs, untransformed=True)
    else:
        crs = OutputCRS(None if first_crs(job.pairs.pairs, job.read) is None else LONLAT)
    layers = layers_of_job(job)
    with open_sink(None, layers, crs.crs, output.provenance, only_layer=job.output.layer) as sink:
        writer = output.writer(sink, crs)
        store = StreamStore(writer)
        analyze_chips(job, output.engine, store, output.result, opened=opened, on_progress=hooks.on_progress)
        if not job.one_pair_per_output:
            writer.write_pairs(output.pairs)
    output.result.totals += writer.totals.totals
    warn_unplaced(crs)


def _write(output: Output, hooks: RunHooks) -> None:
    """Analyze chips into the journal, and write the output from it."""
    job, result, path = output.job, output.result, output.files.path
    assert path is not None
    may_replace = job.output.may_replace or bool(output.files.interrupted_renames)
    settings = journal_settings(job, output.engine.model)
    with open_journal(journal_path(path), job, settings) as journal:
        if journal.completed_chips:
            _notify_resume(output, journal, hooks)
        with _notify_if_interrupted(journal, hooks):
            size = min(job.options.batch_size or _MAX_BATCH_SIZE, journal.batch_size or _MAX_BATCH_SIZE)
            analyze_chips(
                _with_batch_size(job, size),
                output.engine,
                journal,
                result,
                opened=output.opened,
                on_progress=hooks.on_progress,
            )
            with result.summary.stages.timed("write"):
                write_layers(output, journal, hooks.notify, may_replace=may_replace)
        journal.finish()


def _notify_resume(output: Output, journal: Journal, hooks: RunHooks) -> None:
    completed, limit = journal.completed_chips, output.job.options.limit
    done = min(completed, limit or completed)
    total = output.result.total if output.job.is_single else None
    chips = pluralize(done, "chip") if total is None else f"{done} of {pluralize(total, 'chip')}"
    hooks.notify(f"resuming: {chips} done")
    if limit is not None and completed > limit:
        beyond = pluralize(completed - limit, "result")
        logger.warning("%s beyond `limit=%d` of the interrupted run are discarded", beyond, limit)


@contextmanager
def _notify_if_interrupted(journal: Journal, hooks: RunHooks) -> Iterator[None]:
    """Say how many chips the journal keeps, whatever ends the run."""
    try:
        yield
    except BaseException:
        if len(journal):
            hooks.notify(
                f"{pluralize(len(journal), 'chip')} kept in {journal.file.path}; the same command resumes"
            )
        raise
