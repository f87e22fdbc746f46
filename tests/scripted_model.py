"""A ChangeModel that says what it is told to, and remembers what it was asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deltavlm.errors import ModelError, ModelOutOfMemory
from deltavlm.model.calibration import apply_calibration, logits
from deltavlm.model.config import ScoreCalibration
from deltavlm.model.interface import Labelled, Masks, PairContext, Question, Reply

UNCHANGED = {
    "caption": "there is no difference",
    "change": "no",
    "count": "there are no changes in roads or buildings",
    "location": "roads [] buildings []",
}
CHANGED = {
    "caption": "two houses were built beside the new road",
    "change": "yes",
    "count": "1 new road and 2 new buildings",
    "location": "roads ['center-left'] buildings ['top-left', 'center-center']",
}

CONTRADICTIONS = (
    "changed_but_caption_denies",
    "counted_but_caption_denies",
    "buildings_counted_without_cell",
)


def contradicting(
    before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8], question: Question
) -> str | Reply:
    """Script in which every changed chip breaks the consistency rules CONTRADICTIONS."""
    answers = UNCHANGED | {"change": "yes", "count": "no new roads and 2 new buildings"}
    return reply((answers if (before != after).any() else UNCHANGED)[question.name])


def reply(text: str) -> Reply:
    """`yes` and `no` come with a probability, every other text with a log-probability."""
    return Reply(text, {"yes": 0.9, "no": 0.1}.get(text, -0.25))


@dataclass
class ScriptedModel(Labelled):
    """Answers by `script`, else from `queue`, else CHANGED where the two pictures differ, else UNCHANGED.

    `most` pairs fit into memory at once. A pair whose `after` is all `poison` makes the whole batch fail.
    """

    queue: Iterable[str | Reply] = ()
    script: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8], Question], str | Reply] | None = None
    most: int | None = None
    poison: int | None = None
    name: str = "scripted"
    fingerprint: str = "0123456789abcdef"
    device: str = "cpu"
    details: dict[str, Any] = field(default_factory=dict)
    chip_px: int = 32
    training_gsd_m: float | None = 0.5
    phrasebook: str = "deltavlm"
    reads_context: bool = False
    workers: int = 1
    calibration: ScoreCalibration | None = None
    batches: list[int] = field(default_factory=list)  # pairs in each call of encode
    contexts: list[PairContext] = field(default_factory=list)  # of all pairs, in order
    history: list[tuple[Question, ...]] = field(default_factory=list)  # questions in each call of answer

    def __post_init__(self) -> None:
        self.replies = deque(self.queue)

    def auto_batch_size(self) -> int:
        return 16

    def init_worker(self) -> None:
        pass

    def encode(
        self,
        before: npt.NDArray[np.uint8],
        after: npt.NDArray[np.uint8],
        contexts: Sequence[PairContext] = (),
    ) -> Any:
        assert before.shape == after.shape
        assert before.dtype == after.dtype == np.uint8
        assert before.ndim == 4
        assert before.shape[1] == 3
        self.batches.append(len(before))
        self.contexts += contexts
        if self.most is not None and len(before) > self.most:
            raise ModelOutOfMemory(f"{len(before)} pairs do not fit")
        if self.poison is not None and any((picture == self.poison).all() for picture in after):
            raise ModelError("this pair cannot be answered")
        return list(zip(before, after, strict=True))

    def answer(
        self, encoded: Any, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        self.history.append(tuple(questions))
        encoded = encoded if pairs is None else [encoded[pair] for pair in pairs]
        return [[self._say(before, after, question) for question in questions] for before, after in encoded]

    def answer_rows(self, encoded: Any, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        self.history.append(tuple(question for _, question in rows))
        return [self._say(*encoded[pair], question) for pair, question in rows]

    def masks(self, encoded: Any) -> Masks | None:
        """A house in the upper left quarter of every picture that changed."""
        shares = np.zeros((len(encoded), 2, 4, 4), np.float32)
        for share, (before, after) in zip(shares, encoded, strict=True):
            share[0] = 1
            if (before != after).any():
                share[:, :2, :2] = [[[0.1]], [[0.9]]]
        return Masks(("none", "building_built"), shares)

    def _say(self, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8], question: Question) -> Reply:
        if self.script is not None:
            said = self.script(before, after, question)
        elif self.replies:
            said = self.replies.popleft()
        else:
            answers = CHANGED if (before != after).any() else UNCHANGED
            said = answers.get(question.name, "nothing to say")
        said = said if isinstance(said, Reply) else reply(said)
        if self.calibration is None or not question.yes_no:
            return said
        return Reply(said.text, float(apply_calibration(self.calibration, logits(said.score))))
