"""Dispatch of batches to actors and of their results back, in order; blame when an actor dies."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from deltavlm.cluster.actors import MAX_RETRIES, ActorPool, ActorSlot
from deltavlm.errors import ModelError
from deltavlm.messages import pluralize
from deltavlm.pipeline.engine import ChipBatch
from deltavlm.pipeline.inference import BatchReplies, InferenceOptions
from deltavlm.pipeline.summary import StageTimes

__all__ = ["Dispatch", "InFlight"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class InFlight:
    """Batch in flight."""

    batch: ChipBatch
    batch_size: int  # chips that fit into memory at once, as far as is known
    slot: ActorSlot | None = None
    reply: Any = None  # reference to its BatchReplies; None where there is nothing to ask
    order: int = 0  # number of the submission; an actor works in this order
    deaths: int = 0  # of actors, while they were asked about this batch

    def failed(self, reason: str) -> BatchReplies:
        """Replies in which every chip has failed."""
        return BatchReplies([ModelError(reason) for _ in self.batch.images], self.batch_size, StageTimes())


class Dispatch:
    """Queue of batches in flight, in the order of the batches.

    An actor works on its batches in the order of submission. So when it dies, the first of them without a
    result is the one that it died of, and the others are submitted again without blame.
    """

    def __init__(self, actors: ActorPool, options: InferenceOptions) -> None:
        self.actors = actors
        self.options = options
        self.in_flight: deque[InFlight] = deque()
        self.submissions = 0

    @property
    def can_submit(self) -> bool:
        """True if another batch may be submitted before a result is received."""
        if not self.in_flight:
            return True
        return len(self.in_flight) < self.actors.max_in_flight and not _is_finished(self.in_flight[0])

    def submit(self, batch: ChipBatch, batch_size: int) -> None:
        """Submit a batch to the actor with the fewest unfinished ones."""
        item = InFlight(batch, batch_size)
        self._ask(item)
        self.in_flight.append(item)

    def receive(self) -> tuple[ChipBatch, BatchReplies]:
        """Oldest batch and its replies; waits for them."""
        item = self.in_flight[0]
        replies = self._replies(item)
        self.in_flight.popleft()
        return item.batch, replies

    def resubmit(self, batch_size: int) -> None:
        """Submit all batches in flight again, with a smaller batch size."""
        for item in self.in_flight:
            _cancel(item)
            item.batch_size, item.slot, item.reply = batch_size, None, None
        for item in self.in_flight:
            self._ask(item)

    def close(self) -> None:
        """Cancel all batches in flight."""
        while self.in_flight:
            _cancel(self.in_flight.pop())

    def _ask(self, item: InFlight) -> None:
        images = item.batch.images  # (reference to an array of pixels, index into it) of each chip
        if not images:
            return
        numbers = {ref: number for number, ref in enumerate(dict.fromkeys(ref for ref, _ in images))}
        addresses = [(numbers[ref], index) for ref, index in images]
        item.slot = min(self.actors.ready(), key=self._unfinished)
        self.submissions += 1
        item.order = self.submissions
        item.reply = item.slot.handle.ask.remote(
            self.options, addresses, item.batch_size, item.batch.contexts, *numbers
        )

    def _unfinished(self, slot: ActorSlot) -> int:
        return sum(item.slot is slot and not _is_finished(item) for item in self.in_flight)

    def _replies(self, item: InFlight) -> BatchReplies:
        while item.reply is not None:
            if item.deaths > MAX_RETRIES:
                return item.failed(f"the worker that was asked has died, {pluralize(item.deaths, 'time')}")
            try:
                replies: BatchReplies = ray.get(item.reply)
                return replies
            except RayActorError:
                self._handle_death(item)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                return item.failed(f"its pixels were lost with a machine ({type(error).__name__})")
        return BatchReplies([], item.batch_size, StageTimes())

    def _handle_death(self, item: InFlight) -> None:
        """Restart the dead actor of this batch, and submit its unfinished batches again."""
        slot = item.slot
        assert slot is not None
        lost = [each for each in self.in_flight if each.slot is slot and (each is item or _is_lost(each))]
        blamed = min(lost, key=lambda each: each.order)
        blamed.deaths += 1
        gives_up = blamed.deaths > MAX_RETRIES
        logger.warning(
            "a worker has died during a batch of %s%s",
            pluralize(len(blamed.batch.images), "chip"),
            f", {pluralize(blamed.deaths, 'time')} now; it is given up"
            if gives_up
            else "; it is asked again",
        )
        for each in lost:
            each.slot = None
        self.actors.restart(slot)
        for each in lost:
            if each is not blamed or not gives_up:
                self._ask(each)


def _is_finished(item: InFlight) -> bool:
    return item.reply is None or bool(ray.wait([item.reply], timeout=0)[0])


def _is_lost(item: InFlight) -> bool:
    try:
        ray.get(item.reply, timeout=0)
    except (RayActorError, GetTimeoutError):
        return True
    except RayError:
        return False  # raised when it is its turn
    return False


def _cancel(item: InFlight) -> None:
    if item.reply is not None:
        with suppress(RayError, TypeError, ValueError):
            ray.cancel(item.reply)
