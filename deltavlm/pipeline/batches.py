"""A group of chips put to the model, in batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ModelError, ModelOutOfMemory
from deltavlm.model.interface import ChangeModel, Reply
from deltavlm.pipeline.answers import question_of, read_answer
from deltavlm.pipeline.masks import packed_masks
from deltavlm.pipeline.summary import Stages
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["Pictures", "Replies", "ask_all"]

logger = logging.getLogger(__name__)


class Pictures(Protocol):
    """What the model sees of a chip, (3, size, size) RGB each."""

    @property
    def before(self) -> NDArray[np.uint8]: ...

    @property
    def after(self) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, slots=True)
class Replies:
    """What was said of a chip."""

    said: list[Reply | None]  # in the order of the questions; None for one that was not asked
    mask: bytes = b""  # `masks.packed_masks`, if that was wished


def ask_all(
    model: ChangeModel,
    specs: Sequence[QuestionSpec],
    asked: Sequence[Pictures],
    batch_size: int,
    cascade: bool,
    stages: Stages,
    masks: bool = False,
) -> tuple[list[Replies | ModelError], int]:
    """Replies for each chip, with its mask if `masks` is set, or why there are none; and how many chips fit
    into memory at once. Its seconds are added to `stages`.

    Where a batch does not fit into memory it is halved, and stays so; where it fails otherwise, each of its
    chips is asked alone, so that one bad chip takes no other with it.
    """
    replies: list[Replies | ModelError] = []
    alone_until = 0
    while len(replies) < len(asked):
        size = 1 if len(replies) < alone_until else batch_size
        batch = asked[len(replies) : len(replies) + size]
        before = np.stack([pixels.before for pixels in batch])
        after = np.stack([pixels.after for pixels in batch])
        try:
            with stages.timed("encode"):
                encoded = model.encode(before, after)
            with stages.timed("answer"):
                said = _replies(model, specs, encoded, len(batch), cascade)
                drawn = packed_masks(model.masks(encoded), model.name) if masks else [b""] * len(batch)
            replies += [Replies(*one) for one in zip(said, drawn, strict=True)]
        except ModelError as error:
            if len(batch) == 1:
                replies.append(error)
            elif isinstance(error, ModelOutOfMemory):
                batch_size = len(batch) // 2
                logger.info(
                    "%d chips do not fit into memory at once; going on with %d", len(batch), len(batch) // 2
                )
            else:
                alone_until = len(replies) + len(batch)
    return replies, batch_size


def _replies(
    model: ChangeModel, specs: Sequence[QuestionSpec], encoded: Any, count: int, cascade: bool
) -> list[list[Reply | None]]:
    """Replies for each of `count` encoded pairs, in the order of the questions.

    With `cascade` the yes/no question comes first, and only pairs that say yes are asked the rest; an
    answer that cannot be read counts as yes.
    """
    questions = [question_of(spec) for spec in specs]
    first = next((index for index, spec in enumerate(specs) if spec.task == "change"), None)
    if not cascade or first is None:
        return [list(row) for row in model.answer(encoded, questions)]
    rest = [index for index in range(len(specs)) if index != first]
    replies: list[list[Reply | None]] = []
    for (said,) in model.answer(encoded, [questions[first]]):
        replies.append([said if index == first else None for index in range(len(specs))])
    changed = [
        index
        for index, row in enumerate(replies)
        if read_answer(specs[first], row[first]).value is not False  # type: ignore[arg-type]
    ]
    if changed and rest:
        more = model.answer(encoded, [questions[index] for index in rest], changed)
        for pair, row in zip(changed, more, strict=True):
            for index, reply in zip(rest, row, strict=True):
                replies[pair][index] = reply
    return replies
