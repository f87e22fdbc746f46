"""ChangeIMTI (arXiv 2509.23105) as its authors' data preparation writes it, read into our examples.

A split is a folder SPLIT_task_data with up to seven JSON lists of `{images: [A, B], conversations: [{from,
value}, ...]}`: caption, binary_class, count_road, count_build, loc_road, loc_build, mul (dialogues). A record
has no id and no changeflag, names pictures by whole paths that end in SPLIT/A/NAME, and speaks of one kind of
thing at a time. Here the records of a pair are put together, and told in ChangeChat's words, so that every
task reads and scores them.

The layout is that of github.com/Quan-zzx/ChangeVG, deal_data/deal_data.ipynb. The released files were never
seen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from deltavlm.data.examples import Dataset, Example, Problem, Turn, parse_turns, read_json_list
from deltavlm.errors import AnswerParseError, InputError
from deltavlm.tasks import TaskName, caption, classify, count, locate
from deltavlm.tasks.text import says_no_change, simplify

__all__ = ["CELL_LABELS", "FILES", "find_folder", "read_folder"]

FILES: Mapping[str, TaskName] = {
    "caption.json": "caption",
    "binary_class.json": "change",
    "count_road.json": "count",
    "count_build.json": "count",
    "loc_road.json": "location",
    "loc_build.json": "location",
    "mul.json": "dialogue",
}
CELL_LABELS: Mapping[str, str] = {
    "top left corner": "top-left",
    "top": "top-center",
    "top right corner": "top-right",
    "left": "center-left",
    "center": "center-center",
    "right": "center-right",
    "lower left corner": "bottom-left",
    "lower": "bottom-center",
    "lower right corner": "bottom-right",
}
"""Its names of the nine cells, and ours."""

_TOKENS = re.compile(r"\s*:?\s*<image>(\s*and\s*<image>)?")  # "... in these two images:<image> and <image>?"
_Value = TypeVar("_Value")


@dataclass(slots=True)
class _Pair:
    """What the files say of one pair."""

    before: str
    after: str
    captions: list[str] = field(default_factory=list)
    changed: bool | None = None
    counts: dict[str, int] = field(default_factory=dict)  # file -> how many
    cells: dict[str, tuple[str, ...]] = field(default_factory=dict)  # file -> labels
    dialogues: list[tuple[Turn, ...]] = field(default_factory=list)


def find_folder(path: Path, split: str) -> Path | None:
    """The folder of a split's files, at or below `path`; None where this is no ChangeIMTI."""
    name = f"{split}_task_data"
    for folder in (path / name, path / "muti_task_data" / name, path):  # "muti": as its authors spell it
        # a caption.json alone may be anybody's
        if any((folder / file).is_file() for file in FILES if file != "caption.json"):
            return folder
    return None


def read_folder(folder: Path, split: str, tasks: Sequence[TaskName]) -> Dataset:
    """The examples of a split, pair by pair; the id of each is the file name of the first picture.

    Raises: InputError when nothing in the files can be used.
    """
    match = re.fullmatch(r"(train|val|test)_task_data", folder.name)
    split = match[1] if match else split
    pairs: dict[str, _Pair] = {}
    problems: list[Problem] = []
    numbers: list[int] = []
    files = [file for file in FILES if (folder / file).is_file()]
    for file in files:
        try:
            content = read_json_list(folder / file)
        except InputError as error:
            problems.append(Problem("file", file, str(error)))
            numbers.append(0)
            continue
        numbers.append(len(content))
        for number, record in enumerate(content, start=1):
            try:
                _take(pairs, file, record)
            except (ValueError, AnswerParseError) as error:
                problems.append(Problem("record", f"{file}, record {number}", str(error)))
    examples = [example for pair in pairs.values() for example in _examples(pair, files, problems)]
    if not examples:
        raise InputError(problems[0].message if problems else f"{folder} holds no records")
    return Dataset(
        name="changeimti",
        split=split,
        files=tuple(files),
        examples=tuple(sorted((one for one in examples if one.task in tasks), key=_order)),
        problems=tuple(problems),
        records=tuple(numbers),
        path=folder,
    )


def _order(example: Example) -> int:
    return list(dict.fromkeys(FILES.values())).index(example.task)


