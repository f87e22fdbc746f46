"""Inference: ask the model about a batch of chips, in sub-batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ModelError, ModelOutOfMemory
from deltavlm.messages import pluralize
from deltavlm.model.interface import ChangeModel, PairContext, Reply
from deltavlm.pipeline.answers import in_words_of_task, phrasebook_of, question_of, read_answer
from deltavlm.pipeline.evidence import evidence_of
from deltavlm.pipeline.mask_codec import encode_masks
from deltavlm.pipeline.summary import StageTimes
from deltavlm.tasks.evidence import Evidence
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["BatchReplies", "ChipImages", "ChipReplies", "InferenceOptions", "run_batches"]

logger = logging.getLogger(__name__)


class ChipImages(Protocol):
    """Images of a chip as the model sees them, (3, size, size) RGB each."""

    @property
    def before(self) -> NDArray[np.uint8]: ...

    @property
    def after(self) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, slots=True)
class ChipReplies:
    """Replies of the model about one chip."""

    replies: list[Reply | None]  # in the order of the questions; None where it was not asked
    mask: bytes = b""  # `mask_codec.encode_masks`, if masks are kept
    evidence: Evidence | None = None  # of another model, if there is one


@dataclass(frozen=True, slots=True)
class InferenceOptions:
    """Questions, and how they are put to the model."""

    questions: tuple[QuestionSpec, ...]
    cascade: bool = False  # ask only about chips that changed, by their evidence or the yes/no question
    threshold: float | None = None  # lowest score of a changed chip; None: as the model answers
    masks: bool = False


@dataclass(frozen=True, slots=True)
class BatchReplies:
    """Replies about a batch of chips, or the error of each that failed; and the batch size that fits."""

    chips: list[ChipReplies | ModelError]
    batch_size: int
    times: StageTimes


def run_batches(
    model: ChangeModel,
    options: InferenceOptions,
    images: Sequence[ChipImages],
    batch_size: int,
    contexts: Sequence[PairContext] = (),
) -> BatchReplies:
    """Ask the questions about each chip; `contexts`, if any, are those of the chips.

    A batch that does not fit into memory is halved, and the smaller size stays. A batch that fails otherwise
    is repeated chip by chip, so that one bad chip does not take others with it.
    """
    times = StageTimes()
    chips: list[ChipReplies | ModelError] = []
    single_until = 0
    while len(chips) < len(images):
        size = 1 if len(chips) < single_until else batch_size
        batch = images[len(chips) : len(chips) + size]
        before = np.stack([pixels.before for pixels in batch])
        after = np.stack([pixels.after for pixels in batch])
        try:
            with times.timed("encode"):
                encoded = model.encode(before, after, contexts[len(chips) : len(chips) + size])
            with times.timed("answer"):
                replies = _answer(model, options, encoded, len(batch))
                masks = (
                    encode_masks(model.masks(encoded), model.name) if options.masks else [b""] * len(batch)
                )
            evidence: Sequence[Evidence | None] = evidence_of(encoded) or [None] * len(batch)
            chips += [ChipReplies(*chip) for chip in zip(replies, masks, evidence, strict=True)]
        except ModelError as error:
            if len(batch) == 1:
                chips.append(error)
            elif isinstance(error, ModelOutOfMemory):
                batch_size = len(batch) // 2
                logger.info(
                    "a batch of %s does not fit into memory; continuing with %d",
                    pluralize(len(batch), "chip"),
                    batch_size,
                )
            else:
                single_until = len(chips) + len(batch)
    return BatchReplies(chips, batch_size, times)


def _answer(
    model: ChangeModel, options: InferenceOptions, encoded: Any, count: int
) -> list[list[Reply | None]]:
    """Replies about each of `count` encoded pairs, in the order of the questions.

    With `cascade`, pairs that are unchanged by their evidence are not asked about. Without evidence the
    yes/no question comes first, and only changed pairs are asked the others; an answer that cannot be parsed
    counts as yes.
    """
    specs, book = options.questions, phrasebook_of(model)
    questions = [question_of(spec, options.threshold, book) for spec in specs]

    def ask(asked: Sequence[int], pairs: Sequence[int] | None = None) -> list[list[Reply]]:
        """Replies to the questions with these indices, [pair][question]."""
        rows = model.answer(encoded, [questions[index] for index in asked], pairs)
        return [
            [in_words_of_task(specs[index], reply, book) for index, reply in zip(asked, row, strict=True)]
            for row in rows
        ]

    evidence = evidence_of(encoded)
    first = next((index for index, spec in enumerate(specs) if spec.task == "change"), None)
    replies: list[list[Reply | None]] = [[None] * len(specs) for _ in range(count)]
    pending, changed = list(range(len(specs))), list(range(count))  # questions, and pairs to ask them about
    if options.cascade and evidence is not None:
        changed = [pair for pair, each in enumerate(evidence) if each.changed is not False]
    elif options.cascade and first is not None:
        pending.remove(first)
        changed = []
        for pair, (reply,) in enumerate(ask([first])):
            replies[pair][first] = reply
            if read_answer(specs[first], reply, options.threshold).value is not False:
                changed.append(pair)
    if changed and pending:
        for pair, row in zip(changed, ask(pending, changed), strict=True):
            for index, reply in zip(pending, row, strict=True):
                replies[pair][index] = reply
    return replies
