"""Sets read from disk: ChangeChat-105k as released, what `deltavlm synth chips` writes, and ChangeIMTI.

A file is a JSON list in one of two schemas (see `changechat`), named SET_SPLIT.json or SET_SPLIT_KIND.json;
ChangeIMTI has files of its own (see `changeimti`), and is read into the same examples.
What cannot be read is a `Problem` with its place and reason, and the rest goes on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from deltavlm.errors import InputError
from deltavlm.tasks import TASKS, TaskName

__all__ = [
    "Dataset",
    "Example",
    "Problem",
    "Turn",
    "listed",
    "missing_images",
    "named_file",
    "parsed",
    "read_set",
    "turns_of",
]

_KINDS: Mapping[str, TaskName] = {
    "binary": "change",
    "count": "count",
    "loc": "location",
    "open": "open",
    "dialog": "dialogue",
}
_PROMPTS: Mapping[str, TaskName] = {task.prompt: name for name, task in TASKS.items() if task.prompt}
_NAME = re.compile(rf"(?P<set>.+)_(?P<split>train|val|test)(?:_(?P<kind>{'|'.join(_KINDS)}))?\.json")


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
    """What could not be used, where it stands, and why."""

    kind: Literal["file", "variant", "record", "duplicate", "image", "prediction", "reference", "answer"]
    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of one split, in the order of the files, and what could not be used of them."""

    name: str
    split: str
    files: tuple[str, ...]
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    records: tuple[int, ...]  # of each file, usable or not


def read_set(
    path: Path, split: str = "test", tasks: Sequence[TaskName] = tuple(TASKS), *, repeats: bool = False
) -> Dataset:
    """A split of a set from a folder, or from one of its files, whose name then need not follow the pattern.

    A folder of ChangeIMTI is known by its train_task_data or test_task_data. A caption has the file name of
    its first image as its id. Of two records with one task, id and question the first counts; a second
    question under an id is kept as ID#2. Both are named among the problems. With
    `repeats` every record is kept as it is: for training, where ids name nothing.

    Raises: InputError when there is no file, files of several sets, or nothing in them that can be used.
    """
    from deltavlm.data import changeimti  # which is made of the types above

    if (folder := changeimti.find_folder(path, split)) is not None:
        return changeimti.read_folder(folder, split, tasks)
    files, problems = _files(path, split)
    records: list[Example] = []
    numbers: list[int] = []
    for file in files:
        named = named_file(file.name)
        # the training files mix all tasks, and there a kind names no more than a variant
        kind = named["kind"] if named and named["split"] != "train" else None
        try:
            content = listed(file)
        except InputError as error:
            problems.append(Problem("file", file.name, str(error)))
            numbers.append(0)
            continue
        numbers.append(len(content))
        for number, record in enumerate(content, start=1):
            where = f"{file.name}, record {number}"
            try:
                records.append(_example(record, _KINDS.get(kind or "")))
            except ValueError as error:
                problems.append(Problem("record", where, str(error)))
    if not records:
        raise InputError(problems[0].what if problems else f"{path} holds no records")
    examples, doubles = (records, []) if repeats else _unique(records)
    named = named_file(files[0].name)
    return Dataset(
        name=named["set"] if named else files[0].stem,
        split=named["split"] if named else split,
        files=tuple(file.name for file in files),
        examples=tuple(example for example in examples if example.task in tasks),
        problems=(*problems, *doubles),
        records=tuple(numbers),
    )


def named_file(name: str) -> re.Match[str] | None:
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


def parsed(path: Path) -> Any:
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


