"""Check of a local copy of a question set: every file, record and image.

report = check_dataset(Path("changechat-105k"))
report.faults      # missing or broken files, records and images
report.notes       # oddities that the released files may have
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from deltavlm.data import changeimti
from deltavlm.data.changechat import NAME, RELEASED_RECORDS, SIZE_PX
from deltavlm.data.examples import SPLITS, Dataset, Example, Problem, image_paths, match_file_name
from deltavlm.data.images import image_size
from deltavlm.data.progress import CountProgress, no_progress
from deltavlm.data.read import read_dataset
from deltavlm.errors import AnswerParseError, InputError
from deltavlm.messages import pluralize
from deltavlm.tasks import TASKS, TaskName

__all__ = ["CheckReport", "FileCheck", "ImageCheck", "check_dataset", "unusable_pairs"]


@dataclass(frozen=True, slots=True)
class _ImageFault:
    """Image that cannot be used: its problem, and the kind that it is counted as."""

    kind: Literal["missing", "unreadable", "size"]
    problem: Problem


@dataclass(frozen=True, slots=True)
class FileCheck:
    """Numbers of one file: its records, those of the released file, and the examples made of them."""

    name: str
    records: int
    expected: int | None
    tasks: Mapping[TaskName, int]


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Numbers of images: those that records name, and those that cannot be used."""

    folder: Path
    named: int
    missing: int
    unreadable: int
    other_size: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Result of `check_dataset`."""

    files: tuple[FileCheck, ...]
    images: ImageCheck
    faults: tuple[Problem, ...]
    notes: tuple[Problem, ...]

    @property
    def has_levir_images(self) -> bool:
        """True for ChangeChat-105k and ChangeIMTI, whose images are those of LEVIR-CC."""
        return any(file.expected is not None or "_task_data/" in file.name for file in self.files)


def check_dataset(
    folder: Path,
    *,
    images: Path | None = None,
    size_px: int = SIZE_PX,
    full: bool = False,
    count_progress: CountProgress = no_progress,
) -> CheckReport:
    """Read every file of every split, and open every image that a record names.

    images: folder that the paths in the records start from; FOLDER/images by default.
    size_px: width and height that every image must have.
    full: decode the images, instead of reading only their headers.

    Raises: InputError when the folder holds no file of a set.
    """
    images = images or folder / "images"
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds the files of a set")
    contents = _Contents()
    contents.read_changeimti(folder)
    contents.read_changechat(folder)
    examples = [example for dataset in contents.datasets for example in dataset.examples]
    contents.notes += _odd_references(examples)
    paths = image_paths(examples)
    image_faults = _check_images(paths, images, size_px, full, count_progress)
    number = Counter(fault.kind for fault in image_faults)
    return CheckReport(
        tuple(contents.files),
        ImageCheck(images, len(paths), number["missing"], number["unreadable"], number["size"]),
        (*contents.faults, *(fault.problem for fault in image_faults)),
        tuple(contents.notes),
    )


@dataclass(slots=True)
class _Contents:
    """Files and datasets of a folder, with their faults and notes."""

    files: list[FileCheck] = field(default_factory=list)
    datasets: list[Dataset] = field(default_factory=list)
    faults: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def add(self, dataset: Dataset) -> Counter[TaskName]:
        """Add a dataset and its problems; returns the number of its examples by task."""
        self.datasets.append(dataset)
        for problem in dataset.problems:
            is_note = problem.kind in ("duplicate", "repaired", "contradiction")
            (self.notes if is_note else self.faults).append(problem)
        return Counter(example.task for example in dataset.examples)

    def read_changeimti(self, folder: Path) -> None:
        """Read the splits of ChangeIMTI, if the folder holds them."""
        for split in SPLITS:
            split_folder = changeimti.find_folder(folder, split)
            if split_folder is None or split_folder == folder:
                continue
            try:
                dataset = read_dataset(split_folder, split)
            except InputError as error:
                self.faults.append(Problem("file", split_folder.name, str(error)))
                continue
            examples = self.add(dataset)
            for name, records in zip(dataset.files, dataset.records, strict=True):
                task = changeimti.FILES[name]
                file_name = f"{split_folder.name}/{name}"
                self.files.append(FileCheck(file_name, records, None, {task: examples[task]}))

    def read_changechat(self, folder: Path) -> None:
        """Read each file SET_SPLIT*.json. Raises: InputError when no file of any set is in the folder."""
        folders = (folder, folder / "annotations")
        json_files = next(filter(None, (sorted(path.glob("*.json")) for path in folders)), [])
        set_files = [path for path in json_files if match_file_name(path.name)]
        for path in set_files:
            self._read_file(path)
        if not self.files and not self.faults:
            raise InputError(
                f"{folder} holds no file SET_SPLIT.json or SET_SPLIT_KIND.json, and no test_task_data;"
                f" give the folder of a set, or get one with: deltavlm data fetch changechat -o {folder}"
            )
        names = {path.name for path in set_files}
        if any(name.startswith(NAME) for name in names):
            for name in sorted(RELEASED_RECORDS.keys() - names):
                self.faults.append(Problem("file", name, f"{name} of the released set is missing"))
        for path in json_files:
            if path not in set_files:
                message = f"{path.name} is no file of a set, and was not read"
                self.notes.append(Problem("file", path.name, message))

    def _read_file(self, path: Path) -> None:
        expected = RELEASED_RECORDS.get(path.name)
        try:
            dataset = read_dataset(path)
        except InputError as error:
            self.faults.append(Problem("file", path.name, str(error)))
            self.files.append(FileCheck(path.name, 0, expected, {}))
            return
        examples, records = self.add(dataset), dataset.records[0]
        self.files.append(FileCheck(path.name, records, expected, dict(examples)))
        if expected not in (None, records):
            message = f"{path.name} has {pluralize(records, 'record')}, the released one has {expected}"
            self.faults.append(Problem("file", path.name, message))


def _odd_references(examples: Sequence[Example]) -> list[Problem]:
    """Reference answers that their task cannot parse, and yes or no that contradicts the change flag."""
    problems = []
    for example in examples:
        answer = example.turns[0].answers[0]
        message = ""
        try:
            task = TASKS[example.task]
            value = None if task.free_text else task.parse(answer)
            if task.yes_no and value != example.changed:
                message = f"answer {answer!r} and changeflag {int(example.changed)} disagree"
        except AnswerParseError as error:
            message = f"answer cannot be read: {error}"
        if message:
            problems.append(Problem("reference", f"{example.task} {example.id}", message))
    return problems


def _check_images(
    paths: Sequence[str], images: Path, size_px: int, full: bool, count_progress: CountProgress
) -> list[_ImageFault]:
    """Faults of images that are to lie in a folder and to have one size."""

    def read(path: str) -> tuple[int, int] | _ImageFault:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            message = f"{path} leads out of the folder of images"
            return _ImageFault("missing", Problem("image", path, message))
        return _read_image(path, images, decode=full)

    faults = []
    for path, result in zip(paths, _on_threads(read, paths, count_progress), strict=True):
        if isinstance(result, _ImageFault):
            faults.append(result)
        elif result != (size_px, size_px):
            message = f"{images / path} is {result[0]} x {result[1]} px, not {size_px} x {size_px}"
            faults.append(_ImageFault("size", Problem("image", path, message)))
    return faults


def unusable_pairs(pairs: Sequence[tuple[str, str]], images: Path) -> list[Problem]:
    """Problems of image pairs: an image that is missing or cannot be decoded, or two of different sizes.

    pairs: paths relative to the folder `images`; an image of several pairs is decoded once.
    """
    paths = list(dict.fromkeys(path for pair in pairs for path in pair))
    read = partial(_read_image, images=images, decode=True)
    results = dict(zip(paths, _on_threads(read, paths, no_progress), strict=True))
    problems = [result.problem for result in results.values() if isinstance(result, _ImageFault)]
    for before, after in dict.fromkeys(pairs):
        sizes = [result for result in (results[before], results[after]) if isinstance(result, tuple)]
        if len(set(sizes)) > 1:
            text = " and ".join(f"{width} x {height}" for width, height in sizes)
            message = f"{images / before} and {after} are {text} px; both dates must have the same size"
            problems.append(Problem("image", before, message))
    return problems


def _on_threads(
    read: Callable[[str], tuple[int, int] | _ImageFault], paths: Sequence[str], count_progress: CountProgress
) -> list[tuple[int, int] | _ImageFault]:
    """Results of `read` for all paths, in order. Threads, since the time goes into the disk, and decoding
    releases the GIL."""
    results = []
    pool = ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 4))
    try:
        with count_progress(len(paths)) as update:
            for completed, result in enumerate(pool.map(read, paths), start=1):
                update(completed, "")
                results.append(result)
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _read_image(path: str, images: Path, *, decode: bool) -> tuple[int, int] | _ImageFault:
    """(width, height) of one image, or its fault."""
    try:
        return image_size(images / path, decode=decode)
    except InputError as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError)
        return _ImageFault("missing" if is_missing else "unreadable", Problem("image", path, str(error)))
