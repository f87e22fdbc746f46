"""`Task`: one kind of question, with its prompt, answer parser, formatter, metric and token limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import regex

__all__ = ["Form", "SingleTurnTask", "Task", "TaskName"]

SingleTurnTask = Literal["caption", "change", "count", "location", "open"]
TaskName = Literal[SingleTurnTask, "dialogue"]


@cache
def compiled(pattern: str) -> regex.Pattern[str]:
    """Compiled regular expression: the cache of `regex` takes longer than a match of a short text."""
    return regex.compile(pattern)


@dataclass(frozen=True, slots=True)
class Form:
    """Texts that an answer may be, read from left to right: those that match a regular expression and have no
    beginning that is rejected."""

    pattern: str
    rejects: Callable[[str], bool] = lambda text: False
    only_text: str | None = None  # where no other text matches

    @classmethod
    def of_texts(cls, *texts: str) -> Form:
        """Form of answers that are one of these texts."""
        return cls("|".join(map(regex.escape, texts)), only_text=texts[0] if len({*texts}) == 1 else None)

    def begins(self, text: str) -> bool:
        """True if an answer may begin with this text."""
        match = compiled(self.pattern).fullmatch(text, partial=True)
        return match is not None and not self.rejects(text)

    def ends(self, text: str) -> bool:
        """True if this text is a complete answer."""
        return compiled(self.pattern).fullmatch(text) is not None and not self.rejects(text)


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question about an image pair, and the functions that read and write its answers."""

    name: TaskName
    parse: Callable[[str], Any]
    """Answer text -> value (str, bool, `Counts` or `Cells`). Raises: AnswerParseError."""
    format: Callable[[Any], str]
    """Value -> answer text, as in the training data; `parse(format(value)) == value`."""
    score: Callable[[Any, Any], Mapping[str, float]]
    """(predicted value, ground truth) -> metrics of one answer; text tasks take a sequence of references."""
    prompt: str = ""
    """The standard question; empty where the question is the user's own (`open`, `dialogue`)."""
    max_new_tokens: int = 64
    """Upper bound of the answer length in tokens."""
    yes_no: bool = False
    """True if the model is to return P(yes) as the score of its answer."""
    free_text: bool = False
    """True if every sentence is a valid answer, scored with text metrics (BLEU and the like)."""
    scale_bound: bool = False
    """True if an answer holds only near the model's training scale: counts and cells of buildings, roads."""
    unchanged: str | None = None
    """The answer for a pair without any change; None where the question decides."""
    agrees_with: tuple[Task, ...] = ()
    """Tasks whose answers about the same pair come first where answers are decoded to agree.

    One with the same prompt is a draft: it is the answer if it has the form.
    """
    form: Callable[..., Form] | None = None
    """Texts of those answers -> form of the answers that agree with them."""
    counted: bool = False
    """True if `form` also takes the number of new buildings by the mask head, `counted`."""
