"""Metrics on synthetic scenes: exact values, and the treatment of answers that cannot be parsed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from deltavlm.data.synthetic import phrases
from deltavlm.data.synthetic.cache import render_cache
from deltavlm.data.synthetic.facts import Facts
from deltavlm.model.interface import Reply
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS, predict_scenes, score_conversations, score_scenes
from deltavlm.tasks.text import NO_CHANGE
from tests.scripted_model import ScriptedModel

KINDS = ("building_built", "building_removed", "road_built", "road_removed")


def facts(
    buildings: tuple[str, ...] = (), roads: tuple[str, ...] = (), ground: dict[str, float] | None = None
) -> Facts:
    """A scene with one new building or road in each of the cells."""
    cells = dict.fromkeys(KINDS, ()) | {"building_built": buildings, "road_built": roads}
    counts = {kind: len(labels) for kind, labels in cells.items()}
    replaced = "soil" if buildings or roads else None
    new = buildings or roads
    return Facts(counts, cells, ground or {}, replaced, new or ("top-left",), new, None, is_large=False)


SCENES = [
    facts(),
    facts(),
    facts(),
    facts(buildings=("top-left", "top-center")),
    facts(buildings=("center-center",), roads=("center-left", "center-center")),
    facts(ground={"water_new": 0.05}),
]
#: caption, yes/no with P(yes), count, location of each scene
ANSWERS = [
    (NO_CHANGE[2], ("no", 0.05), "there are no changes in roads or buildings", "roads [] buildings []"),
    ("a house appears", ("yes", 0.7), "no new roads and 2 new buildings", "roads [] buildings ['top-left']"),
    ("There is no difference.", ("perhaps", 0.4), "some", "roads [ buildings ["),
    (phrases.captions(SCENES[3])[1], ("yes", 0.93), "2 new buildings", "roads [] buildings ['top-left']"),
    ("a pond appears", ("?", 0.55), "1 new road and 4 new buildings", "roads ['center-left'] buildings []"),
    (NO_CHANGE[0], ("no", 0.31), "roads", "roads ['top-left'] buildings []"),
]
REPLIES = [
    [Reply(caption, -0.1), Reply(*yes_no), Reply(count, -0.1), Reply(cells, -0.1)]
    for caption, yes_no, count, cells in ANSWERS
]


def test_values() -> None:
    """The values of the implementation before `score_scenes` was built on `score`, on the same input."""
    assert score_scenes(REPLIES, SCENES) == pytest.approx(
        {
            "pairs": 6,
            "changed_share": 1 / 2,
            "yes_no_accuracy": 1 / 2,
            "yes_no_balanced": 1 / 2,
            "yes_no_auc": 2 / 3,
            "calibration_error": 0.3933333333333333,
            "count_mae_buildings": 5 / 6,
            "count_mae_roads": 1 / 6,
            "count_mae_all": 1 / 2,
            "count_mae_always_zero": 5 / 12,
            "cell_f1_buildings": 0.4,
            "cell_f1_roads": 1 / 2,
            "caption_exact": 1 / 2,
            "caption_exact_changed": 1 / 3,
            "caption_exact_unchanged": 2 / 3,
            "unreadable": 5,
        },
        rel=1e-12,
    )


def test_a_probability_that_is_not_a_number_gives_no_calibration_error() -> None:
    """A diverging training run goes on."""
    replies = [[Reply(reply.text, math.nan) for reply in scene] for scene in REPLIES]
    metrics = score_scenes(replies, SCENES)
    assert math.isnan(metrics["calibration_error"])
    assert metrics["yes_no_accuracy"] == 1 / 2


def test_scenes_of_a_cache(tmp_path: Path) -> None:
    """Each scene is asked each standard question; the values are those of the former implementation."""
    render_cache(tmp_path, 5, seed=3, size_px=64, workers=1)
    model = ScriptedModel()
    replies, scenes = predict_scenes(model, tmp_path, batch_size=2)
    assert [len(replies), len(scenes), model.batches] == [5, 5, [2, 2, 1]]
    assert set(model.history) == {STANDARD_QUESTIONS}
    metrics = score_scenes(replies, scenes)
    assert metrics["count_mae_buildings"] == pytest.approx(1.8)
    assert metrics["cell_f1_roads"] == pytest.approx(1 / 7)
    assert len(predict_scenes(model, tmp_path, limit=3)[0]) == 3


def test_conversations_of_a_cache(tmp_path: Path) -> None:
    """Values of the former implementation."""
    render_cache(tmp_path, 5, seed=3, size_px=64, workers=1)
    model = ScriptedModel(
        script=lambda before, after, question: (
            "yes, a new house" if "yes" in question.prompt or "new" in question.prompt else "nowhere"
        )
    )
    forms = ["file", "typed", "after_1", "after_2", "after_3", "unheard"]
    metrics = score_conversations(model, tmp_path, batch_size=2)
    assert metrics == {f"talk_{form}": 0.4 if form == "unheard" else 0 for form in forms}
    assert [len(questions) for questions in model.history] == [12, 12, 6]
