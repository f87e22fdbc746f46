"""Sets built from masks: known answers in the released schema, and pairs that are left out."""

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
from deltavlm.data.changeimti import FILES
from deltavlm.data.check import check_dataset
from deltavlm.data.examples import Example
from deltavlm.data.levircc import PairCaptions, read_captions
from deltavlm.data.masks import MaskRules
from deltavlm.data.read import read_dataset
from deltavlm.data.synthetic.phrases import QuestionAnswer
from deltavlm.errors import InputError
from deltavlm.tasks import classify, count, locate

SIZE = 48


def write_image(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pair(folder: Path, name: str, mask: np.ndarray, split: str = "test") -> None:
    """Two gray images and the mask, in the layout of LEVIR-MCI."""
    for date in "AB":
        write_image(folder / split / date / name, np.full((SIZE, SIZE, 3), 90, np.uint8))
    write_image(folder / split / "label" / name, mask)


def mask(**places: tuple[int, int]) -> np.ndarray:
    """Squares of 4 px at (row, col); names begin with the class: road_1=(0, 0)."""
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    for name, (row, col) in places.items():
        pixels[row : row + 4, col : col + 4] = {"road": 128, "building": 255}[name.split("_")[0]]
    return pixels


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of x (a road in the upper left, two buildings on the right) and y (unchanged)."""
    folder = tmp_path / "images"
    pair(folder, "x.png", mask(road=(2, 2), building_1=(2, 40), building_2=(40, 40)))
    pair(folder, "y.png", mask())
    return folder


def captions() -> dict[tuple[str, str], PairCaptions]:
    return {
        ("test", "x.png"): PairCaptions(("two houses appear .", "a road is built ."), True),
        ("test", "y.png"): PairCaptions(("the scene is the same as before .",), False),
    }


def read_back(result: BuildResult, folder: Path) -> dict[tuple[str, str], Example]:
    folder.mkdir()
    write_json_files(folder, result.files)
    data = read_dataset(folder)
    assert data.problems == ()
    return {(example.task, Path(example.before).stem): example for example in data.examples}


def test_records_match_the_masks(images: Path, tmp_path: Path) -> None:
    result = build_dataset(BuildSources(images, images, captions()), "mine")
    assert (result.pairs, result.problems, result.notes) == (2, [], [])
    assert result.images == ["test/A/x.png", "test/B/x.png", "test/A/y.png", "test/B/y.png"]
    read = read_back(result, tmp_path / "set")
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
    first = result.files["mine_test_binary.json"][0]["conversations"][0]["value"]
    assert first == f"<image> <image> {classify.PROMPT}"
    (tmp_path / "set" / "images").symlink_to(images)
    assert check_dataset(tmp_path / "set", size_px=SIZE).faults == ()


def test_without_captions_the_mask_decides_the_flag(images: Path) -> None:
    result = build_dataset(BuildSources(images, images))
    assert set(result.files) == {f"built_test_{kind}.json" for kind in ("binary", "count", "loc", "dialog")}
    assert [record["changeflag"] for record in result.files["built_test_binary.json"]] == [1, 0]
    assert len(result.files["built_test_dialog.json"][0]["conversations"]) == 4
    small = build_dataset(BuildSources(images, images, rules=MaskRules(min_area_px=17)))
    assert [record["changeflag"] for record in small.files["built_test_binary.json"]] == [0, 0]


def test_the_annotators_flag_is_kept_and_a_contradiction_is_noted(images: Path) -> None:
    sentences = captions() | {
        ("test", "x.png"): PairCaptions(("no change .",), False),
        ("test", "y.png"): PairCaptions(("trees are gone .",), True),
        ("test", "z.png"): PairCaptions(("a house .",), True),
    }
    result = build_dataset(BuildSources(images, images, sentences))
    assert [record["changeflag"] for record in result.files["built_test_count.json"]] == [0, 1]
    answers = [record["conversations"][1]["value"] for record in result.files["built_test_count.json"]]
    assert answers == ["1 new road and 2 new buildings", "no new roads or buildings"]
    assert count.parse(answers[1]) == count.Counts(0, 0)
    assert [note.message.split(",")[0] for note in result.notes] == [
        "test/x.png is flagged as unchanged",
        "test/z.png has captions and no images",
    ]
    assert result.problems == []


def test_a_training_split_is_one_file_of_instructions(images: Path, tmp_path: Path) -> None:
    (images / "test").rename(images / "train")
    sentences = {("train", name): value for (_, name), value in captions().items()}
    result = build_dataset(BuildSources(images, images, sentences))
    assert list(result.files) == ["built_train.json"]
    write_json_files(tmp_path, result.files)
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


def test_the_rules_change_the_answers(images: Path) -> None:
    wide = mask(building=(14, 2))  # rows 14 to 17: two in the upper cell, two in the middle one
    write_image(images / "test" / "label" / "y.png", wide)
    answers = {}
    for rule in ("any", "centroid"):
        result = build_dataset(BuildSources(images, images, rules=MaskRules(cell_rule=rule)))
        answers[rule] = locate.parse(result.files["built_test_loc.json"][1]["conversations"][1]["value"])
    assert answers["any"].buildings == ("top-left", "center-left")
    assert answers["centroid"].buildings in (("top-left",), ("center-left",))


def test_unusable_pairs_are_reported_and_left_out(images: Path) -> None:
    labels = images / "test" / "label"
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i"):
        pair(images, f"{name}.png", mask())
    for truncated in (images / "test" / "A" / "h.png", labels / "i.png"):
        noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
        write_image(truncated, noise).write_bytes(truncated.read_bytes()[:500])
    (labels / "a.png").unlink()
    write_image(labels / "b.png", np.zeros((SIZE, SIZE + 1), np.uint8))
    write_image(labels / "c.png", np.full((SIZE, SIZE), 9, np.uint8))
    write_image(labels / "g.png", np.zeros((2, SIZE), np.uint8))
    (images / "test" / "B" / "d.png").unlink()
    (images / "test" / "A" / "e.png").write_text("<html>")
    for date in "AB":
        write_image(images / "test" / date / "f.jpg", np.zeros((SIZE, SIZE, 3), np.uint8))
    result = build_dataset(BuildSources(images, images))
    assert result.pairs == 3  # f.jpg, x and y
    messages = {problem.location: problem.message for problem in result.problems}
    for location, path in {"test/h.png": images / "test" / "A", "test/i.png": labels}.items():
        assert messages.pop(location).startswith(
            f"{path / location[-5:]} cannot be read: image file is trunc"
        )
    assert messages == {
        "test/a.png": f"{labels / 'a.png'} is missing",
        "test/b.png": f"{labels / 'b.png'} is 49 x 48 px, and test/A/b.png 48 x 48",
        "test/c.png": f"{labels / 'c.png'} has the value 9 in 2,304 pixels, which is no class; add it to"
        " the class map (`class_map`)",
        "test/d.png": f"{images / 'test' / 'B' / 'd.png'} is missing",
        "test/e.png": f"{images / 'test' / 'A' / 'e.png'} cannot be read: not an image",
        "test/g.png": f"{labels / 'g.png'} is 48 x 2 px, too small for nine cells",
        "test/f.png": "test/f.png: another image of this split is called f too",
    }


def test_masks_in_another_folder_and_lossy_images(images: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (images / "test" / "label").rename(tmp_path / "label")
    masks.mkdir()
    (tmp_path / "label").rename(masks / "test")
    for date in "AB":
        for name in ("x", "y"):
            folder = images / "test" / date
            (folder / f"{name}.png").unlink()
            write_image(folder / f"{name}.jpg", np.zeros((SIZE, SIZE, 3), np.uint8))
    result = build_dataset(BuildSources(images, masks))
    assert (result.pairs, result.problems) == (2, [])
    assert result.files["built_test_count.json"][0]["image"] == ["test/A/x.jpg", "test/B/x.jpg"]


def test_a_pair_without_captions_is_left_out_where_captions_are_given(images: Path) -> None:
    sentences = captions()
    del sentences["test", "x.png"]
    result = build_dataset(BuildSources(images, images, sentences))
    assert (result.pairs, [problem.message for problem in result.problems]) == (
        1,
        ["test/x.png has no captions"],
    )


def test_open_questions_come_from_the_writer(images: Path) -> None:
    def write_questions(name: str, facts: PairFacts) -> Sequence[QuestionAnswer]:
        if name == "test/y.png":
            raise ValueError("speechless")
        return [
            QuestionAnswer("How many houses?", str(facts.counts.buildings)),
            QuestionAnswer("Where?", "right"),
        ]

    result = build_dataset(BuildSources(images, images), write_questions=write_questions)
    records = result.files["built_test_open.json"]
    assert [record["id"] for record in records] == ["x_open_0", "x_open_1"]
    assert records[0]["conversations"][1]["value"] == "2"
    assert [problem.message for problem in result.problems] == ["no open questions: speechless"]
    assert result.pairs == 2

    def refuse(name: str, facts: PairFacts) -> Sequence[QuestionAnswer]:
        raise InputError("the key was refused")

    with pytest.raises(InputError, match="key was refused"):  # not once a pair
        build_dataset(BuildSources(images, images), write_questions=refuse)


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
    sentences, problems = read_captions(path)
    assert sentences == {
        ("test", "x.png"): PairCaptions(("a house is built .", "b"), True),
        ("train", "x.png"): PairCaptions(("a house is built .", "b"), False),
    }
    assert problems == []


@pytest.mark.parametrize(
    ("record", "expected"),
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
def test_invalid_captions_are_reported_and_the_rest_is_read(
    tmp_path: Path, record: Any, expected: str
) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": [levir(), record]}))
    sentences, (problem,) = read_captions(path)
    assert list(sentences) == [("test", "x.png")]
    assert problem.location == "c.json, image 2"
    assert expected in problem.message
    path.write_text(json.dumps({"images": [record]} if expected != "test/x.png has captions already" else []))
    with pytest.raises(InputError):
        read_captions(path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_records_of_changechat_87k(tmp_path: Path, split: Any) -> None:
    folder = tmp_path / "images"
    pair(folder, "x.png", mask(road=(2, 2), building_1=(2, 40), building_2=(40, 40)), split)
    pair(folder, "y.png", mask(), split)
    sentences = {(split, name): value for (_, name), value in captions().items()}
    sources = BuildSources(folder, folder, sentences, MaskRules("changechat"), layout="changechat-87k")
    result = build_dataset(sources, "mine")
    (file,) = result.files
    assert file == f"mine_{split}.json"
    records = result.files[file]
    assert [record["type"] for record in records] == [1, 1, 2, 4, 6, 1, 2, 4, 6]
    said = [
        [message["value"] for message in record["conversations"] if message["from"] == "gpt"]
        for record in records[:5]
    ]
    assert said == [
        ["Two houses appear."],
        ["A road is built."],
        ["Yes"],
        [
            "The contours of the changed roads are:[[[11,11],[11,27],[27,27],[27,11]]], "
            "The contours of the changed buildings are:[[[213,213],[213,229],[229,229],[229,213]],"
            "[[213,11],[213,27],[229,27],[229,11]]]."
        ],
        ["Yes", "1 road has changed, and 2 buildings have changed.", "Two houses appear."],
    ]
    assert records[3]["conversations"][0]["value"] == (
        "<image> <image> Please draw the contours of the changed buildings and roads, approximating them "
        "with polygons."
    )
    write_json_files(tmp_path / "set", result.files)
    data = read_dataset(tmp_path / "set", split)
    assert data.problems == ()
    answers = {(each.task, each.before): each.turns[0].answers for each in data.examples}
    assert answers["location", f"{split}/A/x.png"] == (
        "roads ['top-left'] buildings ['top-right', 'bottom-right']",
    )


def test_records_of_changeimti(images: Path, tmp_path: Path) -> None:
    sentences = captions()
    same = PairCaptions(("no change .", "the scene is the same as before ."), False)
    sentences[("test", "y.png")] = same  # two references, and one record
    sources = BuildSources(images, images, sentences, MaskRules("changeimti"), layout="changeimti")
    result = build_dataset(sources, "mine")
    assert [*result.files] == [f"test_task_data/{name}" for name in FILES]
    said = {
        name.removeprefix("test_task_data/"): [
            [message["value"] for message in record["conversations"]] for record in records
        ]
        for name, records in result.files.items()
    }
    ask = "in these two images:<image> and <image>"
    assert said["caption.json"] == [
        ["Please describe the changes in <image> and <image>", "two houses appear"],
        ["Please describe the changes in <image> and <image>", "a road is built"],
        ["Please describe the changes in <image> and <image>", "the scene is the same as before"],
    ]
    assert said["count_build.json"] == [
        [f"How many buildings have been changed {ask}", "2"],
        [f"How many buildings have been changed {ask}", "0"],
    ]
    where = f"Please tell me where the buildings have changed {ask},if no change please output: No change."
    assert said["loc_build.json"] == [
        [where, "top right corner,lower right corner"],
        [where, "No change"],
    ]
    middles = set()
    for dialogue in said["mul.json"]:
        first, _, road, _, building, _, last, _ = dialogue
        assert first == f"Have there been any changes to the roads and buildings {ask}?"
        assert last == "Please describe the changes."
        middles |= {road, building}
    assert middles <= {
        f"{question.format(noun)}"
        for noun in ("roads", "buildings")
        for question in (
            "How many {} have been changed in these two images?",
            "Please tell me where the {} have changed in these two images,if no change please output: "
            "No change.",
        )
    }
    assert len(said["mul.json"]) == 3
    assert result.files["test_task_data/mul.json"][0]["images"] == ["test/A/x.png", "test/B/x.png"]
    (tmp_path / "set").mkdir()
    write_json_files(tmp_path / "set", result.files)
    data = read_dataset(tmp_path / "set")
    assert data.problems == ()
    read = {(each.task, each.before): each.turns[0].answers for each in data.examples}
    assert read["count", "test/A/x.png"] == ("1 new road and 2 new buildings",)
    assert read["location", "test/A/x.png"] == ("roads ['top-left'] buildings ['top-right', 'bottom-right']",)
    bare = BuildSources(images, images, None, MaskRules("changeimti"), layout="changeimti")
    written = {Path(name).name for name in build_dataset(bare, "mine").files}
    assert {*FILES} - written == {"caption.json", "mul.json"}
