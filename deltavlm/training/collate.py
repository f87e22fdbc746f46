"""Question and answer rows as tensors for the loss.

R rows, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import IGNORE_INDEX, Text
from deltavlm.model.tokenizer import Codec
from deltavlm.text_norm import normalise

MOST_ANSWER = 256  # tokens of an answer, as in the published training; its end is cut off


@dataclass(frozen=True, slots=True)
class Rows:
    pairs: Tensor  # (R,) which pair a row is about
    question: Text
    text: Text  # begin, question, answer, end
    labels: Tensor  # (R, S) answer and end; IGNORE_INDEX elsewhere

    def to(self, device: torch.device) -> Rows:
        return Rows(
            self.pairs.to(device), self.question.to(device), self.text.to(device), self.labels.to(device)
        )

    @property
    def tokens(self) -> int:
        """How many tokens are learnt."""
        return int((self.labels != IGNORE_INDEX).sum())


@dataclass(frozen=True, slots=True)
class _Row:
    pair: int
    question: list[int]
    prompt: list[int]
    answer: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def collate_rows(
    config: DeltaVLMConfig,
    codecs: tuple[Codec, Codec],
    lessons: Sequence[Sequence[tuple[str, str]]],
    groups: int | None = None,
) -> list[Rows]:
    """Rows of all pairs' lessons, in `groups` of like length, so that little is spent on padding: at most
    three, and not of fewer than 16 rows.

    `codecs` are those of the question to the Q-Former and of the language model's text. Questions are worded
    as in use; answers are normalised.
    """
    questions, codec = codecs
    rows: list[_Row] = []
    for pair, lesson in enumerate(lessons):
        for prompt, answer in lesson:
            worded = config.prompt.format(prompt)
            asked = questions.encode_question(worded, config.qformer.max_text_tokens)
            told = [*codec.encode(normalise(answer))[: MOST_ANSWER - 1], codec.eos]
            room = config.language.context - config.qformer.queries - len(told) - 1
            rows.append(_Row(pair, asked, [codec.start, *codec.encode(worded)[-room:]], told))
    rows.sort(key=lambda row: row.length)
    groups = groups or min(max(len(rows) // 16, 1), 3)
    size = -(-len(rows) // groups)
    return [_stack(questions, codec, rows[at : at + size]) for at in range(0, len(rows), size)]


def _stack(questions: Codec, codec: Codec, rows: Sequence[_Row]) -> Rows:
    text = codec.pad_batch([[*row.prompt, *row.answer] for row in rows], "right")
    starts = torch.tensor([len(row.prompt) for row in rows])
    labels = text.ids.masked_fill(text.mask == 0, IGNORE_INDEX)
    labels = labels.masked_fill(torch.arange(labels.shape[1])[None] < starts[:, None], IGNORE_INDEX)
    question = questions.pad_batch([row.question for row in rows], "right")
    return Rows(torch.tensor([row.pair for row in rows]), question, text, labels)
