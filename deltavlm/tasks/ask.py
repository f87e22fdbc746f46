"""Open question: a question of the user, answered in free text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from deltavlm.errors import AnswerParseError, InputError
from deltavlm.tasks.base import Task
from deltavlm.tasks.text import clean, simplify

__all__ = ["TASK", "format_answer", "parse", "question", "score"]


def question(text: str) -> str:
    """Clean a typed question: one line, without control characters.

    Raises: InputError when it is empty, has control characters, or is not UTF-8.
    """
    text = text.removeprefix("\ufeff")  # Windows editors begin files with a BOM
    if "\ufffd" in text:
        raise InputError("the question is not UTF-8 text; type it again")
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs") and not char.isspace():
            raise InputError(f"the question contains the control character {char!r}; type it again")
    line = clean(text)
    if not line:
        raise InputError("the question is empty; type a question")
    return line


def format_answer(value: str) -> str:
    """Clean the answer to one line."""
    return clean(value)


def parse(text: str) -> str:
    """Clean the answer to one line. Raises: AnswerParseError when it is empty."""
    answer = clean(text)
    if not answer:
        raise AnswerParseError("the answer is empty")
    return answer


def score(answer: str, references: Sequence[str]) -> dict[str, float]:
    """`exact`: 1 if the answer equals a reference, ignoring letter case and punctuation."""
    return {"exact": float(simplify(answer) in {simplify(reference) for reference in references})}


TASK = Task(name="open", parse=parse, format=format_answer, score=score, free_text=True)
