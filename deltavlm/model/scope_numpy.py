"""Question scope in numpy, for inference; `scope` is the same as a torch module, for training.

R questions, W words, E width of a word, H hidden width.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from deltavlm.errors import ModelError
from deltavlm.model.config import ScopeConfig

__all__ = ["CLASSES", "KERNEL", "NumpyScope", "QuestionClass", "split_words", "word_buckets"]

QuestionClass = Literal["answerable", "follow_up", "unsupported"]
CLASSES: tuple[QuestionClass, ...] = get_args(QuestionClass)
"""An answerable question, one that is answerable if the turn before it was, and one that is not."""

MAX_WORDS, MAX_WORD_CHARS = 32, 24  # of a question, the last ones; of a word, the first ones
KERNEL = 3  # words that a convolution sees
WORD = re.compile(r"\w+")

Floats = npt.NDArray[np.float32]


def split_words(text: str) -> list[str]:
    """Words of a question, the last ones of a long one; one empty word if there is none."""
    return WORD.findall(text.lower())[-MAX_WORDS:] or [""]


@lru_cache(maxsize=65_536)
def word_buckets(word: str, buckets: int) -> tuple[int, ...]:
    """Hash buckets of a word: its own first, then of its beginning and end, and its 3-grams and 4-grams."""
    word = word[:MAX_WORD_CHARS]
    marked = f"<{word}>"
    grams = [f"={word}", f"^{word[:2]}", f"${word[-2:]}"]
    grams += [marked[start : start + size] for size in (3, 4) for start in range(len(marked) - size + 1)]
    return tuple(zlib.crc32(gram.encode()) % buckets for gram in grams)


@dataclass(frozen=True)
class NumpyScope:
    """Classifier of questions with the tensors of `scope.QuestionScope`, by their names there."""

    config: ScopeConfig
    tensors: Mapping[str, Floats]

    @classmethod
    def of_tensors(
        cls, config: ScopeConfig, tensors: Mapping[str, Floats], prefix: str = "scope."
    ) -> NumpyScope:
        """Scope of the tensors of a checkpoint. Raises: ModelError if one is missing or of another shape."""
        width, hidden = config.width, config.hidden
        shapes = {
            "words.weight": (config.buckets, width),
            "first.weight": (hidden, width, KERNEL),
            "first.bias": (hidden,),
            "second.weight": (hidden, hidden, KERNEL),
            "second.bias": (hidden,),
            "classes.weight": (len(CLASSES), 2 * hidden),
            "classes.bias": (len(CLASSES),),
        }
        for name, shape in shapes.items():
            found = tensors.get(prefix + name)
            if found is None or found.shape != shape:
                raise ModelError(f"the weights have no {prefix}{name} of shape {shape}; copy the file again")
        return cls(config, {name: tensors[prefix + name].astype(np.float32) for name in shapes})

    def logits(self, text: str) -> Floats:
        """Logits (3,) of CLASSES."""
        table = self.tensors["words.weight"]
        rows = []
        for word in split_words(text):
            own, *grams = word_buckets(word, self.config.buckets)
            rows.append(table[own] + table[grams].mean(axis=0))
        first = _gelu(self._convolve("first", np.stack(rows)))
        hidden_WH = first + _gelu(self._convolve("second", first))
        pooled = np.concatenate([hidden_WH.max(axis=0), hidden_WH.mean(axis=0)])
        result: Floats = self.tensors["classes.weight"] @ pooled + self.tensors["classes.bias"]
        return result

    def probability(self, question: str, *, after_answer: bool) -> float:
        """Probability that a question can be answered.

        after_answer: the turn before it was answered, so that a question that refers to it can be too.
        """
        logits = self.logits(question).astype(np.float64)
        shares = np.exp(logits - logits.max())
        answerable, follow_up, _ = (shares / shares.sum()).tolist()
        return float(answerable + follow_up * after_answer)

    def supports(self, question: str, *, after_answer: bool = False) -> bool:
        """True if a question can be answered."""
        return self.probability(question, after_answer=after_answer) >= 0.5

    def _convolve(self, name: str, x_WE: Floats) -> Floats:
        """Convolution over words, zeros beyond the ends: (W, H)."""
        weight_HEK = self.tensors[f"{name}.weight"]
        padded = np.pad(x_WE, ((KERNEL // 2, KERNEL // 2), (0, 0)))
        windows = np.stack([padded[offset : offset + len(x_WE)] for offset in range(KERNEL)], axis=2)
        result: Floats = np.einsum("wek,hek->wh", windows, weight_HEK) + self.tensors[f"{name}.bias"]
        return result


def _gelu(x: Floats) -> Floats:
    """Gaussian error linear unit, by the error function."""
    erf = np.array([math.erf(value / math.sqrt(2)) for value in x.ravel().tolist()], np.float32)
    return 0.5 * x * (1 + erf.reshape(x.shape))
