"""Dialogue: several questions about one pair, each seeing the turns before it."""

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
    """The prompt of the next turn: ``q <Q1> a <A1> q <Q2>``, normalised, of at most `max_words` words.

    turns: (question, answer) pairs, oldest first. Where all do not fit, the oldest turns are dropped;
    the question that is asked now is always there and whole, even when it alone is longer.

    >>> prompt_with_history([("Has it changed?", "Yes.")], "How many roads?")
    'q has it changed? a yes q how many roads?'
    """
    said = ["q " + normalise(question)]
    room = max_words - len(said[0].split())
    for asked, answered in reversed(turns):
        turn = f"q {normalise(asked)} a {normalise(answered)}"
        room -= len(turn.split())
        if room < 0:
            break
        said.insert(0, turn)
    return " ".join(said)


TASK = Task(name="dialogue", parse=parse, format=format_answer, score=score, free_text=True)
