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
from deltavlm.pipeline.engine import AnalyzeOptions, Answered, Group, Look
from deltavlm.pipeline.summary import Stages
from deltavlm.tasks.questions import QuestionSpec

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
    def ahead(self) -> int:
        """Batches that are read before they are wanted; only words about them come here."""
        return self.actors.most_flying

    def looks(
        self, reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
    ) -> Generator[Look, None, None]:
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
                    status, valid, reason, place, picture, holes = found
                    pixels = None if place is None else (pieces[place[0]], place[1])
                    yield Look(chip, status, valid, pixels, reason, pair, picture, holes=holes)

    def replies(
        self,
        groups: Iterator[Group],
        specs: Sequence[QuestionSpec],
        options: AnalyzeOptions,
        stages: Stages,
    ) -> Generator[Answered, None, None]:
        """The groups in their order, and what was said to each.

        Where one did not fit into memory, those behind it are asked again with the smaller size, as an engine
        of one process would have asked them.
        """
        dispatch = Dispatch(self.actors, specs, options.cascade, options.masks)
        size, more = options.batch_size, True
        try:
            while more or dispatch.flying:
                while more and dispatch.has_room:
                    group = next(groups, None)
                    if group is None:
                        more = False
                        break
                    dispatch.send(Sent(group, size))
                if dispatch.flying:
                    group, (said, now, spent) = dispatch.next_result()
                    stages.include(spent)
                    if now < size:
                        size = now
                        dispatch.ask_again_with(size)
                    yield group, said, size
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
