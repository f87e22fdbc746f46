"""Phrasebooks: every reply that instruction-tuned models are known to give is read, and nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from deltavlm.errors import AnswerParseError
from deltavlm.tasks import TASKS, TaskName
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells
from deltavlm.tasks.phrasing import DELTAVLM, GENERIC, PHRASEBOOKS, Phrasebook

OBJECTS = {"new_roads": 0, "new_buildings": 3, "road_cells": [], "building_cells": ["top-left", "center"]}


def test_every_phrasebook_asks_all_standard_questions() -> None:
    standard = {name for name, task in TASKS.items() if task.prompt}
    for book in PHRASEBOOKS.values():
        assert {*book.phrases} == standard


def test_the_words_of_deltavlm_are_those_of_its_training() -> None:
    for name, phrase in DELTAVLM.phrases.items():
        assert phrase.prompt == TASKS[name].prompt
        assert DELTAVLM.in_words_of_task(name, "anything at all") == "anything at all"


_CHANGED_87K = b"Please judge whether these two images have changed. Please answer yes or no."
_PROMPTS: dict[str, dict[TaskName, bytes]] = {
    "deltavlm": {
        "caption": b"Please briefly describe the changes in these two images.",
        "change": _CHANGED_87K,
        "count": b"Please determine how many roads and buildings have changed?",
        "location": b"Please indicate the locations where changes have occurred in the buildings and roads, "
        b"using a 3x3 grid (namely, 'top', 'center', and 'bottom' vertically and 'left', 'center', 'right' "
        b"horizontally).",
    },
    "mci": {"caption": b"caption", "change": b"changed", "count": b"count", "location": b"where"},
    "changechat-87k": {
        "caption": b"Please briefly describe the changes in these two images.",
        "change": _CHANGED_87K,
        "count": b"If changes have occurred, count the number of road and building changes separately.",
        "location": b"Please draw the contours of the changed buildings and roads, approximating them with "
        b"polygons.",
    },
    "changeimti": {
        "caption": b"<guide>Please describe the changes in <image> and <image>",
        "change": b"Please check if there have been any changes to the roads or buildings in these two "
        b"images:<image> and <image>. Please answer yes or no.",
        "count": b"How many roads have been changed in these two images:<image> and <image>\n"
        b"How many buildings have been changed in these two images:<image> and <image>",
        "location": b"Please tell me where the roads have changed in these two images:<image> and <image>,"
        b"if no change please output: No change.\n"
        b"Please tell me where the buildings have changed in these two images:<image> and <image>,"
        b"if no change please output: No change.",
    },
}
"""Phrasebook -> task -> question, as it was written for the training; none is made from the program's."""


@pytest.mark.parametrize(("book", "task"), [(book, task) for book in _PROMPTS for task in _PROMPTS[book]])
def test_the_questions_of_a_published_system_are_these_bytes(book: str, task: TaskName) -> None:
    assert PHRASEBOOKS[book].phrase(task).prompt.encode() == _PROMPTS[book][task]


def test_every_phrasebook_of_a_published_system_is_compared() -> None:
    assert PHRASEBOOKS.keys() - _PROMPTS.keys() == {"generic"}
    assert all(PHRASEBOOKS[book].phrases.keys() == tasks.keys() for book, tasks in _PROMPTS.items())


def test_a_later_turn_of_a_dialogue_is_these_bytes() -> None:
    turns = ((_CHANGED_87K.decode(), "Yes"),)
    question = "If changes have occurred, count the number of road and building changes separately."
    prompt, history = DELTAVLM.place_history(turns, question)
    assert history == ()
    assert prompt.encode() == (
        b"q please judge whether these two images have changed please answer yes or no a yes "
        b"q if changes have occurred, count the number of road and building changes separately"
    )
    for book in ("changechat-87k", "changeimti", "mci"):
        assert PHRASEBOOKS[book].place_history(turns, question) == (question, turns)


@pytest.mark.parametrize(
    ("reply", "changed"),
    [
        ("Yes", True),
        ("no.", False),
        ("**No**", False),
        ("Yes, three houses were built in the north.", True),
        ("The answer is: no", False),
        ("There is no difference.", False),
        ("No, no houses were built.", False),
        ("I see no visible difference between the two images.", False),
        ("No, I do not see any new houses that were built.", False),
        ("No, the road wasn't removed.", False),
    ],
)
def test_yes_and_no_are_read(reply: str, changed: bool) -> None:
    assert GENERIC.phrase("change").read(reply) is changed
    assert GENERIC.in_words_of_task("change", reply) == ("yes" if changed else "no")


