"""Question set: a YAML list of the questions to ask about every chip."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from deltavlm.config import from_mapping, read_yaml, suggest
from deltavlm.errors import ConfigError
from deltavlm.tasks import TASKS, SingleTurnTask
from deltavlm.tasks.text import clean, simplify

__all__ = [
    "QuestionSpec",
    "load_questions",
    "parse_questions",
    "pick_questions",
    "question_spec",
    "task_meant",
    "task_of",
]

_TASK_OF_PROMPT: Mapping[str, SingleTurnTask] = {
    simplify(TASKS[name].prompt): name for name in get_args(SingleTurnTask) if TASKS[name].prompt
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SENTENCES = ("caption", "change")  # tasks whose value is in an answer of any form

_OBJECTS = r"(house|building|road|street)s?( and (new )?(house|building|road|street)s?)?"
_IMAGES = r"(the|these|this|both) (two )?(image|picture|scene|area|place|pair)s?"
_BUILT = r"(newly )?(built|constructed|erected|added|changed|new)"
_BE = r"(is|are|was|were|has|have|has been|have been)"
_WORDINGS: Mapping[SingleTurnTask, str] = {  # what else people type for a standard question, simplified
    "caption": r"what( has| have| is| was)? (changed|different|happened|new)"
    r"|what (is|are) the (main )?(change|difference)s?"
    r"|(briefly )?(describe|summari[sz]e|explain|list) (all )?the (main )?(change|difference)s?( in detail)?"
    r"|based on the above analysis please describe the changes of these two images in detail",
    "change": rf"(has|have|did|is|are) (anything|something|it|{_IMAGES}) (changed?|different)"
    r"|(is|are|was|were) there (a |any |some )?(change|difference)s?",
    "count": rf"how many new {_OBJECTS}( {_BE}( there| {_BUILT}| appeared)?)?"
    rf"|how many {_OBJECTS} {_BE} {_BUILT}"
    rf"|(count|what is the number of) (the |all )?new {_OBJECTS}"
    r"|if changes have occurred count the number of road and building changes separately",
    "location": r"where (did|has|have) (it|anything|something|they) changed?"
    rf"|where {_BE} (the |any )?(change|difference)s?|where did (the |any )?changes? (occur|happen)"
    rf"|where {_BE} (the |any )?new {_OBJECTS}( located| {_BUILT})?"
    rf"|where {_BE} (the |any )?{_OBJECTS} {_BUILT}",
}
_BEFORE = r"(please |(can|could) you (please )?(tell me )?)?"
_BEHIND = rf"( (here|there|in total|can you see|(in|between|of) {_IMAGES}|between the (two )?dates|please))*"
_TASK_OF_WORDING = tuple(
    (name, re.compile(f"{_BEFORE}({words}){_BEHIND}")) for name, words in _WORDINGS.items()
)


@dataclass(frozen=True, slots=True)
class QuestionSpec:
    """One entry of a question set; the answer is parsed as `task` says, and its column is `answer_<name>`."""

    name: str
    task: SingleTurnTask
    prompt: str = ""  # empty: the standard prompt of the task

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} cannot be a column; use lower-case letters, digits and underscores, "
                "a letter first, 40 at most"
            )
        prompt = clean(self.prompt) or TASKS[self.task].prompt
        if not prompt:
            raise ValueError(f"{self.name!r} has no prompt; write the question under 'prompt:'")
        object.__setattr__(self, "prompt", prompt)

    @property
    def is_standard(self) -> bool:
        """True if the question is in the standard words of a task, which every model was taught."""
        return task_of(self.prompt) != "open"


def task_of(question: str) -> SingleTurnTask:
    """Task with this standard prompt, ignoring letter case and punctuation; "open" for other questions.

    >>> task_of("please determine how many roads and buildings have changed"), task_of("Is it bigger?")
    ('count', 'open')
    """
    return _TASK_OF_PROMPT.get(simplify(question), "open")


def task_meant(question: str) -> SingleTurnTask:
    """Task whose standard question asks the same, in whatever common words; "open" for other questions.

    >>> task_meant("How many houses were built?"), task_meant("Has anything changed?")
    ('count', 'change')
    >>> task_meant("How many houses were demolished?"), task_meant("How many?")
    ('open', 'open')
    """
    words = simplify(question)
    for name, pattern in _TASK_OF_WORDING:
        if pattern.fullmatch(words):
            return name
    return _TASK_OF_PROMPT.get(words, "open")


def question_spec(name: str, text: str, *, any_words: bool = False) -> QuestionSpec:
    """Question in the standard words of the task that it means, so that everybody asks it alike; in its own
    words if it is open.

    any_words: keep the words, for a model that follows instructions. It is then the task `change` or
        `caption` if it means one of these, whose answers are read from a sentence; else it is open.

    >>> question_spec("question", "What changed?").prompt == TASKS["caption"].prompt
    True
    >>> question_spec("question", "What changed?", any_words=True)
    QuestionSpec(name='question', task='caption', prompt='What changed?')
    >>> question_spec("question", "How many houses were built?", any_words=True).task
    'open'
    """
    task = task_meant(text)
    if any_words:
        return QuestionSpec(name, task if task in _SENTENCES and task_of(text) == "open" else "open", text)
    return QuestionSpec(name, task, text if task == "open" else "")


def load_questions(path: Path) -> tuple[QuestionSpec, ...]:
    """Read a question set from a YAML file. Raises: ConfigError with file, entry and the nearest key."""
    return parse_questions(read_yaml(path), source=str(path))


def parse_questions(entries: Any, source: str) -> tuple[QuestionSpec, ...]:
    """Parse a question set from plain values: a list of {name, task, prompt}.

    source: file name for messages.
    Raises: ConfigError when the list is empty, an entry is invalid, or two entries have the same name or the
    same task (other than `open`), since both would need the same column.
    """
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{source}: expected a list of questions, each '- name: ...' and 'task: ...'")
    specs = [
        from_mapping(QuestionSpec, entry, source=f"{source}, entry {number}")
        for number, entry in enumerate(entries, start=1)
    ]
    names: set[str] = set()
    tasks: set[str] = set()
    for number, spec in enumerate(specs, start=1):
        if spec.name in names:
            raise ConfigError(f"{source}, entry {number}: the name {spec.name!r} occurs twice")
        if spec.task in tasks and spec.task != "open":
            raise ConfigError(
                f"{source}, entry {number}: the task {spec.task!r} occurs twice but has one column; "
                "make the second one 'task: open'"
            )
        names.add(spec.name)
        tasks.add(spec.task)
    return tuple(specs)


def pick_questions(specs: Sequence[QuestionSpec], names: Sequence[str]) -> tuple[QuestionSpec, ...]:
    """Entries with these names, in the order of the set. Raises: ConfigError for an unknown name."""
    available = [spec.name for spec in specs]
    for name in names:
        if name not in available:
            raise ConfigError(f"no question {name!r} in the question set{suggest(name, available)}")
    return tuple(spec for spec in specs if spec.name in names)
