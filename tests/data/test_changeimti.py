"""Reader of ChangeIMTI: the records of a pair are joined, and every fault of a record is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltavlm.data.changeimti import FILES
from deltavlm.data.examples import missing_images
from deltavlm.data.read import read_dataset
from deltavlm.errors import InputError
from deltavlm.tasks import TASKS, count, locate
from deltavlm.tasks.phrasing import CELL_WORDS
from tests.data.records import imti_record as record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with a changed pair x.png and an unchanged pair y.png."""
    ask = "in these two images:<image> and <image>?"
    write(
        tmp_path / "test_task_data",
        {
            "caption.json": [
                record("x.png", "Describe <image> and <image>", "a house is built"),
                record("x.png", "Describe <image> and <image>", "a villa appears"),
                record("y.png", "Describe <image> and <image>", "the scene is the same as before"),
            ],
            "binary_class.json": [record("x.png", f"Any {ask}", "Yes"), record("y.png", f"Any {ask}", "No")],
            "count_road.json": [record("x.png", f"Roads {ask}", "0"), record("y.png", f"Roads {ask}", "0")],
            "count_build.json": [
                record("x.png", f"Houses {ask}", "3"),
                record("y.png", f"Houses {ask}", "0"),
            ],
            "loc_road.json": [
                record("x.png", f"Where {ask}", "No change"),
                record("y.png", f"Where {ask}", "No change"),
            ],
            "loc_build.json": [
                record("x.png", f"Where {ask}", "lower right corner,top"),
                record("y.png", f"Where {ask}", "No change"),
            ],
            "mul.json": [
                record("x.png", f"Any {ask}", "Yes", "How many roads?", "0", "Describe it.", sentence)
                for sentence in ("a house is built", "a villa appears")
            ],
        },
    )
    return tmp_path


def write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def test_the_records_of_a_pair_are_one_example_per_task(folder: Path) -> None:
    data = read_dataset(folder)
    assert (data.name, data.split, data.problems) == ("changeimti", "test", ())
    assert dict(zip(data.files, data.records, strict=True)) == {
        **dict.fromkeys(FILES, 2),
        "caption.json": 3,
    }
    assert {(one.task, one.id) for one in data.examples} == {
        *((task, name) for task in tuple(TASKS)[:4] for name in ("x.png", "y.png")),
        ("dialogue", "x.png"),
    }
    x = {one.task: one for one in data.examples if one.id == "x.png"}
    assert x["caption"].turns[0].answers == ("a house is built", "a villa appears")
    assert x["change"].turns[0].answers == ("yes",)
    assert count.parse(x["count"].turns[0].answers[0]) == count.Counts(0, 3)
    cells = locate.parse(x["location"].turns[0].answers[0])
    assert cells == locate.Cells((), ("top-center", "bottom-right"))
    talk = x["dialogue"].turns
    assert [turn.question for turn in talk][1:] == ["How many roads?", "Describe it."]
    assert talk[2].answers == ("a house is built", "a villa appears")
    assert "<image>" not in " ".join(turn.question for one in data.examples for turn in one.turns)
    assert {one.changed for one in x.values()} == {True}
    assert not any(one.changed for one in data.examples if one.id == "y.png")


def test_a_dialogue_that_asks_about_roads_twice_is_repaired_and_counted(folder: Path) -> None:
    ask = "in these two images"
    talk = ("Any <image> and <image>?", "Yes", f"How many roads have been changed {ask}?", "2")
    twice = record("x.png", *talk, f"How many roads have been changed {ask}?", "0", "Describe.", "a road")
    right = record("y.png", *talk, f"How many buildings have been changed {ask}?", "0", "Describe.", "a road")
    write(folder / "test_task_data", {"mul.json": [twice, right]})
    data = read_dataset(folder)
    (problem,) = data.problems
    assert (problem.kind, problem.location) == ("repaired", "mul.json")
    assert problem.message.startswith("1 dialogue asks about roads where the answer is about buildings")
    for example in data.examples:
        if example.task == "dialogue":
            asked = [(turn.question, turn.answers[0]) for turn in example.turns[1:3]]
            assert asked == [
                (f"How many roads have been changed {ask}?", "2"),
                (f"How many buildings have been changed {ask}?", "0"),
            ]