@pytest.mark.parametrize(
    "reply",
    [
        *("", "I cannot tell.", "It could be yes or no.", "yesterday", "Yes or no", "I would not say yes."),
        *("Something changed: there were no houses before.", "Two houses were built, no roads."),
        "There is no doubt that a house was built.",
        "There is no change in the roads, two houses were built.",
        "No. Two houses were built.",
        "I see no difference except for a new road.",
    ],
)
def test_what_is_neither_yes_nor_no_is_kept_without_a_value(reply: str) -> None:
    with pytest.raises(AnswerParseError):
        GENERIC.phrase("change").read(reply)
    assert GENERIC.in_words_of_task("change", reply) == reply


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(OBJECTS),
        f"```json\n{json.dumps(OBJECTS, indent=2)}\n```",
        f"Here is the comparison: {json.dumps(OBJECTS)} Let me know if you need more.",
        json.dumps(OBJECTS).replace("top-left", "Top Left").replace("3", '"3"'),
        json.dumps(OBJECTS).replace("0", "0.0").replace("3", "3.0"),
        json.dumps(OBJECTS).replace("3", '"3.0"'),
        json.dumps(OBJECTS)[:-1] + ",}",
        f"Scale {{0.5}}: {json.dumps(OBJECTS)} {{I counted twice}}",
        f"{json.dumps(OBJECTS)}\n{json.dumps(OBJECTS, indent=1)}",
        json.dumps({"answer": OBJECTS}),
    ],
)
def test_counts_and_cells_are_read_from_one_reply(reply: str) -> None:
    assert GENERIC.phrase("count").read(reply) == Counts(0, 3)
    assert GENERIC.phrase("location").read(reply) == Cells((), ("top-left", "center-center"))
    assert GENERIC.in_words_of_task("count", reply) == "no new roads and 3 new buildings"
    assert GENERIC.in_words_of_task("location", reply) == "roads [] buildings ['top-left', 'center-center']"


@pytest.mark.parametrize(
    "reply",
    [
        '{"new_roads": 1',
        '{"new_roads": 2, "new_buildings": 13',  # perhaps of 130
        json.dumps(OBJECTS)[:-4],
        f"{json.dumps(OBJECTS)} or {json.dumps({**OBJECTS, 'new_buildings': 4})}",
        json.dumps(OBJECTS)[:-1] + ', "new_buildings": 5, "road_cells": ["center"]}',
        "one road and two buildings, that is {",
        '{"a": ' * 5000,
    ],
)
def test_json_that_is_cut_off_or_says_two_things_has_no_value(reply: str) -> None:
    """Its words alone would give numbers that nobody has answered."""
    for task in ("count", "location"):
        with pytest.raises(AnswerParseError):
            GENERIC.phrase(task).read(reply)


@pytest.mark.parametrize(
    "broken",
    [
        {**OBJECTS, "new_buildings": -1},
        {**OBJECTS, "new_buildings": 1.5},
        {**OBJECTS, "new_buildings": "1.5"},
        {**OBJECTS, "new_buildings": math.inf},
        {**OBJECTS, "new_buildings": True},
        {**OBJECTS, "new_buildings": None},
        {**OBJECTS, "new_buildings": 10_000_000},
        {},
    ],
)
def test_a_count_that_is_none_is_not_read(broken: dict[str, object]) -> None:
    with pytest.raises(AnswerParseError):
        GENERIC.phrase("count").read(json.dumps(broken))


@pytest.mark.parametrize("cells", ["top-left", ["north"], [1], None, [["top-left"]]])
def test_cells_that_are_none_are_not_read(cells: object) -> None:
    with pytest.raises(AnswerParseError):
        GENERIC.phrase("location").read(json.dumps({**OBJECTS, "building_cells": cells}))


def test_json_that_was_cut_off_is_not_read() -> None:
    cut = json.dumps(OBJECTS)[:-30]
    for task in ("count", "location"):
        with pytest.raises(AnswerParseError):
            GENERIC.phrase(task).read(cut)  # type: ignore[arg-type]


def test_a_caption_loses_its_quotes() -> None:
    assert GENERIC.in_words_of_task("caption", '"Two houses are built."\n') == "Two houses are built."


def test_the_schema_allows_what_the_prompt_asks_for() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(GENERIC.phrase("count").schema)
    jsonschema.validate({**OBJECTS, "building_cells": ["top-left", "center-center"]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**OBJECTS, "road_cells": ["north"]}, schema)


@pytest.mark.parametrize("book", PHRASEBOOKS.values(), ids=lambda book: str(book.name))
def test_a_written_reply_is_read_as_the_same_value(book: Phrasebook) -> None:
    values: dict[TaskName, Any] = {
        "caption": "a house is built at the top left",
        "change": True,
        "count": Counts(roads=0, buildings=3),
        "location": Cells(buildings=("top-left", "center-center")),
    }
    for name, phrase in book.phrases.items():
        reply = phrase.write(values)
        if (book.name, name) == ("changechat-87k", "location"):
            assert reply is None  # it is answered with polygons, which cells do not give
            continue
        assert reply is not None
        assert phrase.read(reply) == values[name]
    assert str(book.phrase("change").write({"change": False})).lower() == "no"


def test_counts_are_written_with_cells_only() -> None:
    assert GENERIC.phrase("count").write({"count": Counts(0, 1)}) is None
    assert GENERIC.phrase("location").write({"location": Cells()}) is None
