"""`analyze`, `ask` and `chat` give one answer to one question, in whatever words it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deltavlm.model.interface import Question
from deltavlm.tasks import TASKS
from deltavlm.tasks.questions import task_of
from tests.cli.conftest import Run
from tests.conftest import Scene
from tests.pairs import layer
from tests.sample import write_corner
from tests.scripted_model import CHANGED, UNCHANGED, ScriptedModel

WORDINGS = {
    "count": "How many houses were built?",
    "change": "Has anything changed?",
    "caption": "What changed?",
    "location": "Where did it change?",
}


def by_prompt(before: np.ndarray, after: np.ndarray, question: Question) -> str:
    """Script that knows the standard prompts by their words, and answers others by their length."""
    answers = CHANGED if (before != after).any() else UNCHANGED
    return answers.get(task_of(question.prompt), f"{len(question.prompt.split())} words")


def check_the_same_answers(
    run: Run, pair: tuple[object, ...], chip_px: int, *options: object, score_tolerance: float = 1e-6
) -> list[str]:
    """Ask about the most changed chip in three ways, and return the answers of `analyze` by WORDINGS."""
    size = ("--chip-size", chip_px)
    result = run("analyze", *pair, "-o", "out.gpkg", "--json", *size, *options)
    assert result.exit_code == 0, result.stderr
    place = json.loads(result.stdout)["most_changed"][0]
    row = next(row for row in layer("out.gpkg", "chips") if row["chip_id"] == place["chip_id"])
    expected = [row[f"answer_{name}"] for name in WORDINGS]
    at = ("--at", f"{place['lon']:.7f},{place['lat']:.7f}", *size)
    typed = [*WORDINGS.values(), *(task.prompt for task in TASKS.values() if task.prompt)]
    asked = run("ask", *pair, *at, *typed, "--json")
    records = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [record["answer"] for record in records[:4]] == expected
    assert records[0]["value"] == {"roads": row["new_roads"], "buildings": row["new_buildings"]}
    assert records[1]["score"] == pytest.approx(row["changed_score"], abs=score_tolerance)
    talk = run("chat", *pair, *at, "--json", input="\n".join(["Was a road built?", *typed]))
    turns = [json.loads(line) for line in talk.stdout.splitlines()][1:]
    for key in ("question", "asked", "answer", "value"):
        assert [turn[key] for turn in turns] == [record[key] for record in records]
    assert f"asked as: {TASKS['count'].prompt}" in asked.stderr
    assert f"asked as: {TASKS['count'].prompt}" in talk.stderr
    return expected


def test_analyze_ask_and_chat_give_the_same_answers(run: Run, scene: Scene, model: ScriptedModel) -> None:
    model.script = by_prompt
    answers = check_the_same_answers(run, scene.args, 32)
    assert answers == [CHANGED[name] for name in WORDINGS]


@pytest.mark.slow
def test_nano_gives_the_same_answers_in_all_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine, six and two new houses of one chip were told, by three wordings of one question."""
    monkeypatch.chdir(tmp_path)
    options = ("--overlap", 0, "--device", "cpu")
    tolerance = 0.01  # 16 bits, and another batch size
    answers = check_the_same_answers(
        Run([]), write_corner(tmp_path), 256, *options, score_tolerance=tolerance
    )
    assert "new" in answers[0]
