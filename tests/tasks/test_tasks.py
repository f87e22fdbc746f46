"""The table of tasks: complete, consistent, and light to import."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from deltavlm.tasks import TASKS, Task, TaskName


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
