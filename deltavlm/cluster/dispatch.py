"""Groups of chips on their way to actors and back, in order; and whom to blame when an actor dies."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from deltavlm.cluster.actors import AGAIN, Actor, Actors
from deltavlm.errors import ModelError
from deltavlm.pipeline.engine import ChipBatch
from deltavlm.pipeline.inference import BatchReplies, InferenceOptions
from deltavlm.pipeline.summary import StageTimes

__all__ = ["Dispatch", "Sent"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Sent:
    """A group on its way."""

    batch: ChipBatch
    size: int  # chips that fit at once, as far as is known
    place: Actor | None = None
    reply: Any = None  # the reference of the result; None where there is nothing to ask
    turn: int = 0  # when it was sent, for an actor asks in this order
    deaths: int = 0

    def failed(self, why: str) -> BatchReplies:
        """A result without replies."""
        return BatchReplies([ModelError(why) for _ in self.batch.images], self.size, StageTimes())


class Dispatch:
    """What is asked of the actors; `flying` is in the order of the groups.

    An actor asks one group after the other, in the order in which they were sent. So when it dies, the first
    of its groups that has no result is the one it died of, and the others are sent again without blame.
    """

    def __init__(self, actors: Actors, options: InferenceOptions) -> None:
        self.actors = actors
        self.options = options
        self.flying: deque[Sent] = deque()
        self.turns = 0

    @property
    def has_room(self) -> bool:
        """Whether another group may be sent before a result is taken."""
        if not self.flying:
            return True
        return len(self.flying) < self.actors.most_flying and not _is_done(self.flying[0])

    def send(self, sent: Sent) -> None:
        """One group more, to the actor with the fewest."""
        self._ask(sent)
        self.flying.append(sent)

    def next_result(self) -> tuple[ChipBatch, BatchReplies]:
        """The oldest group, when it is done."""
        sent = self.flying[0]
        result = self._result(sent)
        self.flying.popleft()
        return sent.batch, result

    def ask_again_with(self, size: int) -> None:
        """All that are on their way, with a smaller batch."""
        for sent in self.flying:
            _forget(sent)
            sent.size, sent.place, sent.reply = size, None, None
        for sent in self.flying:
            self._ask(sent)

    def close(self) -> None:
        """What is on its way is not wanted any more."""
        while self.flying:
            _forget(self.flying.pop())

    def _ask(self, sent: Sent) -> None:
        asked = sent.batch.images
        if not asked:
            return
        pieces = {ref: number for number, ref in enumerate(dict.fromkeys(ref for ref, _ in asked))}
        places = [(pieces[ref], index) for ref, index in asked]
        sent.place = min(self.actors.ready(), key=self._load)
        self.turns += 1
        sent.turn = self.turns
        sent.reply = sent.place.handle.ask.remote(self.options, places, sent.size, *pieces)

    def _load(self, place: Actor) -> int:
        return sum(sent.place is place and not _is_done(sent) for sent in self.flying)

    def _result(self, sent: Sent) -> BatchReplies:
        while sent.reply is not None:
            if sent.deaths > AGAIN:
                return sent.failed(f"the worker that was asked has died, {sent.deaths} times")
            try:
                result: BatchReplies = ray.get(sent.reply)
                return result
            except RayActorError:
                self._bury(sent)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                return sent.failed(f"its pixels were lost with a machine ({type(error).__name__})")
        return BatchReplies([], sent.size, StageTimes())

    def _bury(self, found: Sent) -> None:
        """The actor of this group has died: a new one is begun, and what it was to be asked is sent again."""
        place = found.place
        assert place is not None
        lost = [sent for sent in self.flying if sent.place is place and (sent is found or _is_lost(sent))]
        blamed = min(lost, key=lambda sent: sent.turn)
        blamed.deaths += 1
        given_up = blamed.deaths > AGAIN
        logger.warning(
            "a worker has died while %d chips were asked%s",
            len(blamed.batch.images),
            f", {blamed.deaths} times now; they are given up" if given_up else "; they are asked again",
        )
        for sent in lost:
            sent.place = None
        self.actors.revive(place)
        for sent in lost:
            if sent is not blamed or not given_up:
                self._ask(sent)


def _is_done(sent: Sent) -> bool:
    return sent.reply is None or bool(ray.wait([sent.reply], timeout=0)[0])


def _is_lost(sent: Sent) -> bool:
    try:
        ray.get(sent.reply, timeout=0)
    except (RayActorError, GetTimeoutError):
        return True
    except RayError:
        return False  # told when it is its turn
    return False


def _forget(sent: Sent) -> None:
    if sent.reply is not None:
        with suppress(RayError, TypeError, ValueError):
            ray.cancel(sent.reply)
