"""Sets in ChangeChat's layout: both schemas, paths that exist, answers that match the ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltavlm.data.changechat import write_chip_set
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.tasks import classify, count

NAMES = {"": 2, "_binary": 2, "_count": 2, "_loc": 2, "_dialog": 2, "_open": None}


def test_a_test_split(tmp_path: Path) -> None:
    scenes = [(f"test_{seed}", make_scene(seed, 128, 128, SceneOptions(change=1.0))) for seed in (1, 2)]
    assert write_chip_set(tmp_path, "test", scenes) == 2
    for suffix, number in NAMES.items():
        records = json.loads((tmp_path / f"synthetic_test{suffix}.json").read_text())
        assert number is None or len(records) == number
    captions = json.loads((tmp_path / "synthetic_test.json").read_text())
    for record, (_, scene) in zip(captions, scenes, strict=True):
        assert set(record) == {"image_A", "image_B", "captions", "changeflag"}
        assert len(record["captions"]) == 5
        assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / record["image_A"])), scene.before)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / record["image_B"])), scene.after)
    counts = json.loads((tmp_path / "synthetic_test_count.json").read_text())
    for record, (name, scene) in zip(counts, scenes, strict=True):
        assert record["id"].startswith(name)
        question, answer = (message["value"] for message in record["conversations"])
        assert question == f"<image> <image> {count.PROMPT}"
        facts = facts_of(scene.change, scene.instances, scene.cover)
        assert count.parse(answer).buildings == facts.counts["building_built"]
        assert record["changeflag"] == int(facts.changed)
    dialogue = json.loads((tmp_path / "synthetic_test_dialog.json").read_text())[0]["conversations"]
    assert [message["from"] for message in dialogue] == ["human", "gpt"] * 3
    assert [message["value"].startswith("<image>") for message in dialogue] == [True] + [False] * 5


def test_a_training_split_is_one_file_of_instructions(tmp_path: Path) -> None:
    write_chip_set(tmp_path, "train", [("train_0", make_scene(3, 128, 128))])
    assert [path.name for path in tmp_path.glob("*.json")] == ["synthetic_train.json"]
    records = json.loads((tmp_path / "synthetic_train.json").read_text())
    assert len({record["id"] for record in records}) == len(records)
    assert all(set(record) == {"id", "image", "changeflag", "conversations"} for record in records)
    yes_no = next(r for r in records if r["id"].endswith("_binary"))["conversations"][1]["value"]
    assert classify.parse(yes_no) == bool(records[0]["changeflag"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_label_maps_lie_next_to_the_images(tmp_path: Path, split: str) -> None:
    scene = make_scene(6, 64, 64, SceneOptions(change=1.0))
    write_chip_set(tmp_path, split, [("x", scene)])
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "images" / split / "label" / "x.png")), scene.change
    )
