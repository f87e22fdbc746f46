"""Change classification: the yes/no question whether anything changed."""

from __future__ import annotations

import re

from deltavlm.errors import AnswerParseError
from deltavlm.tasks.base import Task
from deltavlm.tasks.text import says_no_change, simplify

__all__ = ["PROMPT", "TASK", "format_answer", "parse", "score"]

PROMPT = "Please judge whether these two images have changed. Please answer yes or no."

_ECHO = re.compile(r"(yes|no) (or|and) (yes|no)\b")  # "yes or no": the question repeated


def format_answer(value: bool) -> str:
    """`"yes"` when something changed, else `"no"`."""
    return "yes" if value else "no"


def parse(text: str) -> bool:
    """True for yes. The first word decides; a sentence that states no change is a no.

    >>> parse("Yes, two houses were built."), parse("No."), parse("there is no difference")
    (True, False, False)

    Raises: AnswerParseError for any other text.
    """
    words = simplify(text)
    first = words.partition(" ")[0]
    if first in ("yes", "no") and not _ECHO.match(words):
        return first == "yes"
    if says_no_change(words):
        return False
    raise AnswerParseError(f"neither yes nor no in {text!r}")


def score(predicted: bool, truth: bool) -> dict[str, float]:
    """`correct`: 1 if the answer is right."""
    return {"correct": float(predicted == truth)}


TASK = Task(
    name="change",
    prompt=PROMPT,
    parse=parse,
    format=format_answer,
    score=score,
    max_new_tokens=4,
    yes_no=True,
    unchanged=format_answer(False),
)
