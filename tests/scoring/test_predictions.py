"""Parsing of prediction files, and matching with examples by id."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from deltavlm.data.examples import Example, Turn
from deltavlm.errors import InputError
from deltavlm.scoring.predictions import Prediction, match, read_predictions, summarize_names
from deltavlm.tasks import TaskName


def example(name: str, task: TaskName = "open", image: str | None = None) -> Example:
    before, after = (f"test/{date}/{image or name}" for date in "AB")
    return Example(name, task, (Turn("?", ("a",)),), True, before, after)


def prediction(name: str, task: str = "open", answer: str = "a") -> Prediction:
    return Prediction(name, task, (answer,))


RECORDS: list[dict[str, Any]] = [
    {"id": "x", "task": "change", "answer": "yes", "score": 0.25},
    {"id": 7, "task": "dialogue", "answer": ["yes", "no"]},
]


@pytest.mark.parametrize("form", ["json", "jsonl", "bom"])
def test_both_forms(tmp_path: Path, form: str) -> None:
    path = tmp_path / "p"
    text = json.dumps(RECORDS, indent=1) if form == "json" else "\n\n".join(map(json.dumps, RECORDS)) + "\r\n"
    path.write_text(text, encoding="utf-8-sig" if form == "bom" else "utf-8")
    result = read_predictions(path)
    assert result.predictions == (
        Prediction("x", "change", ("yes",), 0.25),
        Prediction("7", "dialogue", ("yes", "no")),
    )
    assert (result.problems, result.path, result.model) == ((), path, None)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not a JSON object"),
        ("3", "not a JSON object"),
        ('{"task": "change", "answer": "yes"}', "id"),
        ('{"id": "x", "task": "chnge", "answer": "yes"}', "did you mean 'change'"),
        ('{"id": "x", "task": ["change"], "answer": "yes"}', "no task"),
        ('{"id": "x", "task": "change", "answer": true}', "answer is not text"),
        ('{"id": "x", "task": "change"}', "answer is not text"),
        ('{"id": "x", "task": "dialogue", "answer": "yes"}', "one for each turn"),
        ('{"id": "x", "task": "change", "answer": "yes", "score": NaN}', "score"),
        ('{"id": "x", "task": "change", "answer": "yes", "score": "0.5"}', "score"),
    ],
)
def test_a_malformed_line_is_reported_and_the_others_are_read(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(RECORDS[0])}\n{line}\n")
    result = read_predictions(path)
    assert len(result.predictions) == 1
    (problem,) = result.problems
    assert problem.location == "line 2"
    assert what in problem.message
    path.write_text(line)
    with pytest.raises(InputError, match="has no predictions"):
        read_predictions(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_predictions(tmp_path)
    path = tmp_path / "p"
    for content, what in ((b"\xff", "UTF-8"), (b"[1,", "valid JSON"), (b"", "no predictions")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=what):
            read_predictions(path)


def test_order_does_not_matter() -> None:
    examples = [example(f"e{i}") for i in range(20)]
    predictions = [prediction(f"e{i}", answer=str(i)) for i in range(20)]
    random.Random(0).shuffle(predictions)
    matched = match(examples, predictions)
    assert [(example.id, answer.answers[0]) for example, answer in matched.pairs] == [
        (f"e{i}", str(i)) for i in range(20)
    ]


def test_unmatched_examples_and_predictions_are_listed() -> None:
    examples = [example("a"), example("b"), example("a", "count")]
    predictions = [
        prediction("a"),
        prediction("z"),
        prediction("a", answer="second"),
        prediction("b", "count"),
    ]
    matched = match(examples, predictions)
    assert [(e.task, e.id, p.answers[0]) for e, p in matched.pairs] == [("open", "a", "a")]
    assert [(e.task, e.id) for e in matched.missing] == [("open", "b"), ("count", "a")]
    assert [(p.task, p.id) for p in matched.unknown] == [("open", "z"), ("count", "b")]
    assert [p.answers[0] for p in matched.repeated] == ["second"]


def test_the_name_of_an_image_is_the_id_of_its_only_example() -> None:
    examples = [
        example("x_count", "count", "x.png"),
        example("x_open_1", "open", "x.png"),
        example("x_open_2", "open", "x.png"),
    ]
    for name in ("x", "x.png", "test/A/x.png", "x_count"):
        assert len(match(examples, [prediction(name, "count")]).pairs) == 1
    assert not match(examples, [prediction("x.png", "open")]).pairs


def test_an_id_takes_precedence_over_the_name_of_an_image() -> None:
    examples = [example("1", "open", "2.png"), example("2", "open", "1.png")]
    assert [e.id for e, _ in match(examples, [prediction("1")]).pairs] == ["1"]


def test_a_few_names_are_listed() -> None:
    assert summarize_names([]) == ""
    assert summarize_names(["a"]) == "a"
    assert summarize_names(list("abcdef")) == "a, b, c and 3 more"
