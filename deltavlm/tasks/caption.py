"""Caption: one sentence that says what changed."""

from __future__ import annotations

from collections.abc import Sequence

from deltavlm.errors import AnswerParseError
from deltavlm.tasks.base import Task
from deltavlm.tasks.text import NO_CHANGE, clean, simplified

__all__ = ["PROMPT", "TASK", "format_answer", "parse", "score"]

PROMPT = "Please briefly describe the changes in these two images."


def format_answer(value: str) -> str:
    """The sentence as the model is taught to write it: one clean line."""
    return clean(value)


def parse(text: str) -> str:
    """The sentence. Raises: AnswerParseError when there is none."""
    sentence = clean(text)
    if not simplified(sentence):
        raise AnswerParseError(f"no caption in {text!r}: expected one sentence")
    return sentence


def score(said: str, truth: Sequence[str]) -> dict[str, float]:
    """`exact`: 1 if the sentence is one of the references, letter case and punctuation aside.

    BLEU, ROUGE and their kin need the whole set of answers: see `deltavlm.metrics`.
    """
    return {"exact": float(simplified(said) in {simplified(reference) for reference in truth})}


TASK = Task(
    name="caption",
    prompt=PROMPT,
    parse=parse,
    format=format_answer,
    score=score,
    free_text=True,
    unchanged=NO_CHANGE[0],
)
