"""Engine of a Ray cluster: tasks read chips, actors ask models, and this process batches and writes.

Answers depend on their batch in the last digits. So batches are formed here, from what the readers report, as
the engine of one process forms them; pixels go from reader to actor and never pass through this process.
Results are yielded in order, whichever is finished first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from deltavlm.cluster.actors import MAX_RETRIES, ActorPool
from deltavlm.cluster.dispatch import Dispatch
from deltavlm.cluster.worker import ChipReading, ModelInfo, ReadTask, pair_fingerprint, read_chips_of_task
from deltavlm.geo.cloud_mask import relocate_cloud_mask
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions
from deltavlm.pipeline.engine import ChipBatch, LoadedChip, with_context
from deltavlm.pipeline.inference import BatchReplies, InferenceOptions
from deltavlm.pipeline.job import AnalyzeOptions

__all__ = ["ClusterEngine"]

MIN_TASK_CHIPS = 64  # chips of a task, rounded up to rows of the chip grid
MAX_TASK_CHIPS = 512  # longer rows are split
TASKS_PER_ACTOR = 2  # in flight


@dataclass(frozen=True)
class ClusterEngine:
    """Engine whose models are held by actors; made by `cluster.session.start_cluster`."""

    actors: ActorPool

    @property
    def model(self) -> ModelInfo:
        return self.actors.model

    @property
    def prefetch_batches(self) -> int:
        """Batches that are read in advance; only their metadata comes to this process."""
        return self.actors.max_in_flight

    @property
    def small_batches(self) -> int:
        return 0  # each batch is a task

    def load(
        self, reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
    ) -> Generator[LoadedChip, None, None]:
        """Chips as the readers report them; those to be asked with a reference to their pixels."""
        raster_pair, read = _for_workers(reader)
        fingerprint = pair_fingerprint(reader)
        read_task = ray.remote(
            num_cpus=0, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD", **self.actors.task_options
        )(read_chips_of_task)
        options_ref = ray.put(options)
        batch_size = options.batch_size or self.model.auto_batch_size()
        groups = _group_rows(chips)
        in_flight: deque[tuple[list[Chip], Any, list[Any]]] = deque()
        is_exhausted = False
        while not is_exhausted or in_flight:
            while not is_exhausted and len(in_flight) < TASKS_PER_ACTOR * len(self.actors):
                group = next(groups, None)
                if group is None:
                    is_exhausted = True
                    break
                indices = tuple((chip.row, chip.col) for chip in group)
                task = ReadTask(
                    raster_pair,
                    read,
                    reader.registration,
                    reader.color_match,
                    fingerprint,
                    indices,
                    batch_size,
                )
                readings_ref, *array_refs = read_task.options(num_returns=1 + task.arrays).remote(
                    task, options_ref
                )
                in_flight.append((group, readings_ref, array_refs))
            if in_flight:
                group, readings_ref, array_refs = in_flight.popleft()
                for chip, reading in zip(group, _readings(readings_ref, group), strict=True):
                    status, fraction, reason, address, digest, valid, shift_px, cloud_share = reading
                    pixels = None if address is None else (array_refs[address[0]], address[1])
                    loaded = LoadedChip(
                        chip,
                        status,
                        fraction,
                        pixels,
                        reason,
                        pair,
                        digest,
                        valid=valid,
                        shift_px=shift_px,
                        cloud_share=cloud_share,
                    )
                    yield with_context(loaded, reader, self.model)

    def infer(
        self, batches: Iterator[ChipBatch], options: InferenceOptions, batch_size: int
    ) -> Generator[tuple[ChipBatch, BatchReplies], None, None]:
        """Ask about batches and yield each with its replies, in order.

        Where a batch does not fit into memory, those behind it are asked again with the smaller size, as the
        engine of one process would have asked them.
        """
        dispatch = Dispatch(self.actors, options)
        size, is_exhausted = batch_size, False
        try:
            while not is_exhausted or dispatch.in_flight:
                while not is_exhausted and dispatch.can_submit:
                    batch = next(batches, None)
                    if batch is None:
                        is_exhausted = True
                        break
                    dispatch.submit(batch, size)
                if dispatch.in_flight:
                    batch, replies = dispatch.receive()
                    if replies.batch_size < size:
                        size = replies.batch_size
                        dispatch.resubmit(size)
                    yield batch, replace(replies, batch_size=size)
        finally:
            dispatch.close()


def _for_workers(reader: PairReader) -> tuple[RasterPair, ReadOptions]:
    """The pair with absolute paths, and options without the area that its chips were selected by."""

    def absolute(location: str) -> str:
        return str(Path(location).absolute()) if Path(location).exists() else location

    before, after = (absolute(view.source.location) for view in reader.views)
    before_mask, after_mask = (
        mask and relocate_cloud_mask(mask, absolute)
        for mask in (reader.options.before_cloud_mask, reader.options.after_cloud_mask)
    )
    options = replace(
        reader.options, aoi=None, bbox=None, before_cloud_mask=before_mask, after_cloud_mask=after_mask
    )
    return RasterPair(before, after), options


def _group_rows(chips: Iterable[Chip]) -> Iterator[list[Chip]]:
    """Chips in order, in groups of complete rows of the grid where these are not too long."""
    group: list[Chip] = []
    for _, row in groupby(chips, key=lambda chip: chip.row):
        for chip in row:
            if len(group) == MAX_TASK_CHIPS:
                yield group
                group = []
            group.append(chip)
        if len(group) >= MIN_TASK_CHIPS:
            yield group
            group = []
    if group:
        yield group


def _readings(ref: Any, chips: Sequence[Chip]) -> list[ChipReading]:
    """Readings of a task; its chips are unreadable if its worker has died on every attempt."""
    try:
        readings: list[ChipReading] = ray.get(ref)
        return readings
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        reason = f"the worker that reads it has died, {1 + MAX_RETRIES} times ({type(error).__name__})"
        return [("unreadable", None, reason, None, "", b"", None, None)] * len(chips)
