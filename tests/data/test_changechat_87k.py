"""Reader of ChangeChat-87k: six types of records, polygons as answers, contradictions counted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deltavlm.data.check import check_dataset
from deltavlm.data.read import read_dataset
from deltavlm.errors import AnswerParseError, InputError
from deltavlm.tasks import TASKS, contours, locate
from deltavlm.tasks.contours import Contours
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells
from deltavlm.tasks.phrasing import CHANGECHAT_87K
from tests.data.records import PAIR

POLYGONS = (
    "The contours of the changed roads are:[[[0,120],[255,120],[255,130],[0,130]]], "
    "The contours of the changed buildings are:[]."
)
TURNS = (
    *("Please judge whether these two images have changed. Please answer yes or no.", "Yes"),
    "If changes have occurred, count the number of road and building changes separately.",
    *("1 road has changed, and no buildings has changed.", "Please describe the changes."),
    "A road is built.",
)


def typed(kind: int, *texts: str, **changes: Any) -> dict[str, Any]:
    speakers = ("human", "gpt")
    texts = (f"<image> <image> {texts[0]}", *texts[1:])
    messages = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": f"x_{kind}", "image": PAIR, "conversations": messages, "type": kind} | changes


def records() -> list[dict[str, Any]]:
    return [
        typed(1, TASKS["caption"].prompt, "A road is built.", id="x_1a"),
        typed(1, TASKS["caption"].prompt, "A new road appears.", id="x_1b"),
        typed(2, TASKS["change"].prompt, "Yes"),
        typed(3, "How many roads were built?", "One road was built."),
        typed(4, contours.PROMPT, POLYGONS),
        typed(5, "What is the road for?", "It leads to the houses."),
        typed(6, *TURNS),
    ]


def write(folder: Path, content: list[Any]) -> Path:
    path = folder / "changechat_87k_train.json"
    path.write_text(json.dumps(content))
    return path


def test_each_type_is_a_task(tmp_path: Path) -> None:
    data = read_dataset(write(tmp_path, records()), "train")
    assert data.problems == ()
    examples = {example.id: example for example in data.examples}
    assert {name: example.task for name, example in examples.items()} == {
        **{"x_1a": "caption", "x_2": "change", "x_3": "open", "x_4": "location", "x_5": "open"},
        "x_6": "dialogue",
    }
    assert examples["x_1a"].turns[0].answers == ("A road is built.", "A new road appears.")
    assert locate.parse(examples["x_4"].turns[0].answers[0]) == Cells(
        ("center-left", "center-center", "center-right"), ()
    )
    assert examples["x_4"].turns[0].question == TASKS["location"].prompt
    assert len(examples["x_6"].turns) == 3
    assert all(example.changed for example in data.examples)


def test_records_for_training_keep_their_words(tmp_path: Path) -> None:
    data = read_dataset(write(tmp_path, records()), "train", keep_duplicates=True)
    assert [example.id for example in data.examples if example.task == "caption"] == ["x_1a", "x_1b"]
    (location,) = (example for example in data.examples if example.task == "location")
    assert (location.turns[0].question, *location.turns[0].answers) == (contours.PROMPT, POLYGONS)


@pytest.mark.parametrize(("answer", "changed"), [("No", False), ("Yes", True)])
def test_the_flag_is_the_yes_or_no_of_the_pair(tmp_path: Path, answer: str, changed: bool) -> None:
    content = [typed(5, "Why?", "Because."), typed(2, TASKS["change"].prompt, answer)]
    assert {example.changed for example in read_dataset(write(tmp_path, content)).examples} == {changed}
    content[0]["changeflag"] = int(not changed)
    assert {example.changed for example in read_dataset(write(tmp_path, content)).examples} == {not changed}


def test_contradictions_are_told_and_counted(tmp_path: Path) -> None:
    no, none = list(TURNS), list(TURNS)
    no[1], none[3] = "No", "no roads has changed, and no buildings has changed."
    content = [*records(), typed(6, *no, id="y"), typed(6, *none, id="z")]
    data = read_dataset(write(tmp_path, content))
    (problem,) = data.problems
    assert problem.kind == "contradiction"
    assert problem.message.startswith("2 dialogues contradict themselves")
    assert len([example for example in data.examples if example.task == "dialogue"]) == 3
    report = check_dataset(tmp_path)
    assert problem in report.notes
    assert problem not in report.faults


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (typed(7, "q", "a"), "type is 7, not a number from 1 to 6"),
        (typed(True, "q", "a"), "type is True"),
        (typed(4, contours.PROMPT, POLYGONS[:60]), "no list of contours of roads"),
        (typed(2, TASKS["change"].prompt, "perhaps"), "neither yes nor no"),
        (typed(5, "q", "a", image=["one"]), "image is not the paths of two images"),
        (typed(5, "q", "a", changeflag=2), "changeflag is 2, not 0 or 1"),
        (typed(5, "q", "a", "q", "a"), "2 turns, and type 5 has one"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, record: Any, message: str) -> None:
    (problem,) = read_dataset(write(tmp_path, [*records(), record])).problems
    assert problem.location == "changechat_87k_train.json, record 8"
    assert message in problem.message
    with pytest.raises(InputError, match=re.escape(message)):
        read_dataset(write(tmp_path, [record]))


@pytest.mark.parametrize(
    ("polygon", "cells"),
    [
        ([(10, 10), (40, 10), (40, 40), (10, 40)], ("top-left",)),
        ([(80, 10), (90, 10), (90, 20), (80, 20)], ("top-left", "top-center")),
        ([(255, 255)], ("bottom-right",)),
        ([(0, 0), (255, 0)], ("top-left", "top-right")),  # a line has no inside: its ends alone
        ([(128, 0), (255, 128), (128, 255), (0, 128)], locate.LABELS),
        ([(256, 256), (250, 256), (256, 250)], ("bottom-right",)),
    ],
)
def test_polygons_reach_into_cells(polygon: Any, cells: tuple[str, ...]) -> None:
    assert contours.cells_of(Contours(buildings=(tuple(polygon),))) == Cells((), cells)


def test_the_inside_of_a_polygon_is_filled() -> None:
    mask = contours.fill([((10, 20), (30, 20), (30, 60), (10, 60))])
    rows, cols = mask.nonzero()
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (20, 60, 10, 30)
    assert mask[21:60, 11:30].all()


def test_what_is_written_is_read() -> None:
    value = Contours(roads=(((0, 8), (5, 9), (7, 70)),), buildings=(((1, 2), (3, 4), (5, 6)), ((9, 9),)))
    assert contours.parse(contours.format_answer(value)) == value
    assert contours.parse(contours.format_answer(Contours())) == Contours()
    assert contours.parse("There is no difference.") == Contours()


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "two roads",
        POLYGONS.replace("[255,130]", "[255]"),
        POLYGONS.replace("255", "400"),
        POLYGONS.replace("255", '"x"'),
        POLYGONS.partition("],[")[0],
    ],
)
def test_no_contours(reply: str) -> None:
    with pytest.raises(AnswerParseError):
        contours.parse(reply)


def test_replies_become_values_and_words_of_the_tasks() -> None:
    read = {name: phrase.read for name, phrase in CHANGECHAT_87K.phrases.items()}
    assert read["change"]("Yes") is True
    assert read["count"]("1 road has changed, and no buildings has changed.") == Counts(1, 0)
    assert CHANGECHAT_87K.in_words_of_task("location", POLYGONS) == (
        "roads ['center-left', 'center-center', 'center-right'] buildings []"
    )
    values: Any = {"caption": "a road is built", "change": False, "count": Counts(2, 1), "location": Cells()}
    written = {name: phrase.write(values) for name, phrase in CHANGECHAT_87K.phrases.items()}
    assert written == {
        "caption": "A road is built.",
        "change": "No",
        "count": "2 roads have changed, and 1 building has changed.",
        "location": None,  # cells are no polygons
    }
    assert read["count"](str(written["count"])) == Counts(2, 1)
