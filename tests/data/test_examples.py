"""Reader of sets in ChangeChat's format: both schemas, synthetic sets, and every fault of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltavlm.data.changechat import write_chip_set
from deltavlm.data.examples import missing_images
from deltavlm.data.read import read_dataset
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.errors import InputError
from deltavlm.tasks import TASKS, caption, classify, count, locate
from tests.data.records import PAIR, caption_record, record


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_synthetic_set_is_read_back(tmp_path: Path) -> None:
    scenes = [(f"test_{seed}", make_scene(seed, 64, 64, SceneOptions(change=1.0))) for seed in (1, 2)]
    write_chip_set(tmp_path, "test", scenes)
    data = read_dataset(tmp_path)
    assert (data.name, data.split, data.problems) == ("synthetic", "test", ())
    assert len(data.files) == 6
    number = {task: sum(example.task == task for example in data.examples) for task in TASKS}
    assert number.pop("open") > 2
    assert set(number.values()) == {2}
    one = {example.task: example for example in data.examples}
    assert [turn.question for turn in one["count"].turns] == [count.PROMPT]
    assert [turn.question for turn in one["location"].turns] == [locate.PROMPT]
    assert len(one["caption"].turns[0].answers) == 5
    assert len(one["dialogue"].turns) == 3
    assert missing_images(data.examples, tmp_path / "images") == []
    (tmp_path / "images" / "test" / "A" / "test_1.png").unlink()
    assert [problem.location for problem in missing_images(data.examples, tmp_path / "images")] == [
        "test/A/test_1.png"
    ]
    assert {example.task for example in read_dataset(tmp_path, tasks=["count"]).examples} == {"count"}


def test_tasks_of_training_files_follow_from_the_questions(tmp_path: Path) -> None:
    write_chip_set(tmp_path, "train", [("train_0", make_scene(3, 64, 64, SceneOptions(change=1.0)))])
    write(tmp_path / "synthetic_train_loc.json", [record()])
    data = read_dataset(tmp_path, split="train")
    assert {example.task for example in data.examples} == set(TASKS)
    assert sum(example.task == "caption" for example in data.examples) == 5
    assert "synthetic_train_loc.json is a variant" in data.problems[0].message
    assert len(read_dataset(tmp_path / "synthetic_train_loc.json").examples) == 1


def test_both_schemas_and_ids(tmp_path: Path) -> None:
    write(tmp_path / "my_set_test.json", [caption_record()])
    write(tmp_path / "my_set_test_binary.json", [record(id=7)])
    data = read_dataset(tmp_path)
    assert data.name == "my_set"
    told, yes_no = data.examples
    assert (told.id, told.task, told.turns[0].question) == ("x.png", "caption", caption.PROMPT)
    assert told.turns[0].answers == ("a .", "b .")
    assert (yes_no.id, yes_no.task, yes_no.changed) == ("7", "change", True)
    assert (yes_no.turns[0].question, yes_no.before) == (classify.PROMPT, PAIR[0])


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (5, "an object"),
        (record(changeflag=2), "changeflag is 2"),
        (record(changeflag=None), "changeflag is missing"),
        (record(image="x.png"), "two images"),
        (record(image=["x.png"]), "two images"),
        (record(id=None), "id is missing"),
        (record(id=True), "id is True"),
        (record(conversations=[]), "pairs of a question"),
        (record(conversations=[{"from": "gpt", "value": "yes"}] * 2), "message 1"),
        (record(conversations=[{"from": "human", "value": 1}, {"from": "gpt", "value": "a"}]), "value is 1"),
        (record(conversations=record()["conversations"] * 2), "2 turns"),
        (caption_record(captions=[]), "captions"),
        (caption_record(captions="a house"), "captions"),
        (caption_record(image_B=None), "image_B is missing"),
    ],
)
def test_an_invalid_record_is_reported_and_the_rest_is_read(tmp_path: Path, bad: Any, what: str) -> None:
    data = read_dataset(write(tmp_path / "s_test_binary.json", [bad, record()]))
    assert len(data.examples) == 1
    (problem,) = data.problems
    assert (problem.kind, problem.location) == ("record", "s_test_binary.json, record 1")
    assert what in problem.message


def test_a_duplicate_record_is_reported(tmp_path: Path) -> None:
    second = record(changeflag=0)
    data = read_dataset(write(tmp_path / "s_test_binary.json", [record(), second, second, record(id="y")]))
    assert [(one.id, one.changed) for one in data.examples] == [("x_1", True), ("y", True)]
    assert [(problem.kind, problem.location, problem.message) for problem in data.problems] == [
        ("duplicate", "change x_1", "2 duplicates are left out")
    ]


def test_other_questions_under_one_id_are_kept(tmp_path: Path) -> None:
    """The id of open questions may be that of the pair; the second question is not a duplicate."""

    def asked(question: str, name: str = "x") -> dict[str, Any]:
        told = [{"from": "human", "value": question}, {"from": "gpt", "value": "a"}]
        return record(id=name, conversations=told)

    rows = [asked("1?"), asked("2?"), asked("1?"), asked("3?"), asked("4?", "y")]
    data = read_dataset(write(tmp_path / "s_test_open.json", rows))
    assert [(one.id, one.turns[0].question) for one in data.examples] == [
        ("x", "1?"),
        ("x#2", "2?"),
        ("x#3", "3?"),
        ("y", "4?"),
    ]
    assert len(data.problems) == 1
    rows = [asked("1?"), asked("2?"), asked("3?", "x#2")]
    data = read_dataset(write(tmp_path / "s_test_open.json", rows))
    assert [(one.id, one.turns[0].question) for one in data.examples] == [("x", "1?"), ("x#2", "3?")]


def test_annotations_may_be_in_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    write(tmp_path / "annotations" / "s_test_binary.json", [record()])
    assert len(read_dataset(tmp_path).examples) == 1


@pytest.mark.parametrize("content", ["[1,", "{}", '"text"', "\udcff", "[" * 100_000])
def test_an_invalid_file_is_reported_and_the_others_are_read(tmp_path: Path, content: str) -> None:
    bad = tmp_path / "s_test_count.json"
    bad.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"s_test_count\.json"):
        read_dataset(tmp_path)
    write(tmp_path / "s_test_binary.json", [record()])
    data = read_dataset(tmp_path)
    assert len(data.examples) == 1
    assert [(problem.kind, problem.location) for problem in data.problems] == [("file", "s_test_count.json")]


def test_missing_files_and_mixed_sets_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_dataset(tmp_path / "no")
    with pytest.raises(InputError, match="holds no SET_test"):
        read_dataset(tmp_path)
    write(tmp_path / "a_val.json", [caption_record()])
    with pytest.raises(InputError, match="it has val"):
        read_dataset(tmp_path)
    for name in ("a_test.json", "b_test.json"):
        write(tmp_path / name, [caption_record()])
    with pytest.raises(InputError, match="several sets: a, b"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="no records"):
        read_dataset(write(tmp_path / "empty.json", []))
