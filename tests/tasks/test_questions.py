"""Question sets: the shipped one, and error messages for invalid ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from deltavlm.config import shipped_config
from deltavlm.errors import ConfigError
from deltavlm.tasks import TASKS, SingleTurnTask, classify
from deltavlm.tasks.questions import (
    load_questions,
    parse_questions,
    pick_questions,
    question_spec,
    task_meant,
)


def test_the_shipped_set_has_the_four_standard_questions_in_their_trained_words() -> None:
    specs = load_questions(shipped_config("questions.yaml"))
    assert [spec.name for spec in specs] == ["caption", "change", "count", "location"]
    assert {spec.task for spec in specs} | {"open"} == {*get_args(SingleTurnTask)}
    assert specs[1].prompt == classify.PROMPT


def test_open_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.yaml"
    path.write_text('- {name: water, task: open, prompt: "Any\\nwater?"}\n- {name: cap, task: caption}\n')
    specs = load_questions(path)
    assert [(spec.name, spec.task) for spec in specs] == [("water", "open"), ("cap", "caption")]
    assert specs[0].prompt == "Any water?"  # one line


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (None, ["list of questions"]),
        ([], ["list of questions"]),
        ({"name": "a"}, ["list of questions"]),
        ([3], ["entry 1", "3"]),
        ([{"name": "a", "tsk": "open"}], ["entry 1", "'tsk'", "'task'"]),
        ([{"name": "a", "task": "captoin"}], ["entry 1", "'captoin'", "'caption'"]),
        ([{"name": "a", "task": "open"}], ["entry 1", "prompt"]),
        ([{"name": "a", "task": "open", "prompt": "  "}], ["entry 1", "prompt"]),
        ([{"task": "open", "prompt": "x"}], ["entry 1", "'name'", "missing"]),
        ([{"name": "New Roads", "task": "count"}], ["entry 1", "'New Roads'", "lower-case"]),
        ([{"name": False, "task": "count"}], ["entry 1", "name", "quotes"]),
        ([{"name": "a", "task": "count"}, {"name": "a", "task": "change"}], ["entry 2", "'a'", "twice"]),
        ([{"name": "a", "task": "count"}, {"name": "b", "task": "count"}], ["entry 2", "'count'", "open"]),
    ],
)
def test_mistakes_name_the_file_the_entry_and_the_nearest_word(entries: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_questions(entries, source="my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_picking() -> None:
    specs = load_questions(shipped_config("questions.yaml"))
    assert [spec.name for spec in pick_questions(specs, ["count", "caption"])] == ["caption", "count"]
    with pytest.raises(ConfigError, match="did you mean 'location'"):
        pick_questions(specs, ["locations"])


@pytest.mark.parametrize(
    ("task", "questions"),
    [
        (
            "count",
            [
                *("How many houses were built?", "how many new buildings", "How many new roads are there?"),
                "How many new houses can you see?",
                "Count the new buildings.",
                "How many roads and buildings have changed?",
                "How many houses have been built between the two images?",
                "If changes have occurred, count the number of road and building changes separately.",
            ],
        ),
        (
            "change",
            [
                *("Has anything changed?", "Did something change here?", "Is there any change?"),
                *("Are there any differences between the two images?", "Have these two images changed?"),
            ],
        ),
        (
            "caption",
            [
                *("What changed?", "What has changed here?", "What is different?", "Describe the changes."),
                "What are the main changes between the two images?",
                "Please briefly describe the differences.",
                "What is the main change between the two images?",
            ],
        ),
        (
            "location",
            [
                *("Where did it change?", "Where are the changes?", "Where were houses built?"),
                "Where are the new buildings located?",
            ],
        ),
        (
            "open",
            [
                *("How many?", "How many houses are there?", "How many houses were demolished?"),
                *("How many cars were built?", "How many houses were built in the top-left corner?"),
                *("Were any houses built?", "Where?", "Where is the school?", "What was there before?"),
                *("Has the road changed?", "What changed in the north?", "Has any water appeared?"),
            ],
        ),
    ],
)
def test_a_question_in_other_words_is_the_standard_one(task: str, questions: list[str]) -> None:
    assert {text: task_meant(text) for text in questions} == dict.fromkeys(questions, task)
    for text in questions:
        spec = question_spec("question", text)
        assert spec.prompt == (text if task == "open" else TASKS[spec.task].prompt)


@pytest.mark.parametrize("task", ["caption", "change", "count", "location"])
def test_the_standard_question_is_understood(task: SingleTurnTask) -> None:
    assert task_meant(TASKS[task].prompt.upper()) == task
