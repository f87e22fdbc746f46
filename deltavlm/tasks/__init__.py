"""Tasks: prompts, answer parsers, answer formats and per-answer metrics; no pixels and no model.

`TASKS` is the only list of the tasks: everything that asks, parses, writes or scores answers reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltavlm.tasks import ask, caption, classify, count, dialogue, locate
from deltavlm.tasks.base import SingleTurnTask, Task, TaskName

__all__ = ["TASKS", "SingleTurnTask", "Task", "TaskName"]

TASKS: Mapping[TaskName, Task] = {
    task.name: task
    for task in (caption.TASK, classify.TASK, count.TASK, locate.TASK, ask.TASK, dialogue.TASK)
}
