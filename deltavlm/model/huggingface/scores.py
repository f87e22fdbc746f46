"""Scores of generated answers: P(yes) of the first token of an answer, log-probabilities of all tokens.

B rows of a batch, V words of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from deltavlm.model.chat_turns import THINK, THINK_END

BLANKS = "Ġ▁ "  # as a tokenizer writes the blank before a word


def word_ids(vocabulary: Mapping[str, int], word: str) -> tuple[int, ...]:
    """Tokens of a vocabulary that are a word, in any case and with or without a blank before it.

    >>> word_ids({"yes": 3, "ĠYes": 5, "yesterday": 7, "▁no": 9}, "yes")
    (3, 5)
    """
    return tuple(sorted(id_ for token, id_ in vocabulary.items() if token.lstrip(BLANKS).lower() == word))


@dataclass(frozen=True)
class YesNo:
    """Tokens that mean yes and no; both empty for a tokenizer without such tokens."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, vocabulary: Mapping[str, int]) -> YesNo:
        yes, no = word_ids(vocabulary, "yes"), word_ids(vocabulary, "no")
        return cls(yes, no) if yes and no else cls((), ())

    def margin(self, logits: Tensor) -> Tensor:
        """Log-odds of yes against no, (B,), of logits (B, V); NaN without tokens."""
        if not self.yes:
            return logits.new_full((len(logits),), math.nan)
        return logits[:, list(self.yes)].logsumexp(dim=1) - logits[:, list(self.no)].logsumexp(dim=1)


@dataclass
class Recorder(LogitsProcessor):
    """Log-probability of the chosen token, and log-odds of yes, at each step of greedy decoding."""

    yes_no: YesNo
    log_probs: list[Tensor] = field(default_factory=list)  # (B,) each
    margins: list[Tensor] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float()
        self.log_probs.append(logits.amax(dim=1) - logits.logsumexp(dim=1))
        self.margins.append(self.yes_no.margin(logits))
        return scores

    def rows(self) -> tuple[list[list[float]], list[list[float]]]:
        """Log-probabilities and log-odds as [row][step]."""
        log_probs, margins = (torch.stack(steps, dim=1).tolist() for steps in (self.log_probs, self.margins))
        return log_probs, margins


def answer_start(tokenizer: Any, ids: Sequence[int], *, reasons: bool = False) -> int:
    """Index of the first token of the answer: 0, or the first after the reasoning that is no blank; the
    number of tokens if the reply ends while reasoning, with which the prompt began it if `reasons`."""
    text = tokenizer.decode(ids)
    if THINK_END not in text:
        start = text.lstrip()[: len(THINK)]  # perhaps cut inside <think>
        return len(ids) if reasons or (start and THINK.startswith(start)) else 0
    ends = text.count(THINK_END)
    start = next(end for end in range(len(ids) + 1) if tokenizer.decode(ids[:end]).count(THINK_END) == ends)
    while start < len(ids) and not tokenizer.decode(ids[start : start + 1]).strip():
        start += 1
    return start
