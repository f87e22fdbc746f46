"""The question set: a YAML list of what is asked about every chip."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from deltavlm.config import from_mapping, read_yaml, suggest
from deltavlm.errors import ConfigError
from deltavlm.tasks import TASKS, SingleTurnTask
from deltavlm.tasks.text import clean, simplified

__all__ = [
    "QuestionSpec",
    "load_questions",
    "pick_questions",
    "read_questions",
    "task_of",
]

_TASK_OF_PROMPT: Mapping[str, SingleTurnTask] = {
    simplified(TASKS[name].prompt): name for name in get_args(SingleTurnTask) if TASKS[name].prompt
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, slots=True)
class QuestionSpec:
    """One entry of a question set: the answer's column is `answer_<name>`, the task says how to read it."""

    name: str
    task: SingleTurnTask
    prompt: str = ""  # empty: the task's own words

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} cannot be a column; use lower-case letters, digits and underscores, "
                "a letter first, 40 at most"
            )
        words = clean(self.prompt) or TASKS[self.task].prompt
        if not words:
            raise ValueError(f"{self.name!r} has no prompt; write the question under 'prompt:'")
        object.__setattr__(self, "prompt", words)


def task_of(question: str) -> SingleTurnTask:
    """The task whose own words a question is, letter case and punctuation aside; "open" for any other.

    >>> task_of("please determine how many roads and buildings have changed"), task_of("Is it bigger?")
    ('count', 'open')
    """
    return _TASK_OF_PROMPT.get(simplified(question), "open")


def load_questions(path: Path) -> tuple[QuestionSpec, ...]:
    """The question set of a YAML file. Raises: ConfigError naming file, entry and the nearest key."""
    return read_questions(read_yaml(path), where=str(path))


def read_questions(entries: Any, where: str) -> tuple[QuestionSpec, ...]:
    """The question set from plain values: a list of {name, task, prompt}.

    Raises: ConfigError when the list is empty, an entry is wrong, or two entries share a name or,
    `open` aside, a task (both would want the same column).
    """
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}: expected a list of questions, each '- name: ...' and 'task: ...'")
    specs = [
        from_mapping(QuestionSpec, entry, source=f"{where}, entry {number}")
        for number, entry in enumerate(entries, start=1)
    ]
    names: set[str] = set()
    tasks: set[str] = set()
    for number, spec in enumerate(specs, start=1):
        if spec.name in names:
            raise ConfigError(f"{where}, entry {number}: the name {spec.name!r} is there twice")
        if spec.task in tasks and spec.task != "open":
            raise ConfigError(
                f"{where}, entry {number}: the task {spec.task!r} is there twice and has one column; "
                "make the second one 'task: open'"
            )
        names.add(spec.name)
        tasks.add(spec.task)
    return tuple(specs)


def pick_questions(specs: Sequence[QuestionSpec], names: Sequence[str]) -> tuple[QuestionSpec, ...]:
    """Those of the set with these names, in the set's order. Raises: ConfigError for an unknown name."""
    known = [spec.name for spec in specs]
    for name in names:
        if name not in known:
            raise ConfigError(f"no question {name!r} in the question set{suggest(name, known)}")
    return tuple(spec for spec in specs if spec.name in names)
