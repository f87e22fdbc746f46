"""Models that are asked in words of their own: same columns and values, and the dates of each pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltavlm.model.interface import PairContext, Question, Reply
from deltavlm.tasks.phrasing import GENERIC
from tests.conftest import Scene
from tests.jobs import job_into, run_job
from tests.pairs import layer, write_pairs
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")

OBJECTS = {"new_roads": 1, "new_buildings": 2, "road_cells": ["center-left"]}
CHANGED = json.dumps({**OBJECTS, "building_cells": ["top-left", "center-center"]})
NOTHING = json.dumps({"new_roads": 0, "new_buildings": 0, "road_cells": [], "building_cells": []})


def script(before: Any, after: Any, question: Question) -> Reply:
    changed = (before != after).any()
    prompts = {GENERIC.phrase(task).prompt: task for task in ("caption", "change", "count")}
    replies = {
        "caption": ('"Two houses were built."', "there is no difference"),
        "change": ("Yes.", "No."),
        "count": (f"```json\n{CHANGED}\n```", NOTHING),
    }
    return Reply(replies[prompts[question.prompt]][not changed], 0.9 if changed else 0.1)


def generic(**fields: Any) -> ScriptedModel:
    return ScriptedModel(script=script, phrasebook="generic", reads_context=True, **fields)


@pytest.mark.parametrize("cascade", [False, True])
def test_the_columns_are_those_of_every_model(scene: Scene, cascade: bool) -> None:
    run_job(job_into("out.gpkg", scene, cascade=cascade), generic())
    rows = layer("out.gpkg", "chips")
    changed = [row for row in rows if row["changed"]]
    assert changed
    assert len(changed) < len(rows)
    for row in changed:
        assert row["caption"] == "Two houses were built."
        assert (row["new_roads"], row["new_buildings"]) == (1, 2)
        assert "top-left" in row["building_cells"]
        assert row["answer_count"] == "1 new road and 2 new buildings"
    assert {row["new_buildings"] for row in rows if not row["changed"]} == {0}


def test_a_model_that_reads_any_text_is_told_dates_and_scale(scene: Scene) -> None:
    reader = generic()
    run_job(job_into("out.gpkg", scene), reader)
    assert reader.contexts
    assert [context.gsd_m for context in reader.contexts] == pytest.approx(
        [0.5] * sum(reader.batches), rel=0.01
    )
    plain = ScriptedModel()
    run_job(job_into("plain.gpkg", scene), plain)
    assert {*plain.contexts} == {PairContext()}


def test_equal_pixels_of_other_dates_are_asked_again(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 2)
    lines = pairs.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    header = rows[0]
    for column in ("before", "after"):
        rows[2][header.index(column)] = rows[1][header.index(column)]
    for number, row in enumerate(rows[1:]):
        row[header.index("before_date")] = f"20{10 + number}"
    pairs.write_text("\n".join(",".join(row) for row in rows) + "\n")
    plain, reading = ScriptedModel(), generic()
    run_job(job_into("plain.gpkg", pairs), plain)
    run_job(job_into("reading.gpkg", pairs), reading)
    assert sum(plain.batches) == 1
    assert [context.before_date for context in reading.contexts] == ["2010", "2011"]
