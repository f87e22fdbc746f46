"""Run a job: chips are analyzed into a journal, and the journal becomes the output."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from deltavlm.errors import InputError, OutputError
from deltavlm.geo.cog import Cog, open_cog
from deltavlm.geo.geobox import LONLAT
from deltavlm.geo.pair import PairReader, check_options
from deltavlm.geo.sinks import FeatureSink, open_sink
from deltavlm.messages import pluralize
from deltavlm.pipeline.analyze import analyze_chips
from deltavlm.pipeline.changes import MASK_PIXEL_TAG, MASK_STYLE, PROBABILITY_STYLE, MaskMosaic, vectorize
from deltavlm.pipeline.engine import Engine
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal import Journal, check_journal_pair, open_journal
from deltavlm.pipeline.journal_file import journal_path
from deltavlm.pipeline.outputs import (
    OutputFiles,
    check_format,
    check_outputs,
    is_complete,
    layers_of_job,
    output_paths,
)
from deltavlm.pipeline.pair_record import PairRecord, PairResult
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.provenance import journal_settings, provenance
from deltavlm.pipeline.reading import first_crs, open_listed_pair
from deltavlm.pipeline.run_result import RunResult
from deltavlm.pipeline.scale import Scale
from deltavlm.pipeline.schema import CHANGES, with_pair_columns
from deltavlm.pipeline.writer import OutputCRS, ResultWriter, StreamStore, common_crs

__all__ = ["RunHooks", "run"]

logger = logging.getLogger(__name__)

_MANY_CHIPS = 2_000  # from this many chips on, making polygons takes long enough for a message
_MAX_BATCH_SIZE = 4096


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
        return _run_folder(job, engine, hooks)
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
        output = _Output(_with_batch_size(job, started), files, started, result, opened)
        (_stream if files.path is None else _write)(output, hooks)
    return result


def _check_format_of_list(job: AnalyzeJob) -> None:
    """Check by the first pair of a list, if it can be opened. Raises: OutputError."""
    with ExitStack() as stack:
        try:
            read = replace(job.read, outlines_only=True)
            reader = stack.enter_context(open_listed_pair(job.pairs.pairs[0], read))
        except InputError:
            return  # which is found again, and told, when it is its turn
        check_format(job, reader.geobox)


def _run_folder(job: AnalyzeJob, engine: AbstractContextManager[Engine], hooks: RunHooks) -> RunResult:
    """An output for each pair; complete ones are skipped, unless they are to be replaced."""
    options, paths = job.output, output_paths(job)
    folders = {"mask": options.mask, "probability": options.probability}
    result = RunResult(output=options.path, files={k: v for k, v in folders.items() if v is not None})
    pending = [pair for pair in job.pairs.pairs if not is_complete(paths[pair.id], options)]
    _notify_complete(job, paths, pending, result, hooks)
    for folder in (options.path, *result.files.values()):
        assert folder is not None
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be created ({error.strerror}); choose another folder"
            ) from error
    result.total = len(pending)
    if not pending:
        return result
    limit = job.options.limit
    with _started(engine, result) as started:
        job = _with_batch_size(job, started)
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


def _notify_complete(
    job: AnalyzeJob, paths: dict[str, Path], pending: list[Pair], result: RunResult, hooks: RunHooks
) -> None:
    """Messages about the outputs of a folder that are complete, and those of them with failed chips."""
    result.outputs_skipped = len(paths) - len(pending)
    if result.outputs_skipped:
        outputs = pluralize(result.outputs_skipped, "output")
        hooks.notify(f"{outputs} in {job.output.path} already complete; --overwrite replaces them")
    names = {pair.id for pair in pending}
    partial = [name for name, path in paths.items() if name not in names and journal_path(path).exists()]
    if partial:
        some = f"{', '.join(partial[:3])}{', ...' if len(partial) > 3 else ''}"
        logger.warning(
            "chips failed in %s (%s); --retry-failed tries them again",
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
        _write(_Output(job, files, engine, result, opened), hooks)


@contextmanager
def _started(engine: AbstractContextManager[Engine], result: RunResult) -> Iterator[Engine]:
    """Enter the engine, and note its model and how long it took to load."""
    start = time.monotonic()
    with engine as started:
        result.load_seconds = time.monotonic() - start
        result.model = started.model
        yield started


def _with_batch_size(job: AnalyzeJob, engine: Engine) -> AnalyzeJob:
    size = job.options.batch_size or engine.model.auto_batch_size()
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


@dataclass(frozen=True)
class _Output:
    """Output that is being made. `opened` is the reader of its only pair, if it has only one."""

    job: AnalyzeJob
    files: OutputFiles
    engine: Engine
    result: RunResult
    opened: PairReader | None

    @property
    def pairs(self) -> list[PairResult]:
        """Results of those of its pairs that the run has come to."""
        ids = (pair.id for pair in self.job.pairs.pairs)
        return [self.result.pairs[name] for name in ids if name in self.result.pairs]

    @property
    def records(self) -> list[PairRecord]:
        return [pair.record for pair in self.pairs if pair.record is not None]

    @cached_property
    def provenance(self) -> dict[str, object]:
        inputs = None if self.opened is None else self.opened.provenance()
        return provenance(self.job, self.engine.model, inputs)

    def writer(self, sink: FeatureSink, crs: OutputCRS) -> ResultWriter:
        job, model = self.job, self.engine.model
        return ResultWriter(sink, job.questions, model.label, crs, job.output.changes.threshold)


def _stream(output: _Output, hooks: RunHooks) -> None:
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
    _warn_unplaced(crs)


def _write(output: _Output, hooks: RunHooks) -> None:
    """Analyze chips into the journal, and write the output from it."""
    job, result, path = output.job, output.result, output.files.path
    assert path is not None
    interrupted_renames = output.files.interrupted_renames
    settings = journal_settings(job, output.engine.model)
    with open_journal(journal_path(path), job, settings) as journal:
        if journal.completed_chips:
            _notify_resume(output, journal, hooks)
        with _notify_if_interrupted(journal, hooks):
            size = min(job.options.batch_size or _MAX_BATCH_SIZE, journal.batch_size or _MAX_BATCH_SIZE)
            analyze_chips(
                replace(job, options=replace(job.options, batch_size=size)),
                output.engine,
                journal,
                result,
                opened=output.opened,
                on_progress=hooks.on_progress,
            )
            with result.summary.stages.timed("write"):
                _write_layers(
                    output, journal, hooks, may_replace=job.output.may_replace or bool(interrupted_renames)
                )
        journal.finish()


def _notify_resume(output: _Output, journal: Journal, hooks: RunHooks) -> None:
    completed, limit = journal.completed_chips, output.job.options.limit
    done = min(completed, limit or completed)
    total = output.result.total if output.job.is_single else None
    chips = pluralize(done, "chip") if total is None else f"{done} of {pluralize(total, 'chip')}"
    hooks.notify(f"resuming: {chips} done")
    if limit is not None and completed > limit:
        beyond = pluralize(completed - limit, "result")
        logger.warning("%s beyond --limit %d of the interrupted run are discarded", beyond, limit)


def _write_layers(output: _Output, journal: Journal, hooks: RunHooks, *, may_replace: bool) -> None:
    """Layers of the output from the journal; `may_replace` is for the files next to it."""
    job, opened = output.job, output.opened
    if opened is not None:
        crs = OutputCRS(opened.geobox.crs, untransformed=True)
    else:
        crs = OutputCRS(common_crs(output.records))
    record, path = output.provenance, output.files.path
    assert path is not None
    with open_sink(
        path,
        layers_of_job(output.job),
        crs.crs,
        record,
        overwrite=job.output.may_replace,
        only_layer=job.output.layer,
    ) as sink:
        writer = output.writer(sink, crs)
        writer.write_chips(journal.results(), output.result.pairs)
        if not job.one_pair_per_output:
            writer.write_pairs(output.pairs)
        if job.options.masks:
            polygons = _write_changes(output, journal, writer, hooks, may_replace=may_replace)
            output.result.summary.polygons += polygons
    output.result.totals += writer.totals.totals
    several = len({each.crs for each in output.records}) > 1
    if several and path.suffix.lower() in (".gpkg", ".fgb", ".parquet"):
        hooks.notify("the pairs have several CRSs, so the output is in longitude and latitude (EPSG:4326)")
    _warn_unplaced(crs)


def _write_changes(
    output: _Output, journal: Journal, writer: ResultWriter, hooks: RunHooks, *, may_replace: bool
) -> int:
    """Write polygons into the output or a file of their own, and the rasters; return the number of polygons.

    All files are complete before any gets its name, and the journal notes that first: a run that is killed
    there can be resumed.

    Raises: OutputError or WriteError.
    """
    job, files, opened = output.job, output.files, output.opened
    options, count = job.output, 0
    record = output.provenance
    with ExitStack() as stack:
        cogs: list[Cog | None] = [None, None]
        if opened is not None:
            tags = {"deltavlm": json.dumps(record, ensure_ascii=False)}
            cogs = [
                None if path is None else stack.enter_context(open_cog(path, opened.geobox, style, tags))
                for path, style in ((files.mask, MASK_STYLE), (files.probability, PROBABILITY_STYLE))
            ]
        if files.polygons is not None:
            layer = CHANGES if job.is_single else with_pair_columns(CHANGES)
            sink = open_sink(files.polygons, (layer,), writer.crs.crs, record, overwrite=may_replace)
            writer = replace(writer, sink=stack.enter_context(sink))
        if options.polygons:
            writer.totals.add_polygons((), writer.crs.crs)  # an output without any polygon has some too
        for pair in output.pairs:
            if pair.record is None:
                continue
            mosaic = _mosaic(output, journal, pair.pair, pair.record)
            if len(mosaic.chips) > _MANY_CHIPS:
                hooks.notify(f"merging the masks of {pluralize(len(mosaic.chips), 'chip')}")
            features = vectorize(
                mosaic, options.changes, polygons=options.polygons, mask=cogs[0], probability=cogs[1]
            )
            if options.polygons:
                writer.write_changes(pair.pair, pair.record, features)
            count += len(features)
            if cogs[1] is not None:
                cogs[1].tag(MASK_PIXEL_TAG, mosaic.mask_pixel_px)
        written = [cog for cog in cogs if cog is not None]
        for cog in written:
            cog.finish()
        if files.by_name():
            journal.file.commit(files.by_name().values())
        for cog in written:
            cog.publish(may_replace)
    return count


def _mosaic(output: _Output, journal: Journal, pair: Pair, record: PairRecord) -> MaskMosaic:
    options, opened = output.job.options, output.opened
    if opened is not None:
        grid, geobox = opened.chips(*options.grid), opened.geobox
    else:
        grid, geobox = record.chip_grid(*options.grid), record.geobox
    far = Scale.of(record.gsd_m, output.engine.model, options.chip_px).is_far and not options.any_scale
    return MaskMosaic(
        grid, geobox, journal.lookup(pair), journal.file.read_blob, change_class="other" if far else None
    )


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


def _warn_unplaced(crs: OutputCRS) -> None:
    if crs.unplaced:
        logger.warning(
            "%s, such as %s, cannot be transformed to the CRS of the output, so their rows have no polygon; "
            "give them a CRS like the others', or write one output for each pair (-o FOLDER/)",
            pluralize(len(crs.unplaced), "pair"),
            min(crs.unplaced),
        )
