"""sample_data/changechat_mini is complete, small, and made by the command in its README."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from deltavlm.data.changechat import ImagePair, scene_records
from deltavlm.data.examples import missing_images
from deltavlm.data.read import read_dataset
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.tasks import TASKS

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
MINI = SAMPLES / "changechat_mini"


def test_it_has_all_tasks_and_images_of_all_pairs() -> None:
    data = read_dataset(MINI)
    assert data.problems == ()
    assert len(data.files) == 6
    numbers = {task: sum(example.task == task for example in data.examples) for task in TASKS}
    assert numbers.pop("open") > 240
    assert set(numbers.values()) == {40}
    assert missing_images(data.examples, MINI / "images") == []
    for name in {path for example in data.examples for path in (example.before, example.after)}:
        with Image.open(MINI / "images" / name) as picture:
            assert (picture.size, picture.mode) == ((256, 256), "RGB")


def test_it_is_small() -> None:
    def weight(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert weight(MINI) < 1_200_000
    assert weight(SAMPLES) < 2_000_000


@pytest.mark.parametrize("index", [0, 7])
def test_the_command_in_the_readme_makes_it(index: int) -> None:
    told = (SAMPLES / "README.md").read_text(encoding="utf-8")
    command = re.search(
        r"synth chips sample_data/changechat_mini --count 40 --seed (\d+) --compress jpeg", told
    )
    assert command is not None
    scene = make_scene(int(command[1]) + index, 256, 256, SceneOptions(change=0.6))
    name = f"test_{index:02d}"
    pair_facts = facts_of(scene.change, scene.instances, scene.cover)
    made = scene_records(
        ImagePair(name, (f"test/A/{name}.jpg", f"test/B/{name}.jpg"), pair_facts.changed), pair_facts
    )
    for suffix, part in made.items():
        shipped = json.loads((MINI / f"synthetic_test{suffix}.json").read_text())
        assert [one for one in shipped if f"{name}.jpg" in str(one)] == part
