"""Chat turns about a pair of images, for models that follow instructions, and the answer in a reply.

The images come first and the question last, so that all questions about a pair have the same beginning.
Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from deltavlm.model.interface import Labelled, PairContext, Question

CHIP_PX = 256  # side of a chip; models that follow instructions are not made for one
THINK, THINK_END = "<think>", "</think>"  # around the reasoning of a model that reasons first
REASONING_TOKENS = 4096  # more than for the answer alone, for such a model
_REASONING = re.compile(rf"{THINK}.*?(?:{THINK_END}|\Z)", re.DOTALL)
_MARK = re.compile(
    r"<\|[^<>|\s]{1,60}\|>|<\uff5c[^<>\uff5c\s]{1,60}\uff5c>"  # as <|im_end|>, of most models
    r"|</?(?:s|pad|unk|bos|eos|image|video|img|IMG_CONTEXT|image_soft_token|fake_token_around_image|global-img"
    r"|row_\d+_col_\d+|(?:start|end)_of_(?:turn|image|utterance)|end_of_utterance)>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|SYSTEM_PROMPT)\]"
)
"""Tokens by which models know turns and images."""

BEFORE, AFTER = {"type": "image", "date": "before"}, {"type": "image", "date": "after"}
"""Places of the two images in a turn."""


class ChatFacts(Labelled):
    """Mixin for models that follow instructions: chips of any size and scale, no mask head, one worker."""

    __slots__ = ()

    @property
    def chip_px(self) -> int:
        return CHIP_PX

    @property
    def training_gsd_m(self) -> None:
        return None

    @property
    def phrasebook(self) -> str:
        return "generic"

    @property
    def reads_context(self) -> bool:
        return True

    @property
    def workers(self) -> int:
        return 1

    def init_worker(self) -> None:
        """Nothing to set up: there is one worker."""

    def masks(self, encoded: Any) -> None:
        """None: there is no mask head."""


def chat_turns(context: PairContext, question: Question) -> list[dict[str, Any]]:
    """Turns of a question about a pair, after its history: {"role", "content"}, where content is a list of
    {"type": "text", "text"} and the items BEFORE and AFTER, both in the first turn."""
    asked = [*(text for text, _ in question.history), question.prompt]
    turns = [_turn("user", *_images(context), _text(asked[0]))]
    for (_, answer), following in zip(question.history, asked[1:], strict=True):
        turns += [_turn("assistant", _text(answer)), _turn("user", _text(following))]
    return turns


def drop_reasoning(reply: str) -> str:
    """Answer in a reply, without the reasoning before it; empty if the reply ends while reasoning.

    >>> drop_reasoning("<think>Two roofs.</think> yes"), drop_reasoning("<think>Two")
    ('yes', '')
    >>> drop_reasoning("Two roofs.</think> yes")  # the prompt ends with <think>
    'yes'
    """
    return _REASONING.sub("", reply).rpartition(THINK_END)[2].strip()


def drop_marks(reply: str, marks: Iterable[str] = ()) -> str:
    """Reply without tokens of turns and images, the known ones and `marks`.

    Told as history in a later turn, one of an image would stand for an image that is not there.

    >>> drop_marks("Two <image>roofs.<|im_end|>"), drop_marks("<b>2</b> [roofs] <left>")
    ('Two roofs.', '<b>2</b> [roofs] <left>')
    """
    for mark in marks:
        reply = reply.replace(mark, "")
    return _MARK.sub("", reply).strip()


def _images(context: PairContext) -> list[dict[str, str]]:
    """Both images with their dates, and what is known about the pair."""
    before, after = (f" ({date})" if date else "" for date in (context.before_date, context.after_date))
    items = [
        _text(f"Two aerial or satellite images of the same place. First image, before{before}:"),
        BEFORE,
        _text(f"Second image, after{after}:"),
        AFTER,
    ]
    if context.gsd_m is not None:
        items.append(_text(f"One pixel is {context.gsd_m:.3g} m on the ground."))
    if context.evidence:
        items.append(_text(context.evidence))
    return items


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _turn(role: str, *content: dict[str, str]) -> dict[str, Any]:
    return {"role": role, "content": list(content)}
