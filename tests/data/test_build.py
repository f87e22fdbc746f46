"""Sets made of masks: records with known answers, in the released schema, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deltavlm.data.build import BuildResult, BuildSources, PairFacts, build_dataset, find_splits
from deltavlm.data.changechat import write_json_files
from deltavlm.data.check import check_dataset
from deltavlm.data.examples import Example
from deltavlm.data.levircc import PairCaptions, read_captions
from deltavlm.data.masks import MaskRules
from deltavlm.data.read import read_dataset
from deltavlm.data.synthetic.phrases import QuestionAnswer
from deltavlm.errors import InputError
from deltavlm.tasks import classify, count, locate

SIZE = 48


def picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pair(folder: Path, name: str, mask: np.ndarray, split: str = "test") -> None:
    """Two grey pictures and the mask, LEVIR-MCI's way."""
    for date in "AB":
        picture(folder / split / date / name, np.full((SIZE, SIZE, 3), 90, np.uint8))
    picture(folder / split / "label" / name, mask)


def mask(**places: tuple[int, int]) -> np.ndarray:
    """Squares of 4 px at (row, col); names begin with the class: road_1=(0, 0)."""
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    for name, (row, col) in places.items():
        pixels[row : row + 4, col : col + 4] = {"road": 128, "building": 255}[name.split("_")[0]]
    return pixels


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """x: one road top left, two buildings at the right; y: nothing."""
    folder = tmp_path / "images"
    pair(folder, "x.png", mask(road=(2, 2), building_1=(2, 40), building_2=(40, 40)))
    pair(folder, "y.png", mask())
    return folder


def captions() -> dict[tuple[str, str], PairCaptions]:
    return {
        ("test", "x.png"): PairCaptions(("two houses appear .", "a road is built ."), True),
        ("test", "y.png"): PairCaptions(("the scene is the same as before .",), False),
    }


def read_back(built: BuildResult, folder: Path) -> dict[tuple[str, str], Example]:
    folder.mkdir()
    write_json_files(folder, built.files)
    data = read_dataset(folder)
    assert data.problems == ()
    return {(example.task, Path(example.before).stem): example for example in data.examples}


def test_records_say_what_the_masks_show(images: Path, tmp_path: Path) -> None:
    built = build_dataset(BuildSources(images, images, captions()), "mine")
    assert (built.pairs, built.problems, built.notes) == (2, [], [])
    assert built.images == ["test/A/x.png", "test/B/x.png", "test/A/y.png", "test/B/y.png"]
    read = read_back(built, tmp_path / "set")
    answers = {key: [turn.answers[0] for turn in example.turns] for key, example in read.items()}
    assert answers == {
        ("caption", "x"): ["two houses appear ."],
        ("caption", "y"): ["the scene is the same as before ."],
        ("change", "x"): ["yes"],
        ("change", "y"): ["no"],
        ("count", "x"): ["1 new road and 2 new buildings"],
        ("count", "y"): ["there are no changes in roads or buildings"],
        ("location", "x"): ["roads ['top-left'] buildings ['top-right', 'bottom-right']"],
        ("location", "y"): ["roads [] buildings []"],
        ("dialogue", "x"): ["yes", "1 road has changed, and 2 buildings has changed", "two houses appear ."],
        ("dialogue", "y"): [
            "no",
            "no roads has changed, and no buildings has changed",
            "the scene is the same as before .",
        ],
    }
    assert read["caption", "x"].turns[0].answers == ("two houses appear .", "a road is built .")
    assert [turn.question for turn in read["change", "x"].turns] == [classify.PROMPT]
    assert read["change", "x"].id == "x_binary"
    first = built.files["mine_test_binary.json"][0]["conversations"][0]["value"]
    assert first == f"<image> <image> {classify.PROMPT}"
    (tmp_path / "set" / "images").symlink_to(images)
    assert check_dataset(tmp_path / "set", size_px=SIZE).faults == ()


