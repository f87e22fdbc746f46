"""Caption: one sentence that describes the changes."""

from __future__ import annotations

from collections.abc import Sequence

from deltavlm.errors import AnswerParseError
from deltavlm.tasks.base import Task
from deltavlm.tasks.text import NO_CHANGE, clean, simplify

__all__ = ["PROMPT", "TASK", "format_answer", "parse", "score"]

PROMPT = "Please briefly describe the changes in these two images."


def format_answer(value: str) -> str:
    """Clean the sentence to one line, as in the training data."""
    return clean(value)


def parse(text: str) -> str:
    """Clean the sentence to one line. Raises: AnswerParseError when it has no words."""
    sentence = clean(text)
    if not simplify(sentence):
        raise AnswerParseError(f"no caption in {text!r}: expected one sentence")
    return sentence


def score(sentence: str, references: Sequence[str]) -> dict[str, float]:
    """`exact`: 1 if the sentence equals a reference, ignoring letter case and punctuation.

    BLEU, ROUGE, METEOR and CIDEr are metrics of all answers together: see `deltavlm.metrics.text`.
    """
    return {"exact": float(simplify(sentence) in {simplify(reference) for reference in references})}


TASK = Task(
    name="caption",
    prompt=PROMPT,
    parse=parse,
    format=format_answer,
    score=score,
    free_text=True,
    unchanged=NO_CHANGE[0],
)
