"""Reader of question sets: ChangeChat-105k, sets in its layout, ChangeChat-87k and ChangeIMTI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from deltavlm.data import changechat_87k, changeimti
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
from deltavlm.messages import pluralize
from deltavlm.tasks import TASKS, TaskName

__all__ = ["read_dataset"]

_TASK_OF_PROMPT: Mapping[str, TaskName] = {task.prompt: name for name, task in TASKS.items() if task.prompt}


def read_dataset(
    path: Path,
    split: str = "test",
    tasks: Sequence[TaskName] = tuple(TASKS),
    *,
    keep_duplicates: bool = False,
) -> Dataset:
    """Read one split of a question set.

    path: folder of a set in ChangeChat-105k's layout (SET_SPLIT.json, SET_SPLIT_KIND.json), with records of
    ChangeChat-105k or of ChangeChat-87k, or of ChangeIMTI
    (recognized by its train_task_data or test_task_data), or one JSON file with any name.
    keep_duplicates: keep every record under the id that it has, for training, where ids do not matter.
    Otherwise only the first of the records with one task, id and question is kept, and a second question
    under the same id becomes ID#2; both are reported as problems.

    The id of a caption is the file name of its first image. A record that cannot be read is a problem of the
    returned `Dataset`, not an error.

    Raises: InputError when there is no file, files of several sets, or no usable record.
    """
    if (folder := changeimti.find_folder(path, split)) is not None:
        return replace(changeimti.read_folder(folder, split, tasks), path=path)
    files, problems = _find_files(path, split)
    records: list[Example] = []
    typed: list[tuple[Example, bool | None]] = []  # of ChangeChat-87k
    record_counts: list[int] = []
    for file in files:
        match = match_file_name(file.name)
        # a training file mixes all tasks: there KIND names a variant of the set, not a task
        kind = match["kind"] if match and match["split"] != "train" else None
        try:
            content = read_json_list(file)
        except InputError as error:
            problems.append(Problem("file", file.name, str(error)))
            record_counts.append(0)
            continue
        record_counts.append(len(content))
        for number, record in enumerate(content, start=1):
            try:
                if changechat_87k.is_typed(record):
                    typed.append(changechat_87k.parse_record(record))
                else:
                    records.append(_parse_record(record, KINDS.get(kind or "")))
            except ValueError as error:
                problems.append(Problem("record", f"{file.name}, record {number}", str(error)))
    typed_examples, notes = changechat_87k.read_records(typed, for_training=keep_duplicates)
    records += typed_examples
    problems += notes
    if not records:
        raise InputError(problems[0].message if problems else f"{path} holds no records")
    examples, duplicates = (records, []) if keep_duplicates else _deduplicate(records)
    match = match_file_name(files[0].name)
    return Dataset(
        name=match["set"] if match else files[0].stem,
        split=match["split"] if match else split,
        files=tuple(file.name for file in files),
        examples=tuple(example for example in examples if example.task in tasks),
        problems=(*problems, *duplicates),
        records=tuple(record_counts),
        path=path,
    )


def _find_files(path: Path, split: str) -> tuple[list[Path], list[Problem]]:
    """Files of a split, and variants of the training file, which are not read. Raises: InputError."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise InputError(f"{path} does not exist; expected a JSON file or a folder with SET_{split}*.json")
    folders = (path, path / "annotations")  # the original code expects them in the second
    json_files = next(filter(None, (sorted(folder.glob("*.json")) for folder in folders)), [])
    matches = {file: match for file in json_files if (match := match_file_name(file.name))}
    files = [file for file, match in matches.items() if match["split"] == split]
    if not files:
        splits = sorted({match["split"] for match in matches.values()})
        hint = f"; it has {', '.join(splits)}" if splits else ""
        raise InputError(f"{path} holds no SET_{split}*.json{hint}")
    sets = sorted({matches[file]["set"] for file in files})
    if len(sets) > 1:
        raise InputError(f"{path} holds several sets: {', '.join(sets)}; name one of their files instead")
    variants = [file for file in files if split == "train" and matches[file]["kind"]]
    if len(variants) == len(files):
        return files, []
    # a variant has the same records with other answers; reading both would count every pair twice
    files = [file for file in files if file not in variants]
    return files, [
        Problem("variant", file.name, f"{file.name} is a variant of {files[0].name}; name it to read it")
        for file in variants
    ]


def _parse_record(record: Any, task: TaskName | None) -> Example:
    """Example of a record of either schema of ChangeChat-105k; without `task` it follows from the question.

    Raises: ValueError saying what is wrong with the record.
    """
    if not isinstance(record, dict):
        raise ValueError("expected an object with keys")
    if "images" in record and "image" not in record:
        raise ValueError("a record of ChangeIMTI; give the folder that holds its test_task_data")
    flag = record.get("changeflag")
    if flag not in (0, 1) or isinstance(flag, float):
        raise ValueError(f"changeflag is {shorten(flag)}, not 0 or 1")
    if "captions" in record:
        before, after = (require_text(record, f"image_{date}") for date in "AB")
        captions = record["captions"]
        if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
            raise ValueError("captions are not a list of sentences")
        turns: tuple[Turn, ...] = (Turn(TASKS["caption"].prompt, tuple(captions)),)
        return Example(PurePosixPath(before).name, "caption", turns, bool(flag), before, after)
    images = record.get("image")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(i, str) for i in images):
        raise ValueError(f"image is {shorten(images)}, not the paths of two images")
    record_id = record.get("id")
    if isinstance(record_id, bool) or not isinstance(record_id, (str, int)) or record_id == "":
        raise ValueError(f"id is {shorten(record_id)}, not text or a whole number")
    turns = parse_turns(record.get("conversations"))
    if task is None:
        task = "dialogue" if len(turns) > 1 else _TASK_OF_PROMPT.get(turns[0].question, "open")
    if task != "dialogue" and len(turns) > 1:
        raise ValueError(f"{pluralize(len(turns), 'turn')}, and task {task} has one")
    return Example(str(record_id), task, turns, bool(flag), images[0], images[1])


def _deduplicate(records: Sequence[Example]) -> tuple[list[Example], list[Problem]]:
    """Examples whose ids are unique within a task: another question under the same id becomes ID#2, ID#3."""
    ids = {(example.task, example.id) for example in records}
    questions_of: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    repeats: Counter[tuple[str, str]] = Counter()
    examples = []
    for example in records:
        key = (example.task, example.id)
        questions = tuple(turn.question for turn in example.turns)
        earlier = questions_of.setdefault(key, [])
        if questions in earlier:
            repeats[key] += 1
            continue
        earlier.append(questions)
        if len(earlier) > 1:
            new_id = f"{example.id}#{len(earlier)}"
            if (example.task, new_id) in ids:
                repeats[key] += 1
                continue
            example = replace(example, id=new_id)
        examples.append(example)
    problems = []
    for (task, record_id), questions_of_id in questions_of.items():
        other_questions, repeated = len(questions_of_id) - 1, repeats[task, record_id]
        if other_questions or repeated:
            notes = []
            if other_questions:
                notes.append(
                    pluralize(
                        other_questions,
                        f"other question of this id becomes {record_id}#2",
                        f"other questions of this id become {record_id}#2 and so on",
                    )
                )
            if repeated:
                notes.append(pluralize(repeated, "duplicate is left out", "duplicates are left out"))
            problems.append(Problem("duplicate", f"{task} {record_id}", "; ".join(notes)))
    return examples, problems
