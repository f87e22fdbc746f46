"""The table of tasks: complete, consistent, and light to import."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from deltavlm.tasks import TASKS, Task, TaskName
from deltavlm.tasks.caption import denies_change, kinds_built, kinds_removed, number_built
from deltavlm.tasks.text import NO_CHANGE


def test_the_table_has_every_task_under_its_name() -> None:
    assert tuple(TASKS) == get_args(TaskName)
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.unchanged is not None])
def test_the_answer_for_an_unchanged_pair_is_the_format_of_its_value(task: Task) -> None:
    assert task.unchanged is not None
    assert task.format(task.parse(task.unchanged)) == task.unchanged


def test_only_questions_of_the_user_have_no_standard_prompt_and_no_answer_without_change() -> None:
    for task in TASKS.values():
        assert bool(task.prompt) == (task.unchanged is not None) == (task.name not in ("open", "dialogue"))


def test_a_perfect_answer_has_the_best_score() -> None:
    for task in TASKS.values():
        if task.unchanged is not None:
            value = task.parse(task.unchanged)
            score = task.score(value, [value] if task.free_text else value)
            perfect = [number for name, number in score.items() if name.endswith(("exact", "correct"))]
            assert set(perfect) == {1}


def test_tasks_are_light_to_import() -> None:
    code = "import sys, deltavlm.tasks; print({'numpy', 'torch', 'rasterio', 'yaml'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("sentence", "built", "removed"),
    [
        ("some houses and a road are built on the farmland", "building road", ""),
        ("many houses appear along the road", "building", ""),
        ("a road has been constructed on the left, across the villas", "road", ""),
        ("a road with many villas replaces the woodland", "building road", ""),
        ("the bare land has been replaced by some houses at the top", "building", ""),
        ("the grassland is replaced by some houses and a road is removed", "building", "road"),
        ("there are new roads on the right", "road", ""),
        ("no new buildings, and the road is as before", "", ""),
        ("no houses are built", "", ""),
        ("houses are demolished beside the road", "", "building"),
        ("the ground is opened for construction", "", ""),
        ("there is no difference", "", ""),
    ],
)
def test_a_caption_says_what_is_built_and_what_is_removed(sentence: str, built: str, removed: str) -> None:
    assert kinds_built(sentence) == {*built.split()}
    assert kinds_removed(sentence) == {*removed.split()}


@pytest.mark.parametrize(
    ("sentence", "denies"),
    [
        *((sentence, True) for sentence in NO_CHANGE),
        ("There is no obvious difference between the two images.", True),
        ("Nothing has changed.", True),
        ("the two scenes are the same", True),
        ("the images look identical", True),
        ("there are no changes in roads, but trees are removed", False),
        ("no change in the roads and a house appears", False),
        ("the trees are removed", False),
        ("the roof has the same colour as the road", False),
    ],
)
def test_a_caption_that_denies_change(sentence: str, denies: bool) -> None:
    assert denies_change(sentence) is denies


@pytest.mark.parametrize(
    ("sentence", "stated"),
    [
        ("A house is built on the farmland.", (1, 1)),
        ("two large buildings and a road appear", (2, 2)),
        ("the trees are replaced by several houses", (2, 9)),
        ("a few villas have been added along the road", (2, 9)),
        ("a lot of houses and two roads are built", (5, 10**6)),
        ("a villa and three sheds are built", (4, 4)),
        ("12 houses are built", (12, 12)),
        ("houses are built", None),
        ("a villa and houses are built", None),
        ("a row of houses is built", None),  # one row
        ("many houses are demolished and a road is built", None),
        ("there is no difference", None),
    ],
)
def test_the_number_of_new_buildings_in_a_caption(sentence: str, stated: tuple[int, int] | None) -> None:
    assert number_built(sentence, "building") == stated
    of_roads = sentence.replace("houses", "roads").replace("house", "road")
    if "road" not in sentence and "villa" not in sentence:
        assert number_built(of_roads, "road") == stated


@pytest.mark.parametrize(
    ("described", "draft", "good", "bad"),
    [
        (
            "a house and two roads are built",
            "1 new road and 1 new building",
            "2 new roads and 1 new",
            "1 new",
        ),
        ("several roads appear", "no new roads and no new buildings", "9 new roads and no", "1 new road"),
        ("a road is built", "3 new roads and no new buildings", "1 new road and no new buildings", "3 new"),
        (
            "12 houses appear",
            "no new roads and 2 new buildings",
            "no new roads and 12 new",
            "no new roads and 47",
        ),
        (
            "many houses appear",
            "no new roads and 2 new buildings",
            "no new roads and 12 new",
            "no new roads and 2",
        ),
    ],
)
def test_counts_are_those_that_the_caption_states(described: str, draft: str, good: str, bad: str) -> None:
    form = TASKS["count"].form
    assert form is not None
    assert form(draft, described).begins(good)
    assert not form(draft, described).begins(f"{bad} ")


@pytest.mark.parametrize(
    ("draft", "counted", "good", "bad"),
    [
        ("many houses and a road are built", 1, "a house and a road are built", "many houses are built"),
        ("a lot of new houses appear", 4, "several new houses appear", "a several new houses appear"),
        ("a house is built on the grass", 2, "two houses are built", "a house is built"),
        ("the trees are cut and a house is built", 9, "the trees are cut and many houses", "many houses"),
        ("many large buildings are built", 0, "a large building is built", "a building is built"),
        ("12 houses are built", 1, "a house is built", "12 houses"),
        ("a row of 12 houses is built", 1, "a row of a house", "a row of 12"),
        ("a single house is built", 7, "many houses are built", "a many houses"),
    ],
)
def test_a_caption_states_the_number_of_the_mask_head(draft: str, counted: int, good: str, bad: str) -> None:
    form = TASKS["caption"].form
    assert form is not None
    assert form("yes", draft, counted).ends(good)
    assert not form("yes", draft, counted).begins(bad)
    assert form("yes", draft, None).ends(draft)


@pytest.mark.parametrize(
    ("draft", "counted"),
    [
        ("many houses are built", 5),
        ("several houses are built", 9),
        ("houses are built", 1),
        ("several factories are built", 1),  # a plural that is not the noun and an s
        ("a villa and a house are built", 7),  # two numbers
        ("a road is built and a house is demolished", 7),
        ("the trees are removed", 7),
    ],
)
def test_a_caption_that_states_no_other_number_stays(draft: str, counted: int) -> None:
    form = TASKS["caption"].form
    assert form is not None
    assert form("yes", draft, counted).ends(draft)
    assert not form("yes", draft, counted).begins(f"x{draft}")
