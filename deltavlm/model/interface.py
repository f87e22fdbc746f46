"""What the rest of the program knows of a model: pairs of pictures and questions in, replies out. Imports
no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask of every pair.

    `yes_no` makes the reply's score the probability of "yes"; `max_new_tokens` bounds the answer's length
    in tokens.
    """

    name: str
    prompt: str
    yes_no: bool = False
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said.

    `score` is the calibrated probability of "yes" for a yes/no question, else the mean log-probability of the
    answer's tokens (end of text included; 0 is certain, more negative is less sure).
    """

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Masks:
    """What changed, pixel by pixel, for N pairs; the first class is "none"."""

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]  # (N, classes, rows, cols), over the whole picture; sum 1

    @property
    def labels(self) -> Pixels:
        """(N, rows, cols): the index of the likeliest class."""
        labels: Pixels = self.probabilities.argmax(axis=1).astype(np.uint8)
        return labels


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
        """How it runs and what it was made of, as plain values: for the record in an output."""
        ...

    @property
    def chip_px(self) -> int:
        """Side of the pictures that it was trained on."""
        ...

    @property
    def training_gsd_m(self) -> float:
        """Metres a pixel of those pictures."""
        ...

    def auto_batch_size(self) -> int:
        """Pairs to ask about at once when nobody says how many."""
        ...


class ChangeModel(ModelFacts, Protocol):
    """A vision-language model of change: `encode` is paid once a pair, `answer` once a question."""

    @property
    def workers(self) -> int:
        """Batches to ask side by side, each by a thread of its own."""
        ...

    def init_worker(self) -> None:
        """Each of several threads calls this before it asks."""
        ...

    def encode(self, before: Pixels, after: Pixels) -> Any:
        """Question-free features of N pairs; `before` and `after` are (N, 3, H, W) uint8 RGB.

        Raises: ModelOutOfMemory when the batch does not fit.
        """
        ...

    def answer(
        self, encoded: Any, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Replies as [pair][question], of all pairs or of those with these indices.

        Raises: ModelOutOfMemory when the batch does not fit.
        """
        ...

    def answer_rows(self, encoded: Any, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """A reply for each (index of a pair, question), where pairs are asked different things.

        Raises: ModelOutOfMemory when the batch does not fit.
        """
        ...

    def masks(self, encoded: Any) -> Masks | None:
        """What changed in each pair, pixel by pixel; None where the model has no mask head."""
        ...
