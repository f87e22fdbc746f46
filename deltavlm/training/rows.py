"""Question and answer rows as tensors for the loss.

R rows, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import IGNORED, Text
from deltavlm.model.tokenizer import Codec
from deltavlm.wording import normalise


@dataclass(frozen=True, slots=True)
class Rows:
    pairs: Tensor  # (R,) which pair a row is about
    question: Text
    text: Text  # begin, question, answer, end
    labels: Tensor  # (R, S) answer and end; IGNORED elsewhere


def make_rows(
    config: DeltaVLMConfig, codec: Codec, lessons: Sequence[Sequence[tuple[str, str]]], groups: int = 3
) -> list[Rows]:
    """Rows of all pairs' lessons, in `groups` of like length, so that little is spent on padding.

    Questions are worded as in use; answers are normalised.
    """
    rows: list[tuple[int, list[int], list[int]]] = []
    for pair, lesson in enumerate(lessons):
        for prompt, answer in lesson:
            asked = codec.encode(config.prompt.worded(prompt))
            rows.append((pair, asked, [*codec.encode(normalise(answer)), codec.eos]))
    rows.sort(key=lambda row: len(row[1]) + len(row[2]))
    size = -(-len(rows) // groups)
    return [_stack(config, codec, rows[at : at + size]) for at in range(0, len(rows), size)]


def _stack(config: DeltaVLMConfig, codec: Codec, rows: Sequence[tuple[int, list[int], list[int]]]) -> Rows:
    text = codec.batch([[codec.bos, *asked, *answer] for _, asked, answer in rows], "right")
    starts = torch.tensor([len(asked) + 1 for _, asked, _ in rows])
    labels = text.ids.masked_fill(text.mask == 0, IGNORED)
    labels = labels.masked_fill(torch.arange(labels.shape[1])[None] < starts[:, None], IGNORED)
    limit = config.qformer.max_text_tokens
    question = codec.batch([asked[-limit:] for _, asked, _ in rows], "right")
    return Rows(torch.tensor([pair for pair, _, _ in rows]), question, text, labels)
