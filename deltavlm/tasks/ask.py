"""Ask: a question of one's own, answered in free text."""

from __future__ import annotations

from collections.abc import Sequence

from deltavlm.errors import AnswerParseError
from deltavlm.tasks.text import clean, simplified

__all__ = ["format_answer", "parse", "score"]


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
