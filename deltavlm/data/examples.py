"""Types of a question set (`Dataset`, `Example`, `Turn`, `Problem`) and the parsing of its JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltavlm.errors import InputError
from deltavlm.files import MAX_DATASET_BYTES, describe_read_error, parse_json, read_text
from deltavlm.messages import preview
from deltavlm.tasks import TaskName

__all__ = [
    "KINDS",
    "SPLITS",
    "Dataset",
    "Example",
    "Problem",
    "Turn",
    "image_paths",
    "match_file_name",
    "missing_images",
    "parse_turns",
    "read_json",
    "read_json_list",
    "require_text",
    "shorten",
]

SPLITS = ("train", "val", "test")
KINDS: Mapping[str, TaskName] = {
    "binary": "change",
    "count": "count",
    "loc": "location",
    "open": "open",
    "dialog": "dialogue",
}
"""Task of each KIND in a file name SET_SPLIT_KIND.json."""

_FILE_NAME = re.compile(rf"(?P<set>.+)_(?P<split>{'|'.join(SPLITS)})(?:_(?P<kind>{'|'.join(KINDS)}))?\.json")


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its reference answers: five for captions, one for everything else."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a set: a task on one image pair. Only a dialogue has more than one turn."""

    id: str
    task: TaskName
    turns: tuple[Turn, ...]
    changed: bool
    before: str  # path in the record, relative to the folder of images
    after: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Fault of a file, record or image: its location, and a message for the user."""

    kind: Literal[
        "file",
        "variant",
        "record",
        "duplicate",
        "repaired",
        "contradiction",
        "image",
        "prediction",
        "reference",
        "answer",
    ]
    location: str
    message: str

    def to_json(self) -> dict[str, str]:
        """JSON object of a report."""
        return {"kind": self.kind, "where": self.location, "what": self.message}


@dataclass(frozen=True, slots=True)
class Dataset:
    """One split of a question set: its examples in the order of the files, and the problems of the rest."""

    name: str
    split: str
    files: tuple[str, ...]
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    records: tuple[int, ...]  # number in each file, usable or not
    path: Path  # folder or file that it was read from


def match_file_name(name: str) -> re.Match[str] | None:
    """Match SET_SPLIT.json or SET_SPLIT_KIND.json; the groups are set, split and kind."""
    return _FILE_NAME.fullmatch(name)


def image_paths(examples: Iterable[Example]) -> list[str]:
    """Paths of the images that examples name, each once, in order."""
    return list(dict.fromkeys(path for example in examples for path in (example.before, example.after)))


def missing_images(examples: Iterable[Example], images: Path) -> list[Problem]:
    """One problem for each image that examples name and the folder `images` does not hold."""
    return [
        Problem("image", path, f"{images / path} is missing")
        for path in image_paths(examples)
        if not (images / path).is_file()
    ]


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises: InputError naming the file, and the line of a syntax error."""
    try:
        return parse_json(read_text(path, MAX_DATASET_BYTES))
    except OSError as error:
        raise InputError(describe_read_error(path, error)) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error.msg} in line {error.lineno}") from error
    except ValueError as error:
        reason = (
            "not UTF-8 text"
            if isinstance(error, UnicodeDecodeError)
            else "nested too deeply, or a number too long"
        )
        raise InputError(f"{path} is not valid JSON: {reason}") from error


def read_json_list(path: Path) -> list[Any]:
    """Records of a JSON file that holds a list. Raises: InputError."""
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a JSON list of records")
    return content


def parse_turns(messages: Any) -> tuple[Turn, ...]:
    """Turns of a list of messages that alternate between "human" and "gpt". Raises: ValueError."""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise ValueError("conversations are not pairs of a question and an answer")
    texts = []
    for index, message in enumerate(messages):
        speaker = ("human", "gpt")[index % 2]
        if not isinstance(message, dict) or message.get("from") != speaker:
            raise ValueError(f"message {index + 1} of the conversation is not from {speaker!r}")
        texts.append(require_text(message, "value"))
    questions = [text.replace("<image>", "").strip() for text in texts[::2]]
    return tuple(Turn(question, (answer,)) for question, answer in zip(questions, texts[1::2], strict=True))


def require_text(record: Mapping[str, Any], key: str) -> str:
    """Text under `key`. Raises: ValueError for another type."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {shorten(value)}, not text")
    return value


def shorten(value: Any) -> str:
    """`value` for a message, in at most 40 characters."""
    return "missing" if value is None else preview(value, 40)
