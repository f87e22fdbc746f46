"""ChangeIMTI: facts about the set, and a reader of its task files into the examples of ChangeChat-105k.

- Content: instructions on image pairs: captions, yes/no, counts and locations of roads and of buildings,
  dialogues of four turns.
- Size: 89,628 on the 8,148 training and validation pairs of LEVIR-CC (24,444 captions, 24,444 dialogues,
  8,148 in each of the other five files); the 1,929 test pairs come on top.
- Splits: train (with LEVIR-CC's validation pairs) and test.
- Images: those of LEVIR-CC, 256 x 256 px at 0.5 m, not part of the set; for academic use.
- Classes: road, building.
- License: not stated here.
- Source: https://github.com/Quan-zzx/ChangeVG (deal_data/deal_data.ipynb writes this layout; the released
  files, `Quan999/ChangeIMTI` on the Hub, have never been read here).
- Paper: ChangeVG, arXiv 2509.23105.

A split is a folder SPLIT_task_data with up to seven JSON lists of `{images: [A, B], conversations: [{from,
value}, ...]}`: caption, binary_class, count_road, count_build, loc_road, loc_build, mul (dialogues). A record
has no id and no change flag, its paths are absolute and end in SPLIT/A/NAME, and roads and buildings are in
different records. The reader joins the records of a pair and rewrites questions and answers in the wording of
ChangeChat-105k, so that every task can parse and score them.

Where no building changed, the turn about buildings of a released dialogue asks about roads, and answers 0 or
No change, also where roads did change: two contradictory answers to one question. The reader lets it ask
about buildings, of which the answer is true, and says how many dialogues these were.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from deltavlm.data.examples import SPLITS, Dataset, Example, Problem, Turn, parse_turns, read_json_list
from deltavlm.errors import AnswerParseError, InputError
from deltavlm.messages import pluralize
from deltavlm.tasks import TaskName, caption, classify, count, locate
from deltavlm.tasks.phrasing import CELL_WORDS
from deltavlm.tasks.text import says_no_change, simplify

__all__ = ["FILES", "find_folder", "read_folder"]

FILES: Mapping[str, TaskName] = {
    "caption.json": "caption",
    "binary_class.json": "change",
    "count_road.json": "count",
    "count_build.json": "count",
    "loc_road.json": "location",
    "loc_build.json": "location",
    "mul.json": "dialogue",
}
_IMAGE_MARKS = re.compile(r"\s*:?\s*<image>(\s*and\s*<image>)?")  # "... in these images:<image> and <image>?"
_Value = TypeVar("_Value")


@dataclass(slots=True)
class _PairRecords:
    """Content of the records of one pair."""

    before: str
    after: str
    captions: list[str] = field(default_factory=list)
    changed: bool | None = None
    counts: dict[str, int] = field(default_factory=dict)  # by file name
    cells: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by file name
    dialogues: list[tuple[Turn, ...]] = field(default_factory=list)
    repaired: int = 0  # dialogues that asked about roads twice


def find_folder(path: Path, split: str) -> Path | None:
    """Folder of the files of a split, at `path` or below; None where `path` does not hold ChangeIMTI."""
    name = f"{split}_task_data"
    for folder in (path / name, path / "muti_task_data" / name, path):  # "muti": the authors' spelling
        # caption.json alone may belong to any set
        if any((folder / file).is_file() for file in FILES if file != "caption.json"):
            return folder
    return None


def read_folder(folder: Path, split: str, tasks: Sequence[TaskName]) -> Dataset:
    """Read the examples of a split; their id is the file name of the first image.

    Raises: InputError when no record can be used.
    """
    match = re.fullmatch(rf"({'|'.join(SPLITS)})_task_data", folder.name)
    split = match[1] if match else split
    pairs: dict[str, _PairRecords] = {}
    problems: list[Problem] = []
    record_counts: list[int] = []
    files = [file for file in FILES if (folder / file).is_file()]
    for file in files:
        try:
            content = read_json_list(folder / file)
        except InputError as error:
            problems.append(Problem("file", file, str(error)))
            record_counts.append(0)
            continue
        record_counts.append(len(content))
        for number, record in enumerate(content, start=1):
            try:
                _add_record(pairs, file, record)
            except (ValueError, AnswerParseError) as error:
                problems.append(Problem("record", f"{file}, record {number}", str(error)))
    examples = [example for pair in pairs.values() for example in _examples(pair, problems)]
    if repaired := sum(pair.repaired for pair in pairs.values()):
        said = pluralize(repaired, "dialogue asks", "dialogues ask")
        message = (
            f"{said} about roads where the answer is about buildings; read as a question about buildings"
        )
        problems.append(Problem("repaired", "mul.json", message))
    if not examples:
        raise InputError(problems[0].message if problems else f"{folder} holds no records")
    return Dataset(
        name="changeimti",
        split=split,
        files=tuple(files),
        examples=tuple(sorted((example for example in examples if example.task in tasks), key=_task_order)),
        problems=tuple(problems),
        records=tuple(record_counts),
        path=folder,
    )


def _task_order(example: Example) -> int:
    return list(dict.fromkeys(FILES.values())).index(example.task)


def _add_record(pairs: dict[str, _PairRecords], file: str, record: Any) -> None:
    """Add a record to those of its pair. Raises: ValueError, AnswerParseError saying what is wrong."""
    if not isinstance(record, dict):
        raise ValueError("expected an object with keys")
    images = record.get("images")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(i, str) for i in images):
        raise ValueError("images are not the paths of two images")
    before, after = (_relative_path(image, date) for image, date in zip(images, "AB", strict=True))
    if before.replace("/A/", "/B/") != after:
        raise ValueError(f"{before} and {after} are not one pair")
    turns = parse_turns(record.get("conversations"))
    task = FILES[file]
    if task != "dialogue" and len(turns) > 1:
        raise ValueError(f"{pluralize(len(turns), 'turn')}, and task {task} has one")
    answer = turns[0].answers[0]
    pair = pairs.setdefault(before, _PairRecords(before, after))
    if task == "caption":
        pair.captions.append(caption.parse(answer))
    elif task == "change":
        pair.changed = _merge_value(pair.changed, classify.parse(answer))
    elif task == "count":
        pair.counts[file] = _merge_value(pair.counts.get(file), _parse_count(answer))
    elif task == "location":
        pair.cells[file] = _merge_value(pair.cells.get(file), _parse_cells(answer))
    else:
        repaired = _ask_about_buildings(turns)
        pair.repaired += repaired != turns
        pair.dialogues.append(tuple(map(_rewrite_turn, repaired)))


def _ask_about_buildings(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Turns of a dialogue; the second of two equal questions about roads is one about buildings.

    >>> turns = tuple(Turn("How many roads have been changed?", (answer,)) for answer in "20")
    >>> [turn.question for turn in _ask_about_buildings(turns)]
    ['How many roads have been changed?', 'How many buildings have been changed?']
    """
    repaired = list(turns)
    for index, (turn, earlier) in enumerate(zip(turns[1:], turns, strict=False), start=1):
        if turn.question == earlier.question and "roads" in turn.question:
            repaired[index] = replace(turn, question=turn.question.replace("roads", "buildings"))
    return tuple(repaired)


