"""From a reply to a value: which task reads which answer, and what is asked of the model for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deltavlm.errors import AnswerParseError
from deltavlm.model.interface import Question, Reply
from deltavlm.tasks import ask, caption, classify, count, locate
from deltavlm.tasks.questions import ANSWER_TOKENS, QuestionSpec, TaskName
from deltavlm.tasks.text import NO_CHANGE, clean

__all__ = ["Answer", "question_of", "read_answer", "unchanged"]

_PARSE: Mapping[TaskName, Callable[[str], Any]] = {
    "caption": caption.parse,
    "change": classify.parse,
    "count": count.parse,
    "location": locate.parse,
    "open": ask.parse,
}
_NO_CHANGE: Mapping[TaskName, str] = {
    "caption": NO_CHANGE[0],
    "count": count.format_answer(count.Counts(0, 0)),
    "location": locate.format_answer(locate.Cells()),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said to one question. The text is always kept; the value is None where it cannot be read."""

    task: TaskName
    text: str
    value: Any  # str, bool, Counts or Cells, as the task reads it
    score: float | None  # None where the model gave no finite number


def question_of(spec: QuestionSpec) -> Question:
    """What the model is asked for one entry of the question set."""
    return Question(
        name=spec.name,
        prompt=spec.prompt,
        yes_no=spec.task == "change",
        max_new_tokens=ANSWER_TOKENS.get(spec.task, 64),
    )


def unchanged(spec: QuestionSpec) -> Answer | None:
    """What stands for the answer where the model has said that nothing changed and was not asked further:
    the standard sentence of no change, without a score. None for a question of the user's own."""
    text = _NO_CHANGE.get(spec.task)
    return None if text is None else Answer(spec.task, text, _PARSE[spec.task](text), None)


def read_answer(spec: QuestionSpec, reply: Reply) -> Answer:
    """The reply cleaned to one line, and its value if the task can read it."""
    text = clean(reply.text)
    try:
        value = _PARSE[spec.task](text)
    except AnswerParseError:
        value = None
    return Answer(spec.task, text, value, reply.score if math.isfinite(reply.score) else None)