def test_without_captions_there_are_none_and_the_mask_decides(images: Path) -> None:
    built = build_dataset(BuildSources(images, images))
    assert set(built.files) == {f"built_test_{kind}.json" for kind in ("binary", "count", "loc", "dialog")}
    assert [one["changeflag"] for one in built.files["built_test_binary.json"]] == [1, 0]
    assert len(built.files["built_test_dialog.json"][0]["conversations"]) == 4
    small = build_dataset(BuildSources(images, images, rules=MaskRules(min_area_px=17)))
    assert [one["changeflag"] for one in small.files["built_test_binary.json"]] == [0, 0]


def test_what_people_flagged_counts_and_a_contradiction_is_told(images: Path) -> None:
    told = captions() | {
        ("test", "x.png"): PairCaptions(("no change .",), False),
        ("test", "y.png"): PairCaptions(("trees are gone .",), True),
        ("test", "z.png"): PairCaptions(("a house .",), True),
    }
    built = build_dataset(BuildSources(images, images, told))
    assert [one["changeflag"] for one in built.files["built_test_count.json"]] == [0, 1]
    answers = [one["conversations"][1]["value"] for one in built.files["built_test_count.json"]]
    assert answers == ["1 new road and 2 new buildings", "no new roads or buildings"]
    assert count.parse(answers[1]) == count.Counts(0, 0)
    assert [note.message.split(",")[0] for note in built.notes] == [
        "test/x.png is flagged as unchanged",
        "test/z.png has captions and no images",
    ]
    assert built.problems == []


def test_training_is_one_file_of_instructions(images: Path, tmp_path: Path) -> None:
    (images / "test").rename(images / "train")
    told = {("train", name): value for (_, name), value in captions().items()}
    built = build_dataset(BuildSources(images, images, told))
    assert list(built.files) == ["built_train.json"]
    write_json_files(tmp_path, built.files)
    data = read_dataset(tmp_path, "train")
    tasks = [example.task for example in data.examples]
    assert {task: tasks.count(task) for task in set(tasks)} == {
        "caption": 3,
        "change": 2,
        "count": 2,
        "location": 2,
        "dialogue": 2,
    }
    assert data.problems == ()


def test_the_rules_reach_the_answers(images: Path) -> None:
    wide = mask(building=(14, 2))  # rows 14 to 17: two in the upper cell, two in the middle one
    picture(images / "test" / "label" / "y.png", wide)
    answers = {}
    for rule in ("any", "centroid"):
        built = build_dataset(BuildSources(images, images, rules=MaskRules(cell_rule=rule)))
        answers[rule] = locate.parse(built.files["built_test_loc.json"][1]["conversations"][1]["value"])
    assert answers["any"].buildings == ("top-left", "center-left")
    assert answers["centroid"].buildings in (("top-left",), ("center-left",))


def test_pairs_that_cannot_be_used_are_named_and_left_out(images: Path) -> None:
    labels = images / "test" / "label"
    for name in ("a", "b", "c", "d", "e", "f", "g"):
        pair(images, f"{name}.png", mask())
    (labels / "a.png").unlink()
    picture(labels / "b.png", np.zeros((SIZE, SIZE + 1), np.uint8))
    picture(labels / "c.png", np.full((SIZE, SIZE), 9, np.uint8))
    picture(labels / "g.png", np.zeros((2, SIZE), np.uint8))
    (images / "test" / "B" / "d.png").unlink()
    (images / "test" / "A" / "e.png").write_text("<html>")
    for date in "AB":
        picture(images / "test" / date / "f.jpg", np.zeros((SIZE, SIZE, 3), np.uint8))
    built = build_dataset(BuildSources(images, images))
    assert built.pairs == 3  # f.jpg, x and y
    assert {problem.location: problem.message for problem in built.problems} == {
        "test/a.png": f"{labels / 'a.png'} is missing",
        "test/b.png": f"{labels / 'b.png'} is 49 x 48 px, and test/A/b.png 48 x 48",
        "test/c.png": f"{labels / 'c.png'} has the value 9 in 2304 pixels, which is no class; add it to"
        " the class map (--class-map)",
        "test/d.png": f"{images / 'test' / 'B' / 'd.png'} is missing",
        "test/e.png": f"{images / 'test' / 'A' / 'e.png'} cannot be read: not an image",
        "test/g.png": f"{labels / 'g.png'} is 48 x 2 px, too small for nine cells",
        "test/f.png": "test/f.png: another image of this split is called f too",
    }