def listed(path: Path) -> list[Any]:
    """The records of a file. Raises: InputError."""
    content = parsed(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a JSON list of records")
    return content


def _files(path: Path, split: str) -> tuple[list[Path], list[Problem]]:
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise InputError(f"{path} does not exist; expected a JSON file or a folder with SET_{split}*.json")
    folders = (path, path / "annotations")  # the second: where the original's code expects them
    inside = next(filter(None, (sorted(folder.glob("*.json")) for folder in folders)), [])
    named = [(file, named_file(file.name)) for file in inside]
    found = [(file, match) for file, match in named if match and match["split"] == split]
    if not found:
        there = sorted({match["split"] for _, match in named if match})
        known = f"; there is {', '.join(there)}" if there else ""
        raise InputError(f"{path} holds no SET_{split}*.json{known}")
    sets = sorted({match["set"] for _, match in found})
    if len(sets) > 1:
        raise InputError(f"{path} holds several sets: {', '.join(sets)}; name one of their files instead")
    variants = [file for file, match in found if split == "train" and match["kind"]]
    if len(variants) < len(found):  # the same records told in another way: not read twice
        found = [(file, match) for file, match in found if file not in variants]
        return [file for file, _ in found], [
            Problem(
                "variant", file.name, f"{file.name} is a variant of {found[0][0].name}; name it to read it"
            )
            for file in variants
        ]
    return [file for file, _ in found], []


def _example(record: Any, task: TaskName | None) -> Example:
    """Raises: ValueError saying what is wrong with the record."""
    if not isinstance(record, dict):
        raise ValueError("expected an object with keys")
    if "images" in record and "image" not in record:
        raise ValueError("a record of ChangeIMTI; give the folder that holds its test_task_data")
    flag = record.get("changeflag")
    if flag not in (0, 1) or isinstance(flag, float):
        raise ValueError(f"changeflag is {_shown(flag)}, not 0 or 1")
    if "captions" in record:
        before, after = (_text(record, f"image_{date}") for date in "AB")
        answers = record["captions"]
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
            raise ValueError("captions are not a list of sentences")
        turns: tuple[Turn, ...] = (Turn(TASKS["caption"].prompt, tuple(answers)),)
        return Example(PurePosixPath(before).name, "caption", turns, bool(flag), before, after)
    images = record.get("image")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(i, str) for i in images):
        raise ValueError(f"image is {_shown(images)}, not the paths of two pictures")
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise ValueError(f"id is {_shown(name)}, not text or a whole number")
    turns = turns_of(record.get("conversations"))
    if task is None:
        task = "dialogue" if len(turns) > 1 else _PROMPTS.get(turns[0].question, "open")
    if task != "dialogue" and len(turns) > 1:
        raise ValueError(f"{len(turns)} turns where task {task} has one")
    return Example(str(name), task, turns, bool(flag), images[0], images[1])


def turns_of(messages: Any) -> tuple[Turn, ...]:
    """Messages of a human and of gpt, one after the other, as turns. Raises: ValueError."""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise ValueError("conversations are not pairs of a question and an answer")
    said = []
    for index, message in enumerate(messages):
        speaker = ("human", "gpt")[index % 2]
        if not isinstance(message, dict) or message.get("from") != speaker:
            raise ValueError(f"message {index + 1} of the conversation is not from {speaker!r}")
        said.append(_text(message, "value"))
    questions = [text.replace("<image>", "").strip() for text in said[::2]]
    return tuple(Turn(question, (answer,)) for question, answer in zip(questions, said[1::2], strict=True))


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {_shown(value)}, not text")
    return value


def _unique(records: Sequence[Example]) -> tuple[list[Example], list[Problem]]:
    """Each id once a task; another question under a known id gets an id of its own: x, x#2, x#3."""
    taken = {(example.task, example.id) for example in records}
    asked: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    again: Counter[tuple[str, str]] = Counter()
    kept = []
    for example in records:
        key = (example.task, example.id)
        questions = tuple(turn.question for turn in example.turns)
        known = asked.setdefault(key, [])
        if questions in known:
            again[key] += 1
            continue
        known.append(questions)
        if len(known) > 1:
            name = f"{example.id}#{len(known)}"
            if (example.task, name) in taken:
                again[key] += 1
                continue
            example = replace(example, id=name)
        kept.append(example)
    doubles = []
    for (task, name), known in asked.items():
        others, repeats = len(known) - 1, again[task, name]
        if others or repeats:
            told = [f"{others} other questions of this id are {name}#2 and so on"] if others else []
            told += [f"{repeats} repeat it and are left out"] if repeats else []
            doubles.append(Problem("duplicate", f"{task} {name}", "; ".join(told)))
    return kept, doubles


def _shown(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
