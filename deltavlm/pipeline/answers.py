"""Answers: questions for the model from a question set, and values parsed from its replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from deltavlm.errors import AnswerParseError, ConfigError
from deltavlm.model.interface import ModelFacts, Question, Reply, standard_question
from deltavlm.tasks import TASKS, SingleTurnTask
from deltavlm.tasks.phrasing import DELTAVLM, PHRASEBOOKS, Phrasebook
from deltavlm.tasks.questions import QuestionSpec, task_of
from deltavlm.tasks.text import clean, says_unsupported

__all__ = [
    *("Answer", "AnswerStatus", "answer_for_unchanged", "check_threshold", "in_words_of_task"),
    *("phrasebook_of", "question_of", "read_answer", "with_history"),
]

AnswerStatus = Literal["answered", "unsupported"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to one question. The text is always kept; the value is None where it cannot be parsed."""

    task: SingleTurnTask
    text: str
    value: Any  # str, bool, Counts or Cells, as the task reads it
    score: float | None  # None where the model gave no finite number

    @property
    def status(self) -> AnswerStatus:
        """ "unsupported" if the model says that it was not taught to answer the question."""
        return "unsupported" if says_unsupported(self.text) else "answered"


def phrasebook_of(model: ModelFacts) -> Phrasebook:
    """Phrasebook of a model."""
    return PHRASEBOOKS[model.phrasebook]


def question_of(spec: QuestionSpec, threshold: float | None = None, book: Phrasebook = DELTAVLM) -> Question:
    """Question for the model from one entry of the question set, in the words of its phrasebook if it is a
    standard question, else in its own.

    A model that follows instructions has room for a sentence in answer to a question in own words.

    threshold: lowest P(yes) of a changed chip; None for that of the model.
    """
    task = TASKS[spec.task]
    if _asks_task(spec):
        phrase = book.other_words(spec.task)
        prompt = spec.prompt if phrase is None else phrase.prompt
        return replace(standard_question(task, threshold, phrase), name=spec.name, prompt=prompt)
    return Question(
        spec.name,
        spec.prompt,
        yes_no=task.yes_no,
        max_new_tokens=max(task.max_new_tokens, TASKS["open"].max_new_tokens if book.any_words else 0),
        typed="" if spec.is_standard else spec.prompt,
    )


def _asks_task(spec: QuestionSpec) -> bool:
    """True if an entry is the standard question of its task; False for these words as an open question."""
    return task_of(spec.prompt) == spec.task != "open"


def answer_for_unchanged(spec: QuestionSpec) -> Answer | None:
    """The standard answer for an unchanged pair, without a score, for questions that were skipped because the
    model saw no change; None for a question of the user's own."""
    text = TASKS[spec.task].unchanged
    return None if text is None else Answer(spec.task, text, TASKS[spec.task].parse(text), None)


def check_threshold(threshold: float | None) -> None:
    """Raises: ConfigError for a threshold of scores that is not from 0 to 1."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"`threshold={threshold}`: is not from 0 to 1")


def with_history(question: Question, turns: Sequence[tuple[str, str]], book: Phrasebook) -> Question:
    """A question after earlier (question, answer) turns, oldest first: in its prompt, or beside it."""
    prompt, history = book.place_history(turns, question.prompt)
    return replace(question, prompt=prompt, history=history)


def in_words_of_task(spec: QuestionSpec, reply: Reply, book: Phrasebook) -> Reply:
    """The reply with the text of `Phrasebook.in_words_of_task`; an answer in free words as it is."""
    if not _asks_task(spec):
        return reply
    return replace(reply, text=book.in_words_of_task(spec.task, reply.text))


def read_answer(spec: QuestionSpec, reply: Reply, threshold: float | None = None) -> Answer:
    """The reply cleaned to one line, and its value if the task can read it; an unsupported question has
    neither value nor score.

    threshold: the value of a yes/no question with a score is whether the score reaches it.
    """
    text = clean(reply.text)
    if says_unsupported(text):
        return Answer(spec.task, text, None, None)
    score = reply.score if math.isfinite(reply.score) else None
    if threshold is not None and score is not None and TASKS[spec.task].yes_no:
        return Answer(spec.task, text, score >= threshold, score)
    try:
        value = TASKS[spec.task].parse(text)
    except AnswerParseError:
        value = None
    return Answer(spec.task, text, value, score)