def _relative_path(path: str, date: str) -> str:
    """Last three names of a path, `.../test/A/x.png` -> `test/A/x.png`. Raises: ValueError."""
    names = PurePosixPath(path.replace("\\", "/")).parts[-3:]
    if len(names) < 3 or names[0] not in SPLITS or names[1] != date:
        raise ValueError(f"{path!r} does not end in SPLIT/{date}/NAME")
    return "/".join(names)


def _merge_value(earlier: _Value | None, value: _Value) -> _Value:
    """`value`. Raises: ValueError when an earlier record of the pair has another."""
    if earlier is not None and earlier != value:
        raise ValueError(f"an earlier record of this pair says {earlier!r}, this one {value!r}")
    return value


def _parse_count(answer: str) -> int:
    """Whole number of an answer. Raises: ValueError."""
    text = answer.strip().rstrip(".")
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise ValueError(f"{answer!r} is not a number")
    return int(text)


def _parse_cells(answer: str) -> tuple[str, ...]:
    """Our labels of the cells that an answer names, row by row. Raises: ValueError for any other word."""
    if says_no_change(answer):
        return ()
    names = [simplify(name) for name in answer.split(",") if simplify(name)]
    if not names or any(name not in CELL_WORDS for name in names):
        raise ValueError(f"{answer!r} is not a list of cells: {', '.join(CELL_WORDS)}")
    labels = {CELL_WORDS[name] for name in names}
    return tuple(label for label in locate.LABELS if label in labels)


