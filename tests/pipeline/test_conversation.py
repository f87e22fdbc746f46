"""Questions about one chip, independent or as a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deltavlm.errors import ModelError, RasterError
from deltavlm.geo.chips import chip_at, chip_of_pair, chip_of_window
from deltavlm.geo.geobox import Window
from deltavlm.geo.pair import PairReader, RasterPair, open_pair
from deltavlm.messages import UNSUPPORTED
from deltavlm.model.interface import Question, Reply
from deltavlm.pipeline.answers import read_answer
from deltavlm.pipeline.conversation import (
    Conversation,
    answer_features,
    answers,
    encode_chip,
    questions_of,
)
from deltavlm.pipeline.schema import ANSWERS
from deltavlm.tasks import classify, count, locate
from deltavlm.tasks.questions import QuestionSpec
from tests.conftest import Scene
from tests.rasters import write_raster
from tests.scripted_model import ScriptedModel


def echo(before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
    """Reply with the prompt."""
    return Reply(f"[{question.prompt}]", -0.5)


@pytest.fixture
def reader(scene: Scene) -> Iterator[PairReader]:
    with open_pair(RasterPair(*scene.args)) as reader:
        yield reader


def test_a_prompt_of_a_task_becomes_that_task() -> None:
    specs = questions_of([classify.PROMPT.lower(), "Is it green?", classify.PROMPT])
    assert [(spec.name, spec.task) for spec in specs] == [
        ("question", "change"),
        ("question_2", "open"),
        ("question_3", "open"),
    ]


def test_a_standard_question_has_its_standard_words_twice_too() -> None:
    specs = questions_of(["How many houses were built?", "How many roads were built?"])
    assert [(spec.task, spec.prompt) for spec in specs] == [("count", count.PROMPT), ("open", count.PROMPT)]


def test_a_standard_question_is_asked_without_history(reader: PairReader) -> None:
    """An answer depends on the turns before it; a standard one must be that of `analyze`."""
    model = ScriptedModel(script=echo)
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    talk.ask("Is it green?")
    record = talk.ask("How many houses were built?")
    assert (record["question"], record["asked"]) == ("How many houses were built?", count.PROMPT)
    assert record["answer"] == f"[{count.PROMPT}]"
    assert talk.ask("And now?")["answer"].startswith("[q is it green? a ")
    assert talk.turns[1] == ("How many houses were built?", f"[{count.PROMPT}]")


def test_a_chip_is_encoded_once_for_all_questions(reader: PairReader) -> None:
    model = ScriptedModel(script=echo)
    encoded = encode_chip(reader, model, chip_of_pair(reader, 32))
    replies = answers(model, encoded, questions_of(["One?", "Two?"]))
    assert [answer.text for answer in replies] == ["[One?]", "[Two?]"]
    assert model.batches == [1]


def test_the_history_is_part_of_the_prompt(reader: PairReader) -> None:
    model = ScriptedModel(queue=["Yes, two.", "In the north."])
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    talk.ask("Any houses?")
    talk.ask("Where?")
    model.script = echo
    assert talk.ask("Why?")["answer"] == "[q any houses? a yes, two q where? a in the north q why?]"
    assert model.history[0][0].prompt == "Any houses?"
    assert len(talk.records) == 3


def test_the_fourth_answer_depends_on_the_first_three(reader: PairReader) -> None:
    replies = []
    for first in ("red", "blue"):
        model = ScriptedModel(queue=[first, "b", "c"])
        talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
        for question in ("1?", "2?", "3?"):
            talk.ask(question)
        model.script = echo
        replies.append(talk.ask("4?")["answer"])
    assert replies == [f"[q 1? a {first} q 2? a b q 3? a c q 4?]" for first in ("red", "blue")]


def test_a_long_conversation_drops_its_oldest_turns_and_never_the_question(reader: PairReader) -> None:
    model = ScriptedModel(script=lambda *_: Reply("ten words " * 5, -0.5))
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    for number in range(6):
        talk.ask(f"question {number}")
    model.script = echo
    answer = talk.ask("and the last?")["answer"]
    assert answer.endswith("q and the last?]")
    assert "question 5" in answer
    assert "question 0" not in answer
    assert len(answer.split()) <= 50


def test_a_question_that_fails_is_not_in_the_history(reader: PairReader) -> None:
    def failing(before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
        if "bad" in question.prompt:
            raise ModelError("no")
        return echo(before, after, question)

    model = ScriptedModel(script=failing)
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    talk.ask("good")
    with pytest.raises(ModelError):
        talk.ask("bad")
    assert talk.ask("next")["answer"] == "[q good a [good] q next]"
    assert len(talk.records) == 2


def test_a_turn_without_an_answer_is_no_history(reader: PairReader) -> None:
    """A question that refers to it is not about the turn before that one."""
    model = ScriptedModel(queue=["yes, two houses", UNSUPPORTED, UNSUPPORTED, "one road", "left"])
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    questions = ("Any houses?", "Any pools?", "Where are they?", "Any roads?", "Where?")
    records = [talk.ask(question) for question in questions]
    assert [record["status"] for record in records] == [
        *("answered", "unsupported", "unsupported", "answered", "answered")
    ]
    assert (records[1]["value"], records[1]["score"]) == (None, None)
    asked = [question for (question,) in model.history]
    assert [question.after_answer for question in asked] == [False, True, False, False, True]
    assert [question.typed for question in asked] == [*questions]
    assert asked[4].prompt == "q any houses? a yes, two houses q any roads? a one road q where?"


def test_a_threshold_does_not_judge_a_question_without_an_answer() -> None:
    spec = QuestionSpec("pool", "change", "Is there a pool?")
    answer = read_answer(spec, Reply(UNSUPPORTED, 0.9), threshold=0.5)
    assert (answer.status, answer.value, answer.score) == ("unsupported", None, None)


def test_a_standard_question_is_never_checked(reader: PairReader) -> None:
    model = ScriptedModel()
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    talk.ask("Has anything changed?")
    assert model.history[0][0].typed == ""


def test_another_chip_clears_the_history(reader: PairReader) -> None:
    model = ScriptedModel(script=echo)
    talk = Conversation(reader, model, encode_chip(reader, model, chip_of_pair(reader, 32)))
    talk.ask("here?")
    talk.go_to(chip_of_window(reader, Window(64, 32, 32, 32), 32))
    assert talk.ask("there?")["answer"] == "[there?]"
    assert [record["window"]["col_off"] for record in talk.records] == [0, 64]


def test_a_record_describes_chip_and_images(reader: PairReader) -> None:
    model = ScriptedModel(queue=["roads [] buildings ['top-left']"])
    chip = chip_of_window(reader, Window(64, 32, 32, 32), 32)
    talk = Conversation(reader, model, encode_chip(reader, model, chip))
    record = json.loads(json.dumps(talk.ask(locate.PROMPT)))
    assert record["task"] == "location"
    assert record["value"] == {"roads": [], "buildings": ["top-left"]}
    assert record["window"] == {"col_off": 64, "row_off": 32, "width": 32, "height": 32, "size": 32}
    west, south, east, north = record["bounds"]
    assert 0 < east - west < 1e-3
    assert 0 < north - south < 1e-3
    assert record["model"] == "scripted 0123456789abcdef"
    assert (record["before"], record["after"]) == tuple(view.source.name for view in reader.views)
    assert record["gsd_m"] == pytest.approx(0.5, rel=0.01)


def test_answers_as_features(reader: PairReader) -> None:
    model = ScriptedModel(queue=["roads ['center-left'] buildings ['top-left']"])
    chip = chip_of_window(reader, Window(64, 32, 32, 32), 32)
    encoded = encode_chip(reader, model, chip)
    turns = [(locate.PROMPT, answers(model, encoded, questions_of([locate.PROMPT]))[0])]
    features = list(answer_features(model, encoded, turns))
    rows = [feature.row(ANSWERS) for feature in features]
    assert [(row["kind"], row["class"], row["cell"]) for row in rows] == [
        ("window", None, None),
        ("cell", "road", "center-left"),
        ("cell", "building", "top-left"),
        ("mask", "building_built", None),
    ]
    assert features[0].geometry.equals(chip.footprint)
    assert features[2].geometry.equals(chip.cell(0, 0))
    assert features[3].geometry.area == pytest.approx(chip.footprint.area / 4)


def test_a_list_of_cells_becomes_features(reader: PairReader) -> None:
    model = ScriptedModel(queue=["top-left, center-center", "top-left of it"])
    encoded = encode_chip(reader, model, chip_of_window(reader, Window(0, 0, 32, 32), 32))
    specs = questions_of(["Where were houses built?", "Where?"])
    turns = list(zip([spec.prompt for spec in specs], answers(model, encoded, specs), strict=True))
    rows = [feature.row(ANSWERS) for feature in answer_features(model, encoded, turns)]
    assert [(row["class"], row["cell"]) for row in rows if row["kind"] == "cell"] == [
        (None, "top-left"),
        (None, "center-center"),
    ]


def test_a_chip_without_data_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    path = str(write_raster(tmp_path / "empty.tif", np.zeros_like(pixels), nodata=0))
    with (
        open_pair(RasterPair(path, path)) as reader,
        pytest.raises(RasterError, match="no pixel with data on both dates"),
    ):
        encode_chip(reader, ScriptedModel(), chip_of_pair(reader, 32))


def test_nano_uses_the_history() -> None:
    """The same fourth question means new roads in one conversation and new buildings in the other."""
    from deltavlm.model.kinds import load_model

    folder = Path(__file__).parent.parent.parent / "sample_data"
    model = load_model("nano", device="cpu")
    replies = []
    with open_pair(RasterPair(str(folder / "before.tif"), str(folder / "after.tif"))) as reader:
        encoded = encode_chip(reader, model, chip_at(reader, 15.00087, 48.75013, 256))
        for second, third in (
            ("Were any houses built?", "Are there any new roads?"),
            ("Was a road built?", "Are there any new buildings?"),
        ):
            talk = Conversation(reader, model, encoded)
            for question in ("Has anything changed?", second, third, "How many?"):
                talk.ask(question)
            replies.append(talk.records[-1]["answer"])
    assert "road" in replies[0]
    assert "road" not in replies[1]
