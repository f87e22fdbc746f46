"""Ask: a question of one's own, answered in free text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from deltavlm.errors import AnswerParseError, InputError
from deltavlm.tasks.base import Task
from deltavlm.tasks.text import clean, simplified

__all__ = ["TASK", "format_answer", "parse", "question", "score"]


def question(text: str) -> str:
    """The question as one clean line.

    Raises: InputError when there is none, or characters in it that nobody types.
    """
    text = text.removeprefix("\ufeff")  # Windows editors put it before everything
    if "\ufffd" in text:
        raise InputError("the question is not UTF-8 text; type it anew")
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs") and not char.isspace():
            raise InputError(f"the question has the control character {char!r} in it; type it anew")
    words = clean(text)
    if not words:
        raise InputError("the question is empty; say what you want to know")
    return words


def format_answer(value: str) -> str:
    """The answer as one clean line."""
    return clean(value)


def parse(text: str) -> str:
    """The answer as one clean line. Raises: AnswerParseError when it is empty."""
    answer = clean(text)
    if not answer:
        raise AnswerParseError("the answer is empty")
    return answer


def score(said: str, truth: Sequence[str]) -> dict[str, float]:
    """`exact`: 1 if the answer is one of the references, letter case and punctuation aside."""
    return {"exact": float(simplified(said) in {simplified(reference) for reference in truth})}


TASK = Task(name="open", parse=parse, format=format_answer, score=score, free_text=True)
