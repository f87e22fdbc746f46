"""The engine of many machines: tasks read, actors ask, and this process alone decides and writes.

What a model says may hang on its batch in the last digits. So batches are cut here, from what the readers
have seen, as an engine of one process cuts them; the pixels go from reader to actor and never come here.
Results are given back in order, whoever is done first.
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

from deltavlm.cluster.actors import AGAIN, Actors
from deltavlm.cluster.dispatch import Dispatch, Sent
from deltavlm.cluster.worker import Known, Seen, Unit, mark_of, read_unit
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions
from deltavlm.pipeline.engine import ChipBatch, LoadedChip
from deltavlm.pipeline.inference import BatchReplies, InferenceOptions
from deltavlm.pipeline.job import AnalyzeOptions

__all__ = ["Cluster"]

UNIT_CHIPS = 64  # read together at least, in whole rows of the grid
LONGEST_UNIT = 512  # a row of more is cut


@dataclass(frozen=True)
class Cluster:
    """An engine whose model is held by actors; made by `cluster.session.started`."""

    actors: Actors

    @property
    def model(self) -> Known:
        return self.actors.known

    @property
    def prefetch_batches(self) -> int:
        """Batches that are read before they are wanted; only words about them come here."""
        return self.actors.most_flying

    def load(
        self, reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
    ) -> Generator[LoadedChip, None, None]:
        """The chips as readers have seen them, those to be asked with the place of their pixels."""
        where, read, mark = *_elsewhere(reader), mark_of(reader)
        task = ray.remote(
            num_cpus=0, max_retries=AGAIN, scheduling_strategy="SPREAD", **self.actors.environment
        )(read_unit)
        given = ray.put(options)
        units = _units(chips)
        flying: deque[tuple[list[Chip], Any, list[Any]]] = deque()
        more = True
        while more or flying:
            while more and len(flying) < 2 * len(self.actors):
                members = next(units, None)
                if members is None:
                    more = False
                    break
                unit = Unit(
                    where, read, mark, tuple((one.row, one.col) for one in members), options.batch_size
                )
                seen, *pieces = task.options(num_returns=1 + unit.pieces).remote(unit, given)
                flying.append((members, seen, pieces))
            if flying:
                members, ref, pieces = flying.popleft()
                for chip, found in zip(members, _seen(ref, members), strict=True):
                    status, fraction, reason, place, digest, valid = found
                    pixels = None if place is None else (pieces[place[0]], place[1])
                    yield LoadedChip(chip, status, fraction, pixels, reason, pair, digest, valid=valid)

    def infer(
        self, batches: Iterator[ChipBatch], options: InferenceOptions, batch_size: int
    ) -> Generator[tuple[ChipBatch, BatchReplies], None, None]:
        """Ask about batches and yield each with its replies, in order.

        Where a batch did not fit into memory, those behind it are asked again with the smaller size, as the
        engine of one process would have asked them.
        """
        dispatch = Dispatch(self.actors, options)
        size, is_exhausted = batch_size, False
        try:
            while not is_exhausted or dispatch.flying:
                while not is_exhausted and dispatch.has_room:
                    batch = next(batches, None)
                    if batch is None:
                        is_exhausted = True
                        break
                    dispatch.send(Sent(batch, size))
                if dispatch.flying:
                    batch, replies = dispatch.next_result()
                    if replies.batch_size < size:
                        size = replies.batch_size
                        dispatch.ask_again_with(size)
                    yield batch, replace(replies, batch_size=size)
        finally:
            dispatch.close()


def _elsewhere(reader: PairReader) -> tuple[RasterPair, ReadOptions]:
    """The pair by names that hold in every folder, and without what its chips were chosen by."""
    places = [view.source.location for view in reader.views]
    before, after = (str(Path(one).absolute()) if Path(one).exists() else one for one in places)
    return RasterPair(before, after), replace(reader.options, aoi=None, bbox=None)


def _units(chips: Iterable[Chip]) -> Iterator[list[Chip]]:
    """Chips in order, in whole rows of the grid where these are not too long."""
    unit: list[Chip] = []
    for _, members in groupby(chips, key=lambda chip: chip.row):
        for chip in members:
            if len(unit) == LONGEST_UNIT:
                yield unit
                unit = []
            unit.append(chip)
        if len(unit) >= UNIT_CHIPS:
            yield unit
            unit = []
    if unit:
        yield unit


def _seen(ref: Any, members: Sequence[Chip]) -> list[Seen]:
    """What a reader has seen; chips whose reader has died again and again are unreadable."""
    try:
        seen: list[Seen] = ray.get(ref)
        return seen
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        told = f"the worker that reads it has died, {1 + AGAIN} times ({type(error).__name__})"
        return [("unreadable", None, told, None, "", b"")] * len(members)
