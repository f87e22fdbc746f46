"""Analysis loop: batches of chips are read in advance, answered by the model, and stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from deltavlm.errors import ModelError, RasterError
from deltavlm.geo.pair import PairReader
from deltavlm.pipeline.answers import answer_for_unchanged, read_answer
from deltavlm.pipeline.changes import SPECKLE
from deltavlm.pipeline.consistency import find_conflicts, statements_of
from deltavlm.pipeline.dedup import ResultCache
from deltavlm.pipeline.engine import Callback, ChipBatch, Engine, LoadedChip
from deltavlm.pipeline.inference import BatchReplies, ChipReplies, InferenceOptions
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.blobs import Blob
from deltavlm.pipeline.mask_codec import peak_score
from deltavlm.pipeline.pair_record import PairResult
from deltavlm.pipeline.prefetch import prefetch
from deltavlm.pipeline.reading import PairChange, PairStart, log_notes, read_chips_of_pairs, with_callbacks
from deltavlm.pipeline.result_store import ResultStore
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.run_result import RunResult
from deltavlm.tasks import TASKS

__all__ = ["analyze_chips"]

logger = logging.getLogger(__name__)

_SMALL_BATCH = 8  # chips to ask about in a small batch
_MAX_BATCH_CHIPS = 256  # chips stored together, where most of them are nodata


def analyze_chips(
    job: AnalyzeJob,
    engine: Engine,
    store: ResultStore,
    result: RunResult,
    *,
    opened: PairReader | None = None,
    on_progress: Callable[[RunResult], None] = lambda result: None,
) -> None:
    """Ask every question about every chip that the store does not have, and add the results to the store.

    Chips are read by another thread, some batches in advance; until this returns, the reader `opened` belongs
    to it. `result` is updated while the run goes on, and passed to `on_progress` after each batch.

    A pair whose files have changed while they were read fails when all others are answered.

    Raises: with `on_error="fail"` the RasterError, InputError or ModelError of the first chip or pair that
        fails; RasterError where the only pair of an output has changed.
    """
    analysis = _Analysis(job, engine, store, result)
    analysis.count_earlier()
    options, stages = job.options, result.summary.stages
    batch_size = options.batch_size or engine.model.auto_batch_size()
    result.summary.batch_size = batch_size
    asking = InferenceOptions(
        tuple(job.questions), cascade=options.cascade, threshold=options.threshold, masks=options.masks
    )
    items = read_chips_of_pairs(job, engine, store, opened)
    with prefetch(items, engine.prefetch_batches * batch_size, stages) as prefetched:
        chips = with_callbacks(prefetched, analysis.start_pair, analysis.changes.append)
        batches = _batches(chips, batch_size, engine.small_batches, analysis.cache)
        with closing(engine.infer(batches, asking, batch_size)) as answered:
            for batch, replies in answered:
                analysis.add(batch, replies)
                on_progress(result)
    analysis.fail_changed_pairs()


class _Analysis:
    """State of the analysis: counts, the results of pairs, and the chips seen so far."""

    def __init__(self, job: AnalyzeJob, engine: Engine, store: ResultStore, result: RunResult) -> None:
        self.job, self.engine, self.store, self.result = job, engine, store, result
        self.pairs = {pair.id: PairResult(pair) for pair in job.pairs.pairs}
        self.cache = ResultCache()
        self.changes: list[PairChange] = []
        self.counts_before = result.summary.counts()
        self.seconds_before, self.began = result.summary.seconds, time.monotonic()

    def count_earlier(self) -> None:
        """Count the results of an interrupted run, which also serve chips with the same pixels."""
        for earlier in self.store.completed():
            if earlier.digest:
                entry, is_new = self.cache.lookup(earlier.digest)
                entry.result = earlier if is_new else entry.result
            self._count(earlier)
            self.pairs[earlier.pair].add(earlier)
            self.result.summary.resumed += 1

    def start_pair(self, start: PairStart) -> None:
        """Record a pair that was opened, or not; called between batches, by the thread that writes."""
        pair, pair_result = start.pair, self.pairs[start.pair.id]
        self.result.pairs[pair.id] = pair_result
        pair_result.record, pair_result.reason = start.record, start.reason or pair_result.reason
        if start.reason:
            when = " in the previous run" if start.is_earlier else ""
            logger.warning("pair %s failed%s: %s", pair.id, when, start.reason, extra={"pair": pair.id})
            if not start.is_earlier:
                self.store.fail_pair(pair, start.reason)
        elif start.reader is not None and start.record is not None:
            log_notes(pair, start.reader, self.engine.model, self.job, self.result.warned)
            self.store.begin_pair(pair, start.record)

    def add(self, batch: ChipBatch, replies: BatchReplies) -> None:
        """Store and count the results of a batch."""
        summary = self.result.summary
        summary.stages.include(replies.times)
        summary.batch_size = replies.batch_size
        for callback in batch.callbacks:
            callback()
        results = _results(batch.chips, replies.chips, self.job)
        if results:
            with summary.stages.timed("write"):
                self.store.add(results, replies.batch_size)
        for each in results:
            self._count(each)
            self.pairs[each.pair].add(each)
        summary.deduplicated += batch.deduplicated
        self._set_seconds()

    def fail_changed_pairs(self) -> None:
        """Fail pairs whose files changed while they were read, and count the others again. Raises as
        `analyze_chips` does."""
        self._set_seconds()
        if not self.changes:
            return
        for change in self.changes:
            pair = change.pair
            self.result.pairs[pair.id] = PairResult(pair, reason=change.reason)
            self.store.fail_pair(pair, change.reason)
            if not self.job.one_pair_per_output:
                logger.warning("pair %s failed: %s", pair.id, change.reason, extra={"pair": pair.id})
        if self.job.output.path is not None:  # what went to standard output stays there
            self.result.summary.restore(self.counts_before)
            for kept in self.store.completed():
                self._count(kept)
        if self.job.one_pair_per_output or self.job.options.on_error == "fail":
            raise RasterError(self.changes[0].reason)

    def _count(self, chip: ChipResult) -> None:
        threshold = self.job.output.changes.threshold
        self.result.summary.add(chip, find_conflicts(statements_of(chip, threshold)))

    def _set_seconds(self) -> None:
        self.result.summary.seconds = self.seconds_before + time.monotonic() - self.began


def _batches(
    chips: Iterable[LoadedChip | Callback], batch_size: int, small_batches: int, cache: ResultCache
) -> Iterator[ChipBatch]:
    """Batches of chips in order, each with `batch_size` to ask, or fewer in the first `small_batches`;
    identical chips are asked once."""
    batch, to_ask = ChipBatch(), 0
    for chip in chips:
        if not isinstance(chip, LoadedChip):
            batch.callbacks.append(chip)
            if not batch.chips:  # nothing to wait for
                yield batch
                batch = ChipBatch()
            continue
        if chip.digest:
            entry, is_new = cache.lookup(chip.digest)
            chip = replace(chip, cached=entry, pixels=chip.pixels if is_new else None)
        batch.chips.append(chip)
        to_ask += chip.pixels is not None
        limit = min(batch_size, _SMALL_BATCH) if small_batches > 0 else batch_size
        if to_ask == limit or len(batch.chips) == _MAX_BATCH_CHIPS:
            small_batches -= to_ask > 0
            yield batch
            batch, to_ask = ChipBatch(), 0
    if batch.chips or batch.callbacks:
        yield batch


def _results(
    chips: Sequence[LoadedChip], replies: Sequence[ChipReplies | ModelError], job: AnalyzeJob
) -> list[ChipResult]:
    """Results in the order of the chips."""
    next_reply = iter(replies)
    results = []
    for chip in chips:
        result = ChipResult(chip.chip, chip.status, chip.valid_fraction, reason=chip.reason, pair=chip.pair)
        if chip.pixels is not None:
            result = _answered(chip, job, next(next_reply))
            if chip.cached is not None:
                chip.cached.result = result
        elif chip.cached is not None:
            result = chip.cached.copy_for(chip.chip, chip.valid_fraction, chip.pair, _blob(chip.valid))
        result = replace(result, shift_px=chip.shift_px, cloud_share=chip.cloud_share)
        if result.failed:
            name = f"{result.pair} {result.chip.chip_id}".strip()
            extra = {"pair": result.pair or None, "chip": result.chip.chip_id, "status": result.status}
            logger.info("%s: %s: %s", name, result.status, result.reason, extra=extra)
            if job.options.on_error == "fail":
                kind = RasterError if result.status == "unreadable" else ModelError
                raise kind(result.reason)
        results.append(result)
    return results


def _answered(chip: LoadedChip, job: AnalyzeJob, replies: ChipReplies | ModelError) -> ChipResult:
    result = ChipResult(chip.chip, "error", chip.valid_fraction, pair=chip.pair, digest=chip.digest)
    if isinstance(replies, ModelError):
        return replace(result, reason=str(replies))
    threshold = job.options.threshold
    answers = {
        spec.name: answer
        for spec, reply in zip(job.questions, replies.replies, strict=True)
        if not (chip.far_scale and TASKS[spec.task].scale_bound)
        and (answer := answer_for_unchanged(spec) if reply is None else read_answer(spec, reply, threshold))
        is not None
    }
    return replace(
        result,
        status="cascaded" if None in replies.replies else "answered",
        answers=answers,
        mask=_blob(replies.mask),
        valid=_blob(chip.valid),
        mask_score=peak_score(replies.mask, SPECKLE) if replies.mask else None,
        evidence=replies.evidence if job.evidence else None,
    )


def _blob(data: bytes) -> Blob | None:
    return Blob(data) if data else None
