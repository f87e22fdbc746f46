"""Protocol of a change model, and its questions, replies and masks; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
CHANGED_PIXEL = 0.5  # a pixel is changed where the probabilities of all changes sum to this


class AnswerForm(Protocol):
    """Set of the texts that an answer may be, read from left to right."""

    @property
    def only_text(self) -> str | None:
        """The text, where the set has one; None where it has more."""
        ...

    def begins(self, text: str) -> bool:
        """True if an answer may begin with this text."""
        ...

    def ends(self, text: str) -> bool:
        """True if this text is a complete answer."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A question to ask about a pair.

    `yes_no` makes the reply's score the probability of "yes"; `max_new_tokens` is the maximum length of the
    answer in tokens. A question with `typed` may be outside of what the model was taught; a model that can
    tell answers it with `messages.UNSUPPORTED`.

    A model that decodes consistently (`Decoding.consistent`) answers the questions `agrees_with` first,
    asked or not; `form` makes of the texts of those answers the form of this one. An earlier answer to
    the same prompt that has the form is the answer.
    """

    name: str = field(compare=False)
    prompt: str
    yes_no: bool = False
    max_new_tokens: int = 64
    typed: str = ""  # the question alone, if it is in somebody's own words
    after_answer: bool = False  # in a conversation: the turn before was answered, so it may refer to that
    threshold: float = 0.5  # of a yes/no question: lowest P(yes) that a consistent model answers with yes
    agrees_with: tuple[Question, ...] = ()
    form: Callable[..., AnswerForm] | None = None
    counted: bool = False  # `form` also takes the mask head's number of new buildings, by this name
    history: tuple[tuple[str, str], ...] = ()  # earlier (question, answer) turns that are not in the prompt
    schema: str = ""  # JSON schema of the answer, where it is to be JSON


@dataclass(frozen=True, slots=True)
class PairContext:
    """What is known about a pair beside its pixels, for models that read any text; others ignore it."""

    before_date: str = ""
    after_date: str = ""
    gsd_m: float | None = None  # ground size of a pixel
    evidence: str = ""  # findings of another model, in words


class StandardTask(Protocol):
    """Task with a standard question, as `tasks` defines them."""

    @property
    def name(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def yes_no(self) -> bool: ...

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def agrees_with(self) -> tuple[Any, ...]:
        """Tasks whose answers about the same pair come first, and decide on the form of this one's."""
        ...

    @property
    def counted(self) -> bool: ...

    @property
    def form(self) -> Callable[..., AnswerForm] | None: ...


class StandardPhrase(Protocol):
    """Standard question in the words of a kind of model, as `tasks.phrasing` defines them."""

    @property
    def prompt(self) -> str: ...

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def schema(self) -> str: ...


def standard_question(
    task: StandardTask, threshold: float | None = None, phrase: StandardPhrase | None = None
) -> Question:
    """Standard question of a task, which agrees with those of other tasks.

    threshold: lowest P(yes) of a changed pair; None for 0.5.
    phrase: the question in other words, for a model whose answers need not agree.
    """
    threshold = 0.5 if threshold is None else threshold
    if phrase is not None:
        return Question(
            task.name,
            phrase.prompt,
            yes_no=task.yes_no,
            max_new_tokens=phrase.max_new_tokens,
            threshold=threshold,
            schema=phrase.schema,
        )
    return Question(
        task.name,
        task.prompt,
        yes_no=task.yes_no,
        max_new_tokens=task.max_new_tokens,
        threshold=threshold,
        agrees_with=tuple(standard_question(each, threshold) for each in task.agrees_with),
        form=task.form,
        counted=task.counted,
    )


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to a question, with a score.

    `score` is the calibrated probability of "yes" for a yes/no question, else the mean log-probability of the
    answer's tokens, end of text included (0 is certain, more negative is less certain), also where it did not
    choose them freely; 0 where the answers that it agrees with leave one text, which the model is not asked
    for. NaN where the model was not taught to answer.
    """

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Masks:
    """Change masks of N pairs: class probabilities per mask pixel; the first class is "none"."""

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]  # (N, classes, rows, cols), covering the image; sum 1 over classes

    @property
    def labels(self) -> Pixels:
        """Index of the class of each pixel, (N, rows, cols), by the rule that polygons are drawn by: the most
        probable change where the probabilities of all changes sum to `CHANGED_PIXEL`, else "none"."""
        changes = self.probabilities[:, 1:]
        is_changed = changes.sum(axis=1) >= CHANGED_PIXEL
        return np.where(is_changed, changes.argmax(axis=1) + 1, 0).astype(np.uint8)


class _Identified(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


class Labelled:
    """Mixin for models: `label`, the identity of a model as outputs record it."""

    __slots__ = ()

    @property
    def label(self: _Identified) -> str:
        """Name and fingerprint, such as "nano 0123456789abcdef"."""
        return f"{self.name} {self.fingerprint}"


class CheckpointFacts(Labelled):
    """Mixin for models of a checkpoint: what its configuration says, no context, one worker."""

    config: Any
    device: str
    fingerprint: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label} on {self.device}>"

    @property
    def name(self) -> str:
        return str(self.config.name)

    @property
    def chip_px(self) -> int:
        return int(self.config.chip_px)

    @property
    def training_gsd_m(self) -> float:
        return float(self.config.training_gsd_m)

    @property
    def reads_context(self) -> bool:
        return False

    @property
    def workers(self) -> int:
        return 1

    def init_worker(self) -> None:
        """Nothing to set up: there is one worker."""


class ModelFacts(Protocol):
    """Identity and properties of a model, wherever it runs."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of configuration, weights and tokenizer."""
        ...

    @property
    def label(self) -> str:
        """Name and fingerprint, as outputs record them; see `Labelled`."""
        ...

    @property
    def device(self) -> str: ...

    @property
    def details(self) -> dict[str, Any]:
        """Runtime settings and sources as plain values, for the provenance record of an output."""
        ...

    @property
    def chip_px(self) -> int:
        """Side of the training images."""
        ...

    @property
    def training_gsd_m(self) -> float | None:
        """Ground sampling distance of the training images, in metres per pixel; None for any."""
        ...

    @property
    def phrasebook(self) -> str:
        """Name of the questions that the model understands, see `tasks.phrasing`."""
        ...

    @property
    def reads_context(self) -> bool:
        """True if answers depend on the `PairContext` too, not on the pixels alone."""
        ...

    def auto_batch_size(self) -> int:
        """Default number of pairs per batch."""
        ...


class ChangeModel(ModelFacts, Protocol):
    """Vision-language model for pairs of images: `encode` runs once per pair, `answer` once per question."""

    @property
    def workers(self) -> int:
        """Number of threads that run batches concurrently."""
        ...

    def init_worker(self) -> None:
        """Set up the calling thread; called once by each of several worker threads."""
        ...

    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> Any:
        """Encode N pairs; `before` and `after` are (N, 3, H, W) uint8 RGB, `contexts` one for each or none.

        Raises: ModelOutOfMemory when the batch does not fit.
        """
        ...

    def answer(
        self, encoded: Any, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Answer every question about all pairs, or those with the indices `pairs`: [pair][question].

        Raises: ModelOutOfMemory when the batch does not fit.
        """
        ...

    def answer_rows(self, encoded: Any, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Answer rows of (index of a pair, question), in their order.

        Raises: ModelOutOfMemory when the batch does not fit.
        """
        ...

    def masks(self, encoded: Any) -> Masks | None:
        """Change masks of the pairs; None if the model has no mask head."""
        ...
