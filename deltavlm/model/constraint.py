"""Constrained greedy decoding: the most likely of the tokens with which an answer keeps its form.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltavlm.messages import UNSUPPORTED
from deltavlm.model.interface import AnswerForm


class AnyAnswer:
    """Form of all texts without the first word of `messages.UNSUPPORTED`."""

    only_text = None

    def begins(self, text: str) -> bool:
        """
        >>> [AnyAnswer().begins(text) for text in ("the", "this", "in the middle this")]
        [True, False, False]
        """
        return UNSUPPORTED.split()[0] not in text.split()

    def ends(self, text: str) -> bool:
        return bool(text.strip()) and self.begins(text)


@dataclass(slots=True)
class Constraint:
    """Text of one answer so far, and the form that it keeps with every token."""

    form: AnswerForm
    pieces: Sequence[str]  # text of each token, `Codec.pieces`
    eos: int
    text: str = ""

    def choose(self, token: int, logits_V: npt.NDArray[np.float32]) -> int:
        """Most likely token that keeps the form, which the text then ends with; end of text if there is none.

        token: the most likely of all, which nearly always does.
        """
        if not self._allows(token):
            ranked = np.argsort(-logits_V, kind="stable").tolist()
            token = next((each for each in ranked if self._allows(each)), self.eos)
        if token != self.eos:
            self.text += self.pieces[token]
        return token

    def _allows(self, token: int) -> bool:
        if token == self.eos:
            return self.form.ends(self.text.removeprefix(" "))
        piece = self.pieces[token]
        return bool(piece) and self.form.begins((self.text + piece).removeprefix(" "))
