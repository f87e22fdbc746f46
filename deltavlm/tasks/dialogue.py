"""Dialogue: several questions about one image pair, each with the earlier turns as its history."""

from __future__ import annotations

from collections.abc import Sequence

from deltavlm.tasks import classify
from deltavlm.tasks.ask import format_answer, parse, score
from deltavlm.tasks.base import Task
from deltavlm.text_norm import normalise

__all__ = ["MAX_WORDS", "TASK", "TURNS", "format_answer", "parse", "prompt_with_history", "score"]

MAX_WORDS = 50

# The three turns of a ChangeChat dialogue.
TURNS = (
    classify.PROMPT,
    "If changes have occurred, count the number of road and building changes separately.",
    "Based on the above analysis, please describe the changes of these two images in detail.",
)


def prompt_with_history(turns: Sequence[tuple[str, str]], question: str, max_words: int = MAX_WORDS) -> str:
    """Prompt of the next turn: ``q <Q1> a <A1> q <Q2>``, normalised, of at most `max_words` words.

    turns: (question, answer) pairs, oldest first. The oldest turns that do not fit are dropped; the new
    question is never cut, even if it alone is longer.

    >>> prompt_with_history([("Has it changed?", "Yes.")], "How many roads?")
    'q has it changed? a yes q how many roads?'
    """
    prompt = "q " + normalise(question)
    for earlier_question, answer in reversed(turns):
        longer_prompt = f"q {normalise(earlier_question)} a {normalise(answer)} {prompt}"
        if len(longer_prompt.split()) > max_words:
            break
        prompt = longer_prompt
    return prompt


TASK = Task(name="dialogue", parse=parse, format=format_answer, score=score, free_text=True)