def _take(pairs: dict[str, _Pair], file: str, record: Any) -> None:
    """Adds a record to its pair. Raises: ValueError, AnswerParseError saying what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError("expected an object with keys")
    images = record.get("images")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(i, str) for i in images):
        raise ValueError("images are not the paths of two pictures")
    before, after = (_relative(image, date) for image, date in zip(images, "AB", strict=True))
    if before.replace("/A/", "/B/") != after:
        raise ValueError(f"{before} and {after} are not one pair")
    turns = parse_turns(record.get("conversations"))
    task = FILES[file]
    if task != "dialogue" and len(turns) > 1:
        raise ValueError(f"{len(turns)} turns where task {task} has one")
    answer = turns[0].answers[0]
    pair = pairs.setdefault(before, _Pair(before, after))
    if task == "caption":
        pair.captions.append(caption.parse(answer))
    elif task == "change":
        pair.changed = _same(pair.changed, classify.parse(answer))
    elif task == "count":
        pair.counts[file] = _same(pair.counts.get(file), _number(answer))
    elif task == "location":
        pair.cells[file] = _same(pair.cells.get(file), _labels(answer))
    else:
        pair.dialogues.append(tuple(map(_plain, turns)))


def _relative(path: str, date: str) -> str:
    """`.../test/A/x.png` -> `test/A/x.png`. Raises: ValueError."""
    parts = PurePosixPath(path.replace("\\", "/")).parts[-3:]
    if len(parts) < 3 or parts[0] not in ("train", "val", "test") or parts[1] != date:
        raise ValueError(f"{path!r} does not end in SPLIT/{date}/NAME")
    return "/".join(parts)


def _same(known: _Value | None, value: _Value) -> _Value:
    """Raises: ValueError where another record has said otherwise."""
    if known is not None and known != value:
        raise ValueError(f"an earlier record of this pair says {known!r}, this one {value!r}")
    return value


def _number(answer: str) -> int:
    """Raises: ValueError."""
    text = answer.strip().rstrip(".")
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise ValueError(f"{answer!r} is not a number")
    return int(text)


def _labels(answer: str) -> tuple[str, ...]:
    """Raises: ValueError for a place that is none."""
    if says_no_change(answer):
        return ()
    places = [simplify(place) for place in answer.split(",") if simplify(place)]
    strange = [place for place in places if place not in CELL_LABELS]
    if strange or not places:
        raise ValueError(f"{answer!r} names no place of the grid: {', '.join(CELL_LABELS)}")
    named = {CELL_LABELS[place] for place in places}
    return tuple(label for label in locate.LABELS if label in named)


def _plain(turn: Turn) -> Turn:
    """A turn without the marks of its pictures; the yes/no question in ChangeChat's words."""
    answer = turn.answers[0]
    is_yes_no = simplify(answer) in ("yes", "no")
    return Turn(classify.PROMPT if is_yes_no else _TOKENS.sub("", turn.question).strip(), (answer,))


def _examples(pair: _Pair, files: Sequence[str], problems: list[Problem]) -> list[Example]:
    """The examples of a pair; what is only half there is a problem."""
    name = PurePosixPath(pair.before).name
    changed = _changed(pair)
    found: list[Example] = []

    def tell(task: TaskName, *turns: Turn) -> None:
        found.append(Example(name, task, turns, changed, pair.before, pair.after))

    if pair.captions:
        tell("caption", Turn(caption.PROMPT, tuple(dict.fromkeys(pair.captions))))
    if pair.changed is not None:
        tell("change", Turn(classify.PROMPT, (classify.format_answer(pair.changed),)))
    roads, buildings = pair.counts.get("count_road.json"), pair.counts.get("count_build.json")
    if roads is not None and buildings is not None:
        tell("count", Turn(count.PROMPT, (count.format_answer(count.Counts(roads, buildings)),)))
    where = pair.cells.get("loc_road.json"), pair.cells.get("loc_build.json")
    if where[0] is not None and where[1] is not None:
        cells = locate.Cells(where[0], where[1])
        tell("location", Turn(locate.PROMPT, (locate.format_answer(cells),)))
    for kind, known in (("count", pair.counts), ("loc", pair.cells)):
        halves = {f"{kind}_road.json", f"{kind}_build.json"}
        if len(known) == 1:
            (other,) = halves - known.keys()
            what = f"{other} has no usable record of this pair; {kind} is left out"
            problems.append(Problem("record", f"{pair.before}", what))
    talks: defaultdict[tuple[str, ...], list[tuple[Turn, ...]]] = defaultdict(list)
    for turns in pair.dialogues:
        talks[tuple(turn.question for turn in turns)].append(turns)
    for number, told in enumerate(talks.values(), start=1):
        answers = [tuple(dict.fromkeys(turn.answers[0] for turn in same)) for same in zip(*told, strict=True)]
        tell("dialogue", *(Turn(turn.question, a) for turn, a in zip(told[0], answers, strict=True)))
        if number > 1:
            found[-1] = replace(found[-1], id=f"{name}#{number}")
    return found


def _changed(pair: _Pair) -> bool:
    """Its yes/no; where a pair has none, what the other records say."""
    if pair.changed is not None:
        return pair.changed
    if pair.dialogues and simplify(pair.dialogues[0][0].answers[0]) in ("yes", "no"):
        return classify.parse(pair.dialogues[0][0].answers[0])
    if pair.counts or pair.cells:
        return any(pair.counts.values()) or any(pair.cells.values())
    return any(not says_no_change(sentence) for sentence in pair.captions)