def _rewrite_turn(turn: Turn) -> Turn:
    """Turn without image marks; a yes/no question gets the wording of ChangeChat-105k."""
    answer = turn.answers[0]
    is_yes_no = simplify(answer) in ("yes", "no")
    return Turn(classify.PROMPT if is_yes_no else _IMAGE_MARKS.sub("", turn.question).strip(), (answer,))


def _examples(pair: _PairRecords, problems: list[Problem]) -> list[Example]:
    """Examples of a pair; counts or cells of only one of the two classes are a problem, not an example."""
    name = PurePosixPath(pair.before).name
    changed = _changed(pair)
    examples: list[Example] = []

    def add(task: TaskName, *turns: Turn) -> None:
        examples.append(Example(name, task, turns, changed, pair.before, pair.after))

    if pair.captions:
        add("caption", Turn(caption.PROMPT, tuple(dict.fromkeys(pair.captions))))
    if pair.changed is not None:
        add("change", Turn(classify.PROMPT, (classify.format_answer(pair.changed),)))
    roads, buildings = pair.counts.get("count_road.json"), pair.counts.get("count_build.json")
    if roads is not None and buildings is not None:
        add("count", Turn(count.PROMPT, (count.format_answer(count.Counts(roads, buildings)),)))
    road_cells, building_cells = pair.cells.get("loc_road.json"), pair.cells.get("loc_build.json")
    if road_cells is not None and building_cells is not None:
        cells = locate.Cells(road_cells, building_cells)
        add("location", Turn(locate.PROMPT, (locate.format_answer(cells),)))
    for kind, values in (("count", pair.counts), ("loc", pair.cells)):
        if len(values) == 1:
            (missing,) = {f"{kind}_road.json", f"{kind}_build.json"} - values.keys()
            message = f"{missing} has no usable record of this pair; {kind} is left out"
            problems.append(Problem("record", pair.before, message))
    dialogues: defaultdict[tuple[str, ...], list[tuple[Turn, ...]]] = defaultdict(list)
    for turns in pair.dialogues:
        dialogues[tuple(turn.question for turn in turns)].append(turns)
    for number, (questions, variants) in enumerate(dialogues.items(), start=1):
        answers = [
            tuple(dict.fromkeys(turn.answers[0] for turn in turns)) for turns in zip(*variants, strict=True)
        ]
        add("dialogue", *map(Turn, questions, answers))
        if number > 1:
            examples[-1] = replace(examples[-1], id=f"{name}#{number}")
    return examples


def _changed(pair: _PairRecords) -> bool:
    """Yes/no answer of a pair; without one, the change that its other records imply."""
    if pair.changed is not None:
        return pair.changed
    if pair.dialogues and simplify(pair.dialogues[0][0].answers[0]) in ("yes", "no"):
        return classify.parse(pair.dialogues[0][0].answers[0])
    if pair.counts or pair.cells:
        return any(pair.counts.values()) or any(pair.cells.values())
    return any(not says_no_change(sentence) for sentence in pair.captions)