def test_paths_are_relative_to_levirs_images(folder: Path, tmp_path: Path) -> None:
    data = read_dataset(folder, tasks=["count"])
    assert {one.before for one in data.examples} == {"test/A/x.png", "test/A/y.png"}
    assert len(missing_images(data.examples, tmp_path / "images")) == 4


@pytest.mark.parametrize("inside", ["", "muti_task_data", "test_task_data"])
def test_its_folder_is_found(folder: Path, inside: str) -> None:
    if inside == "muti_task_data":
        (folder / inside).mkdir()
        (folder / "test_task_data").rename(folder / inside / "test_task_data")
        assert read_dataset(folder).name == "changeimti"
    assert read_dataset(folder / inside).name == "changeimti"


def test_without_yes_or_no_the_other_records_decide_the_flag(folder: Path) -> None:
    for gone in ("binary_class.json", "mul.json", "count_road.json", "count_build.json", "loc_road.json"):
        (folder / "test_task_data" / gone).unlink()
        flags = {one.id: one.changed for one in read_dataset(folder).examples}
        assert flags == {"x.png": True, "y.png": False}, gone


def test_every_label_is_another_cell() -> None:
    assert sorted(CELL_WORDS.values()) == sorted(locate.LABELS)


@pytest.mark.parametrize(
    ("file", "bad", "what"),
    [
        ("count_road.json", 5, "an object"),
        ("count_road.json", record("z.png", "q", "many"), "'many' is not a number"),
        ("count_road.json", record("z.png", "q", "-1"), "is not a number"),
        ("count_road.json", record("z.png", "q", "٣"), "is not a number"),
        ("count_road.json", record("x.png", "q", "7"), "an earlier record of this pair says 0"),
        ("count_road.json", record("z.png", "q", "1"), "count_build.json has no usable record"),
        ("loc_build.json", record("z.png", "q", "upstairs"), "is not a list of cells"),
        ("loc_build.json", record("z.png", "q", "top"), "loc_road.json has no usable record"),
        ("binary_class.json", record("z.png", "q", "perhaps"), "neither yes nor no"),
        ("binary_class.json", record("z.png", "q", "yes", "q", "no"), "2 turns"),
        ("binary_class.json", record("z.png", "q"), "pairs of a question"),
        ("caption.json", record("z.png", "q", " ."), "no caption"),
        ("caption.json", record("z.png", "q", "a", images=["test/A/z.png"]), "two images"),
        ("caption.json", record("z.png", "q", "a", images=["A/z.png", "B/z.png"]), "SPLIT/A/NAME"),
        ("caption.json", record("z.png", "q", "a", images=["test/B/z.png", "test/A/z.png"]), "SPLIT/A/NAME"),
        ("caption.json", record("z.png", "q", "a", images=["test/A/z.png", "test/B/x.png"]), "not one pair"),
    ],
)
def test_an_invalid_record_is_reported_and_the_rest_is_read(
    folder: Path, file: str, bad: Any, what: str
) -> None:
    good = read_dataset(folder).examples
    path = folder / "test_task_data" / file
    path.write_text(json.dumps([*json.loads(path.read_text()), bad]))
    data = read_dataset(folder)
    assert data.examples == good
    (problem,) = data.problems
    assert what in problem.message


def test_a_broken_file_is_reported(folder: Path) -> None:
    (folder / "test_task_data" / "mul.json").write_text("[{]")
    data = read_dataset(folder)
    assert [problem.location for problem in data.problems] == ["mul.json"]
    assert data.records[data.files.index("mul.json")] == 0
    with pytest.raises(InputError, match=r"ChangeIMTI.*test_task_data"):
        read_dataset(folder / "test_task_data" / "count_road.json")
