"""Sets read from disk: ChangeChat-105k as released, what `deltavlm synth chips` writes, and ChangeIMTI.

A file is a JSON list in one of two schemas (see `changechat`), named SET_SPLIT.json or SET_SPLIT_KIND.json;
ChangeIMTI has files of its own (see `changeimti`), and is read into the same examples.
What cannot be read is a `Problem` with its place and reason, and the rest goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltavlm.errors import InputError
from deltavlm.tasks import TaskName

__all__ = [
    "Dataset",
    "Example",
    "Problem",
    "Turn",
    "match_file_name",
    "missing_images",
    "parse_turns",
    "read_json",
    "read_json_list",
]

KINDS: Mapping[str, TaskName] = {
    "binary": "change",
    "count": "count",
    "loc": "location",
    "open": "open",
    "dialog": "dialogue",
}
"""Task of each KIND of file name."""

_NAME = re.compile(rf"(?P<set>.+)_(?P<split>train|val|test)(?:_(?P<kind>{'|'.join(KINDS)}))?\.json")


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and what may be answered; captions have five references, everything else one."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One record: what is asked about one pair of images. Only a dialogue has more than one turn."""

    id: str
    task: TaskName
    turns: tuple[Turn, ...]
    changed: bool
    before: str  # as the file names it, relative to the folder of images
    after: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Fault of a file, record or image: its location, and a message for the user."""

    kind: Literal["file", "variant", "record", "duplicate", "image", "prediction", "reference", "answer"]
    location: str
    message: str

    def to_json(self) -> dict[str, str]:
        """JSON object of a report."""
        return {"kind": self.kind, "where": self.location, "what": self.message}


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of one split, in the order of the files, and what could not be used of them."""

    name: str
    split: str
    files: tuple[str, ...]
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    records: tuple[int, ...]  # of each file, usable or not
    path: Path  # folder or file that it was read from


def match_file_name(name: str) -> re.Match[str] | None:
    """SET_SPLIT.json or SET_SPLIT_KIND.json as groups set, split and kind; None for another name."""
    return _NAME.fullmatch(name)


def missing_images(examples: Iterable[Example], images: Path) -> list[Problem]:
    """The pictures that examples name and the folder does not hold, each once."""
    named = dict.fromkeys(path for example in examples for path in (example.before, example.after))
    return [
        Problem("image", name, f"{images / name} is missing")
        for name in named
        if not (images / name).is_file()
    ]


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises: InputError naming the file, and the line of a mistake."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error.msg} in line {error.lineno}") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = (
            "not UTF-8 text"
            if isinstance(error, UnicodeDecodeError)
            else "nested too deeply, or a number too long"
        )
        raise InputError(f"{path} is not valid JSON: {reason}") from error


def read_json_list(path: Path) -> list[Any]:
    """The records of a file. Raises: InputError."""
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a JSON list of records")
    return content


def parse_turns(messages: Any) -> tuple[Turn, ...]:
    """Messages of a human and of gpt, one after the other, as turns. Raises: ValueError."""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise ValueError("conversations are not pairs of a question and an answer")
    said = []
    for index, message in enumerate(messages):
        speaker = ("human", "gpt")[index % 2]
        if not isinstance(message, dict) or message.get("from") != speaker:
            raise ValueError(f"message {index + 1} of the conversation is not from {speaker!r}")
        said.append(require_text(message, "value"))
    questions = [text.replace("<image>", "").strip() for text in said[::2]]
    return tuple(Turn(question, (answer,)) for question, answer in zip(questions, said[1::2], strict=True))


def require_text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {shorten(value)}, not text")
    return value


def shorten(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
