"""A local copy of a set looked through: every file, every record, every picture that is named.

checked = check(Path("changechat-105k"))
checked.faults      # what is missing or broken, each with its place
checked.notes       # what is odd, and may be so in the released set
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from deltavlm.data import changeimti
from deltavlm.data.changechat import NAME, RELEASED_RECORDS, SIZE_PX
from deltavlm.data.examples import Dataset, Example, Problem, match_file_name
from deltavlm.data.images import open_image
from deltavlm.data.read import read_dataset
from deltavlm.errors import AnswerParseError, InputError
from deltavlm.tasks import TASKS, TaskName

__all__ = ["CheckReport", "FileCheck", "ImageCheck", "check"]

SPLITS = ("train", "val", "test")
Counting = Callable[[int], AbstractContextManager[Callable[[int, str], None]]]
_Kind = Literal["missing", "unreadable", "size"]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file: how many records it holds, how many the released one does, the examples made of them."""

    name: str
    records: int
    expected: int | None
    tasks: Mapping[TaskName, int]


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """How many pictures are named, and how many of them cannot be used."""

    folder: Path
    named: int
    missing: int
    unreadable: int
    other_size: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found."""

    files: tuple[FileCheck, ...]
    pictures: ImageCheck
    faults: tuple[Problem, ...]
    notes: tuple[Problem, ...]


def check(
    folder: Path,
    *,
    images: Path | None = None,
    size_px: int = SIZE_PX,
    full: bool = False,
    counting: Counting = lambda total: nullcontext(lambda done, note: None),
) -> CheckReport:
    """Reads every file of every split, and opens every picture that a record names.

    images: where the paths in the records begin; `folder`/images. `full` decodes pictures, instead of reading
    their headers only. `counting(number of pictures)` opens what is told how many are done.

    Raises: InputError when the folder holds no file of a set.
    """
    images = images or folder / "images"
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds the files of a set")
    files, datasets, faults, notes = _read(folder)
    examples = [example for data in datasets for example in data.examples]
    notes += _odd_references(examples)
    paths = dict.fromkeys(path for example in examples for path in (example.before, example.after))
    found = _look_at(list(paths), images, size_px, full, counting)
    number = Counter(kind for kind, _ in found)
    pictures = ImageCheck(images, len(paths), number["missing"], number["unreadable"], number["size"])
    return CheckReport(tuple(files), pictures, (*faults, *(problem for _, problem in found)), tuple(notes))


def _read(folder: Path) -> tuple[list[FileCheck], list[Dataset], list[Problem], list[Problem]]:
    """(files, what they hold, faults, notes). Raises: InputError when there is no file of a set."""
    files: list[FileCheck] = []
    datasets: list[Dataset] = []
    faults: list[Problem] = []
    notes: list[Problem] = []

    def sort(data: Dataset) -> None:
        datasets.append(data)
        for problem in data.problems:
            (notes if problem.kind == "duplicate" else faults).append(problem)

    for split in SPLITS:
        place = changeimti.find_folder(folder, split)
        if place is not None and place != folder:
            try:
                data = read_dataset(place, split)
            except InputError as error:
                faults.append(Problem("file", place.name, str(error)))
                continue
            sort(data)
            made = Counter(example.task for example in data.examples)
            for name, records in zip(data.files, data.records, strict=True):
                task = changeimti.FILES[name]
                files.append(FileCheck(f"{place.name}/{name}", records, None, {task: made[task]}))
    places = (folder, folder / "annotations")
    inside = next(filter(None, (sorted(place.glob("*.json")) for place in places)), [])
    of_sets = [path for path in inside if match_file_name(path.name)]
    for path in of_sets:
        expected = RELEASED_RECORDS.get(path.name)
        try:
            data = read_dataset(path)
        except InputError as error:
            faults.append(Problem("file", path.name, str(error)))
            files.append(FileCheck(path.name, 0, expected, {}))
            continue
        sort(data)
        made = Counter(example.task for example in data.examples)
        files.append(FileCheck(path.name, data.records[0], expected, dict(made.items())))
        if expected not in (None, data.records[0]):
            what = f"{path.name} has {data.records[0]} records, the released one has {expected}"
            faults.append(Problem("file", path.name, what))
    if not files and not faults:
        raise InputError(
            f"{folder} holds no file SET_SPLIT.json or SET_SPLIT_KIND.json, and no test_task_data;"
            f" give the folder of a set, or get one with: deltavlm data fetch changechat -o {folder}"
        )
    names = {path.name for path in of_sets}
    if any(name.startswith(NAME) for name in names):
        for name in RELEASED_RECORDS.keys() - names:
            faults.append(Problem("file", name, f"{name} of the released set is missing"))
    strangers = [path.name for path in inside if path not in of_sets]
    notes += [Problem("file", name, f"{name} is no file of a set, and was not read") for name in strangers]
    return files, datasets, faults, notes


def _odd_references(examples: Sequence[Example]) -> list[Problem]:
    """Answers that our tasks cannot read, and yes or no that the changeflag contradicts."""
    odd = []
    for example in examples:
        answer = example.turns[0].answers[0]
        what = ""
        try:
            task = TASKS[example.task]
            value = None if task.free_text else task.parse(answer)
            if task.yes_no and value != example.changed:
                what = f"answer {answer!r} and changeflag {int(example.changed)} disagree"
        except AnswerParseError as error:
            what = f"answer cannot be read: {error}"
        if what:
            odd.append(Problem("reference", f"{example.task} {example.id}", what))
    return odd


def _look_at(
    paths: Sequence[str], images: Path, size_px: int, full: bool, counting: Counting
) -> list[tuple[_Kind, Problem]]:
    """ImageCheck that cannot be used. Threads: what takes time is the disk, and decoding lets others run."""
    found = []
    pool = ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 4))
    try:
        with counting(len(paths)) as tell:
            results = pool.map(lambda path: _picture(path, images, size_px, full), paths)
            for done, result in enumerate(results, start=1):
                tell(done, "")
                if result is not None:
                    found.append(result)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _picture(path: str, images: Path, size_px: int, full: bool) -> tuple[_Kind, Problem] | None:
    """What is wrong with a picture, if anything."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        return "missing", Problem("image", path, f"{path} leads out of the folder of images")
    place = images / path
    try:
        with open_image(place) as picture:
            size = picture.size
            if full:
                picture.load()
    except InputError as error:
        kind: _Kind = "missing" if isinstance(error.__cause__, FileNotFoundError) else "unreadable"
        return kind, Problem("image", path, str(error))
    if size != (size_px, size_px):
        what = f"{place} is {size[0]} x {size[1]} px, not {size_px} x {size_px}"
        return "size", Problem("image", path, what)
    return None
