"""ChangeChat-87k: facts about the set, and a reader of its records.

- Content: visual instructions on the image pairs of LEVIR-CC, in six types.
- Size: about 87,000 instructions on its 6,815 training pairs.
- Splits: train; its authors published no test file with this schema.
- Images: those of LEVIR-CC, 256 x 256 px at 0.5 m, RGB, not part of the set; for academic use.
- Classes: road, building.
- License: not stated here.
- Source: https://github.com/hanlinwu/ChangeChat; its files were never read here.
- Paper: ChangeChat, arXiv 2409.08582.

A record is `{id, image: [A, B], changeflag?, conversations: [{from: human | gpt, value}, ...], type}`:

    1    caption; one record for each reference, five a pair
    2    yes or no
    3    a question about counts, written for its pair
    4    contours: polygons of the changed roads and buildings, see `tasks.contours`
    5    a question written for its pair
    6    dialogue: yes or no, counts, a description

For scoring, the captions of a pair are one example with all references, and polygons become the cells that
they reach into; for training every record keeps its words. A record without a flag has that of the yes or no
of its pair. Dialogues that contradict themselves, with No and a count above 0 or Yes and none, are kept and
counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deltavlm.data.examples import Example, Problem, Turn, parse_turns, require_text
from deltavlm.errors import AnswerParseError
from deltavlm.messages import pluralize
from deltavlm.tasks import TaskName, caption, classify, contours, count, locate
from deltavlm.tasks.text import says_no_change

__all__ = ["TASK_OF_TYPE", "is_typed", "parse_record", "read_records"]

TASK_OF_TYPE: Mapping[int, TaskName] = {
    1: "caption",
    2: "change",
    3: "open",
    4: "location",
    5: "open",
    6: "dialogue",
}
"""Type of a record -> task that scores it."""


def is_typed(record: Any) -> bool:
    """True for a record of this set."""
    return isinstance(record, dict) and "type" in record and "conversations" in record


def parse_record(record: Mapping[str, Any]) -> tuple[Example, bool | None]:
    """Example of a record in its own words, and its change flag if it has one.

    Raises: ValueError saying what is wrong with the record.
    """
    task = TASK_OF_TYPE.get(record["type"]) if type(record["type"]) is int else None
    if task is None:
        raise ValueError(f"type is {record['type']!r}, not a number from 1 to 6")
    images = record.get("image")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(i, str) for i in images):
        raise ValueError("image is not the paths of two images")
    flag = record.get("changeflag")
    if flag not in (None, 0, 1) or isinstance(flag, float):
        raise ValueError(f"changeflag is {flag!r}, not 0 or 1")
    turns = parse_turns(record.get("conversations"))
    if task != "dialogue" and len(turns) > 1:
        raise ValueError(f"{pluralize(len(turns), 'turn')}, and type {record['type']} has one")
    record_id = record.get("id")
    if not isinstance(record_id, int) or isinstance(record_id, bool):
        record_id = require_text(record, "id")
    read = {"location": contours.parse, "change": classify.parse}.get(task)
    if read is not None:
        try:
            read(turns[0].answers[0])
        except AnswerParseError as error:
            raise ValueError(str(error)) from error
    example = Example(str(record_id), task, turns, False, images[0], images[1])
    return example, None if flag is None else bool(flag)


def read_records(
    parsed: Sequence[tuple[Example, bool | None]], *, for_training: bool
) -> tuple[list[Example], list[Problem]]:
    """Examples of parsed records with the change flags of their pairs, and a count of contradictions."""
    flags: dict[str, bool] = {}
    for example, flag in parsed:
        if flag is None and example.task == "change":
            flag = classify.parse(example.turns[0].answers[0])
        if flag is not None:
            flags.setdefault(example.before, flag)
    for example, _ in parsed:
        if example.task == "caption":
            flags.setdefault(example.before, not says_no_change(example.turns[0].answers[0]))
    examples = [replace(example, changed=flags.get(example.before, True)) for example, _ in parsed]
    contradictions = sum(_contradicts_itself(example) for example in examples)
    problems = []
    if contradictions:
        said = pluralize(contradictions, "dialogue contradicts itself", "dialogues contradict themselves")
        message = f"{said}: yes or no in the first turn, and counts in the second; kept as they are"
        problems.append(Problem("contradiction", "type 6", message))
    return (examples if for_training else _for_scoring(examples)), problems


def _for_scoring(examples: Sequence[Example]) -> list[Example]:
    """Examples with all captions of a pair in one, in the place of the first, and cells for polygons."""
    captions: dict[str, list[str]] = {}
    for example in examples:
        if example.task == "caption":
            captions.setdefault(example.before, []).append(example.turns[0].answers[0])
    scored = []
    for example in examples:
        if example.task == "caption":
            answers = captions.pop(example.before, None)
            if answers is not None:
                turn = Turn(caption.PROMPT, tuple(dict.fromkeys(answers)))
                scored.append(replace(example, turns=(turn,)))
        elif example.task == "location":
            cells = contours.cells_of(contours.parse(example.turns[0].answers[0]))
            turn = Turn(locate.PROMPT, (locate.format_answer(cells),))
            scored.append(replace(example, turns=(turn,)))
        else:
            scored.append(example)
    return scored


def _contradicts_itself(example: Example) -> bool:
    """True for a dialogue that says No and a count above 0, or Yes and none."""
    if example.task != "dialogue" or len(example.turns) < 2:
        return False
    try:
        changed = classify.parse(example.turns[0].answers[0])
        counts = count.parse(example.turns[1].answers[0])
    except AnswerParseError:
        return False
    return changed != bool(counts.roads or counts.buildings)