def test_masks_in_a_folder_of_their_own_and_lossy_pictures(images: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (images / "test" / "label").rename(tmp_path / "label")
    masks.mkdir()
    (tmp_path / "label").rename(masks / "test")
    for date in "AB":
        for name in ("x", "y"):
            folder = images / "test" / date
            (folder / f"{name}.png").unlink()
            picture(folder / f"{name}.jpg", np.zeros((SIZE, SIZE, 3), np.uint8))
    built = build_dataset(BuildSources(images, masks))
    assert (built.pairs, built.problems) == (2, [])
    assert built.files["built_test_count.json"][0]["image"] == ["test/A/x.jpg", "test/B/x.jpg"]


def test_a_pair_without_captions_is_left_out_where_captions_are_given(images: Path) -> None:
    told = captions()
    del told["test", "x.png"]
    built = build_dataset(BuildSources(images, images, told))
    assert (built.pairs, [one.message for one in built.problems]) == (1, ["test/x.png has no captions"])


def test_open_questions_come_from_whoever_is_asked(images: Path) -> None:
    def ask(name: str, facts: PairFacts) -> Sequence[QuestionAnswer]:
        if name == "test/y.png":
            raise ValueError("speechless")
        return [
            QuestionAnswer("How many houses?", str(facts.counts.buildings)),
            QuestionAnswer("Where?", "right"),
        ]

    built = build_dataset(BuildSources(images, images), write_questions=ask)
    records = built.files["built_test_open.json"]
    assert [one["id"] for one in records] == ["x_open_0", "x_open_1"]
    assert records[0]["conversations"][1]["value"] == "2"
    assert [one.message for one in built.problems] == ["no open questions: speechless"]
    assert built.pairs == 2

    def stop(name: str, facts: PairFacts) -> Sequence[QuestionAnswer]:
        raise InputError("the key was refused")

    with pytest.raises(InputError, match="key was refused"):  # not once a pair
        build_dataset(BuildSources(images, images), write_questions=stop)


def test_nothing_to_build(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        find_splits(tmp_path / "none")
    with pytest.raises(InputError, match="has no folder train/A"):
        find_splits(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        build_dataset(BuildSources(images, tmp_path / "none"))
    with pytest.raises(InputError, match=r"none of 2 pairs can be used; the first: .*x\.png is missing"):
        build_dataset(BuildSources(images, tmp_path))
    (tmp_path / "empty" / "val" / "A").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no images"):
        build_dataset(BuildSources(tmp_path / "empty", tmp_path))


def levir(**changes: Any) -> dict[str, Any]:
    record = {
        "filename": "x.png",
        "filepath": "test",
        "changeflag": 1,
        "sentences": [{"raw": " a house  is built . "}, {"raw": "b"}],
    }
    return {key: value for key, value in (record | changes).items() if value is not None}


def test_levir_ccs_captions(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": [levir(), levir(filepath=None, split="train", changeflag=0)]}))
    told, problems = read_captions(path)
    assert told == {
        ("test", "x.png"): PairCaptions(("a house is built .", "b"), True),
        ("train", "x.png"): PairCaptions(("a house is built .", "b"), False),
    }
    assert problems == []


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (5, "an object"),
        (levir(filename=None), "not text"),
        (levir(filepath=3), "not text"),
        (levir(filename="z", changeflag=None), "changeflag of z is None"),
        (levir(filename="z", changeflag=1.0), "changeflag of z is 1.0"),
        (levir(filename="z", sentences=[]), "z has no sentences"),
        (levir(filename="z", sentences="text"), "z has no sentences"),
        (levir(filename="z", sentences=[{"raw": " "}]), "no raw text"),
        (levir(filename="z", sentences=["a"]), "no raw text"),
        (levir(), "test/x.png has captions already"),
    ],
)
def test_wrong_captions_are_named_and_the_rest_goes_on(tmp_path: Path, bad: Any, what: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": [levir(), bad]}))
    told, (problem,) = read_captions(path)
    assert list(told) == [("test", "x.png")]
    assert problem.location == "c.json, image 2"
    assert what in problem.message
    path.write_text(json.dumps({"images": [bad]} if what != "test/x.png has captions already" else []))
    with pytest.raises(InputError):
        read_captions(path)
