"""Reader of question sets: ChangeChat-105k, sets in its layout, and ChangeIMTI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from deltavlm.data import changeimti
from deltavlm.data.examples import (
    KINDS,
    Dataset,
    Example,
    Problem,
    Turn,
    match_file_name,
    parse_turns,
    read_json_list,
    require_text,
    shorten,
)
from deltavlm.errors import InputError
from deltavlm.tasks import TASKS, TaskName

__all__ = ["read_dataset"]

_PROMPTS: Mapping[str, TaskName] = {task.prompt: name for name, task in TASKS.items() if task.prompt}


def read_dataset(
    path: Path, split: str = "test", tasks: Sequence[TaskName] = tuple(TASKS), *, repeats: bool = False
) -> Dataset:
    """A split of a set from a folder, or from one of its files, whose name then need not follow the pattern.

    A folder of ChangeIMTI is known by its train_task_data or test_task_data. A caption has the file name of
    its first image as its id. Of two records with one task, id and question the first counts; a second
    question under an id is kept as ID#2. Both are named among the problems. With
    `repeats` every record is kept as it is: for training, where ids name nothing.

    Raises: InputError when there is no file, files of several sets, or nothing in them that can be used.
    """
    if (folder := changeimti.find_folder(path, split)) is not None:
        return replace(changeimti.read_folder(folder, split, tasks), path=path)
    files, problems = _files(path, split)
    records: list[Example] = []
    numbers: list[int] = []
    for file in files:
        named = match_file_name(file.name)
        # the training files mix all tasks, and there a kind names no more than a variant
        kind = named["kind"] if named and named["split"] != "train" else None
        try:
            content = read_json_list(file)
        except InputError as error:
            problems.append(Problem("file", file.name, str(error)))
            numbers.append(0)
            continue
        numbers.append(len(content))
        for number, record in enumerate(content, start=1):
            where = f"{file.name}, record {number}"
            try:
                records.append(_example(record, KINDS.get(kind or "")))
            except ValueError as error:
                problems.append(Problem("record", where, str(error)))
    if not records:
        raise InputError(problems[0].message if problems else f"{path} holds no records")
    examples, doubles = (records, []) if repeats else _unique(records)
    named = match_file_name(files[0].name)
    return Dataset(
        name=named["set"] if named else files[0].stem,
        split=named["split"] if named else split,
        files=tuple(file.name for file in files),
        examples=tuple(example for example in examples if example.task in tasks),
        problems=(*problems, *doubles),
        records=tuple(numbers),
        path=path,
    )


def _files(path: Path, split: str) -> tuple[list[Path], list[Problem]]:
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise InputError(f"{path} does not exist; expected a JSON file or a folder with SET_{split}*.json")
    folders = (path, path / "annotations")  # the second: where the original's code expects them
    inside = next(filter(None, (sorted(folder.glob("*.json")) for folder in folders)), [])
    named = [(file, match_file_name(file.name)) for file in inside]
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
        raise ValueError(f"changeflag is {shorten(flag)}, not 0 or 1")
    if "captions" in record:
        before, after = (require_text(record, f"image_{date}") for date in "AB")
        answers = record["captions"]
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
            raise ValueError("captions are not a list of sentences")
        turns: tuple[Turn, ...] = (Turn(TASKS["caption"].prompt, tuple(answers)),)
        return Example(PurePosixPath(before).name, "caption", turns, bool(flag), before, after)
    images = record.get("image")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(i, str) for i in images):
        raise ValueError(f"image is {shorten(images)}, not the paths of two pictures")
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise ValueError(f"id is {shorten(name)}, not text or a whole number")
    turns = parse_turns(record.get("conversations"))
    if task is None:
        task = "dialogue" if len(turns) > 1 else _PROMPTS.get(turns[0].question, "open")
    if task != "dialogue" and len(turns) > 1:
        raise ValueError(f"{len(turns)} turns where task {task} has one")
    return Example(str(name), task, turns, bool(flag), images[0], images[1])


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
