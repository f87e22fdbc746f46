"""Consistency rules: each is broken by one contradiction, and a row read back breaks the same rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltavlm.model.interface import Masks
from deltavlm.pipeline.changes import ChangeOptions, caption_of_polygon, is_drawn
from deltavlm.pipeline.consistency import RULES, ChipStatements, find_conflicts, judge_row
from deltavlm.pipeline.mask_codec import encode_masks, peak_score
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells
from tests.conftest import Scene
from tests.jobs import job_into, run_job
from tests.scripted_model import CONTRADICTIONS, ScriptedModel, contradicting

AGREEING = ChipStatements(
    changed=True,
    caption="two houses were built beside the new road",
    counts=Counts(1, 2),
    cells=Cells(("center-left",), ("top-left",)),
    has_mask=True,
)
UNCHANGED = ChipStatements(
    changed=False, caption="there is no difference", counts=Counts(0, 0), cells=Cells(), has_mask=False
)
BROKEN = {
    "changed_but_caption_denies": replace(UNCHANGED, changed=True, has_mask=True),
    "unchanged_but_caption_asserts": replace(UNCHANGED, caption="the trees are removed"),
    "unchanged_but_counted": ChipStatements(changed=False, counts=Counts(0, 1)),
    "unchanged_but_cells": ChipStatements(changed=False, cells=Cells(roads=("top-left",))),
    "counted_but_caption_denies": ChipStatements(caption="nothing has changed", counts=Counts(1, 0)),
    "cells_but_caption_denies": ChipStatements(
        caption="no change has occurred", cells=Cells(roads=("top-left",))
    ),
    "buildings_counted_without_cell": replace(AGREEING, cells=Cells(roads=("top-left",))),
    "roads_counted_without_cell": replace(AGREEING, cells=Cells(buildings=("top-left",))),
    "building_cells_without_count": ChipStatements(counts=Counts(0, 0), cells=Cells(buildings=("top-left",))),
    "road_cells_without_count": ChipStatements(counts=Counts(0, 0), cells=Cells(roads=("top-left",))),
    "buildings_in_caption_not_counted": ChipStatements(caption="a villa appears", counts=Counts(1, 0)),
    "roads_in_caption_not_counted": ChipStatements(caption="a road is built", counts=Counts(0, 1)),
    "buildings_in_caption_miscounted": ChipStatements(
        caption="many houses and a road are built", counts=Counts(1, 2)
    ),
    "roads_in_caption_miscounted": ChipStatements(
        caption="a house and two roads appear", counts=Counts(1, 1)
    ),
    "unchanged_but_mask": replace(UNCHANGED, has_mask=True),
    "changed_without_mask": replace(AGREEING, has_mask=False),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_is_broken_by_its_own_contradiction_alone(rule: object) -> None:
    name = rule.name  # type: ignore[attr-defined]
    assert find_conflicts(BROKEN[name]) == [name]


def test_answers_that_agree_break_no_rule() -> None:
    assert {*BROKEN} == {rule.name for rule in RULES}
    assert find_conflicts(AGREEING) == find_conflicts(UNCHANGED) == []


@pytest.mark.parametrize("field", ["changed", "caption", "counts", "cells", "has_mask"])
@pytest.mark.parametrize("chip", [AGREEING, UNCHANGED])
def test_what_was_not_asked_contradicts_nothing(chip: ChipStatements, field: str) -> None:
    assert find_conflicts(ChipStatements()) == []
    assert find_conflicts(replace(chip, **{field: None})) == []


def test_demolished_buildings_have_cells_and_no_count() -> None:
    chip = ChipStatements(
        changed=True,
        caption="some houses are demolished",
        counts=Counts(0, 0),
        cells=Cells(buildings=("top-left",)),
    )
    assert find_conflicts(chip) == []
    assert find_conflicts(replace(chip, caption="a pond appears")) == ["building_cells_without_count"]


def test_a_run_writes_and_counts_conflicts_and_keeps_the_raw_answers(
    scene: Scene, empty_folder: Path
) -> None:
    result = run_job(job_into("out.gpkg", scene, polygons=True), ScriptedModel(script=contradicting))
    rows = read_output(Path("out.gpkg")).rows("chips")
    broken = [*CONTRADICTIONS]
    changed = [row for row in rows if row["changed"]]
    assert changed
    assert all(row["conflicts"] == (broken if row["changed"] else []) for row in rows)
    assert {row["answer_caption"] for row in rows} == {"there is no difference"}
    assert result.summary.conflicting == len(changed)
    assert result.summary.conflicts == dict.fromkeys(broken, len(changed))
    assert result.most_changed[0].conflicts == tuple(broken)


def test_a_row_read_back_breaks_the_same_rules(scene: Scene, empty_folder: Path) -> None:
    """Also what the mask shows is known again from the row, so that a threshold can be applied later."""
    replies = ScriptedModel()
    replies.masks = lambda encoded: Masks(  # type: ignore[method-assign]
        ("none", "building_built"), np.full((len(encoded), 2, 4, 4), 0.5, np.float32)
    )
    run_job(job_into("out.gpkg", scene, polygons=True), replies)
    rows = read_output(Path("out.gpkg")).rows("chips")
    assert {tuple(row["conflicts"]) for row in rows} == {(), ("unchanged_but_mask",)}
    for row in rows:
        assert judge_row(row, has_masks=True) == (row["changed"], row["conflicts"])
    unchanged = next(row for row in rows if row["changed"] is False)
    assert judge_row(unchanged, threshold=0.05, has_masks=True) == (True, ["changed_but_caption_denies"])
    changed = next(row for row in rows if row["changed"])
    now, broken = judge_row(changed, threshold=0.95, has_masks=True)
    assert now is False
    assert broken == [
        *("unchanged_but_caption_asserts", "unchanged_but_counted", "unchanged_but_cells"),
        "unchanged_but_mask",
    ]


def test_a_threshold_applies_to_stored_scores(scene: Scene, empty_folder: Path) -> None:
    run_job(job_into("out.geojson", scene), ScriptedModel())
    path = Path("out.geojson")
    as_run = read_output(path).rows("chips")
    assert [row["changed_score"] >= 0.5 for row in as_run] == [row["changed"] for row in as_run]
    assert all(row["changed"] for row in read_output(path, threshold=0.1).rows("chips"))
    none = read_output(path, threshold=0.91).rows("chips")
    assert not any(row["changed"] for row in none)
    assert [row["changed_score"] for row in none] == [row["changed_score"] for row in as_run]
    assert any("unchanged_but_counted" in row["conflicts"] for row in none)


def test_an_answer_without_a_score_keeps_its_own_words() -> None:
    row = {"changed": True, "changed_score": None, "status": "answered"}
    assert judge_row(row, threshold=0.99) == (True, [])
    assert judge_row({**row, "changed": None}, threshold=0.99) == (None, [])


def test_filled_in_answers_of_a_cascade_are_no_statements() -> None:
    row = {
        "status": "cascaded",
        "changed": False,
        "changed_score": 0.4,
        "caption": "there is no difference",
        "new_roads": 0,
        "new_buildings": 0,
        "road_cells": [],
        "building_cells": [],
    }
    assert judge_row(row, threshold=0.3) == (True, [])
    assert judge_row({**row, "status": "answered"}, threshold=0.3)[1] == ["changed_but_caption_denies"]


def test_the_peak_of_a_mask_is_the_score_that_enough_pixels_reach() -> None:
    shares = np.zeros((1, 2, 4, 4), np.float32)
    shares[0, 1].flat[:4] = [1.0, 0.8, 0.6, 0.2]
    (mask,) = encode_masks(Masks(("none", "road_built"), shares), "scripted")
    assert peak_score(mask, 1) == 1
    assert peak_score(mask, 3) == pytest.approx(0.6, abs=1e-3)
    assert peak_score(mask, 5) == 0


@pytest.mark.parametrize("changed", [True, False, None])
def test_a_polygon_is_drawn_unless_its_chip_is_called_unchanged(changed: bool | None) -> None:
    assert is_drawn(changed, ChangeOptions()) == (changed is not False)
    assert is_drawn(changed, ChangeOptions(chips="all"))


def test_the_caption_of_a_polygon_tells_a_change() -> None:
    captions = [None, "there is no difference", "a pond appears", "a road is built"]
    assert caption_of_polygon(captions) == "a pond appears"
    assert caption_of_polygon(captions[:2]) is None
