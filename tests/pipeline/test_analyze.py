"""Analysis loop: every chip has a row, whatever happened to it, and batches never change an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltavlm.errors import ConfigError, ModelError, RasterError
from deltavlm.geo.features import Feature
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
from deltavlm.model.interface import Reply
from deltavlm.pipeline.provenance import provenance
from deltavlm.pipeline.run_result import RunResult
from deltavlm.pipeline.scale import Scale
from deltavlm.pipeline.schema import LOCATIONS, chips_layer
from deltavlm.pipeline.summary import Summary
from deltavlm.pipeline.writer import OutputCRS, ResultWriter, StreamStore
from deltavlm.tasks.questions import QuestionSpec
from tests.conftest import Scene, write_tiled
from tests.jobs import QUESTIONS, analyzed, single_job, with_output
from tests.rasters import spoil
from tests.scripted_model import CHANGED, UNCHANGED, ScriptedModel


class ListSink:
    """Keeps what is written, and checks it against the layers."""

    def __init__(self, specs: Iterable[QuestionSpec] = QUESTIONS) -> None:
        self.rows: dict[str, list[Feature]] = {"chips": [], "locations": []}
        layers = (chips_layer(tuple(specs)), LOCATIONS)
        reviewed = ("verdict", "note")  # left to people
        self.columns = {
            layer.name: [field.name for field in layer.fields if field.name not in reviewed]
            for layer in layers
        }

    def write(self, layer: str, features: Iterable[Feature]) -> None:
        for feature in features:
            assert list(feature.properties) == self.columns[layer]
            self.rows[layer].append(feature)

    def chips(self) -> dict[str, Mapping[str, Any]]:
        return {str(row.properties["chip_id"]): row.properties for row in self.rows["chips"]}


def run(
    scene: Scene,
    model: ScriptedModel,
    specs: tuple[QuestionSpec, ...] = QUESTIONS,
    read: ReadOptions | None = None,
    on_progress: Callable[[RunResult], None] = lambda result: None,
    **options: Any,
) -> tuple[ListSink, Summary]:
    sink = ListSink(specs)
    job = with_output(single_job(scene, specs, **options), read)
    store = StreamStore(ResultWriter(sink, specs, model.label, OutputCRS(None, untransformed=True)))
    return sink, analyzed(job, model, store, on_progress).summary


def test_every_chip_has_a_row_and_the_changed_one_is_found(scene: Scene, model: ScriptedModel) -> None:
    sink, summary = run(scene, model)
    chips = sink.chips()
    assert len(chips) == summary.chips == 15
    assert {name for name, row in chips.items() if row["changed"]} == {scene.changed_chip}
    assert summary.changed == 1
    row = chips[scene.changed_chip]
    assert row == {
        "chip_id": scene.changed_chip,
        "status": "answered",
        "changed": True,
        "changed_score": 0.9,
        "caption": CHANGED["caption"],
        "caption_score": -0.25,
        "new_roads": 1,
        "new_buildings": 2,
        "road_cells": ["center-left"],
        "building_cells": ["top-left", "center-center"],
        "conflicts": [],
        "answer_caption": CHANGED["caption"],
        "answer_change": "yes",
        "answer_count": CHANGED["count"],
        "answer_location": CHANGED["location"],
        "valid_fraction": 1.0,
        "ground_share": 1.0,
        "aoi_share": None,
        "cloud_share": None,
        "shift_px": pytest.approx(0, abs=0.1),
        "gsd_m": pytest.approx(0.5, rel=0.01),
        "model": "scripted 0123456789abcdef",
        "before": str(scene.before),
        "after": str(scene.after),
        "before_date": None,
        "after_date": None,
    }
    unchanged = chips["r00000_c00000"]
    assert (unchanged["changed"], unchanged["changed_score"]) == (False, 0.1)
    assert (unchanged["new_roads"], unchanged["road_cells"]) == (0, [])
    assert unchanged["answer_caption"] == UNCHANGED["caption"]


def test_locations_are_the_named_cells_of_the_chip(scene: Scene, model: ScriptedModel) -> None:
    sink, _ = run(scene, model)
    footprint = next(
        row.geometry for row in sink.rows["chips"] if row.properties["chip_id"] == scene.changed_chip
    )
    cells = {(row.properties["class"], row.properties["cell"]): row for row in sink.rows["locations"]}
    assert set(cells) == {("road", "center-left"), ("building", "top-left"), ("building", "center-center")}
    for row in cells.values():
        assert row.properties["chip_id"] == scene.changed_chip
        assert row.properties["caption"] == CHANGED["caption"]
        assert footprint.buffer(1e-6).contains(row.geometry)
        assert row.geometry.area == pytest.approx(footprint.area / 9)
    assert cells["building", "center-center"].geometry.centroid.distance(footprint.centroid) < 1e-6


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_the_batch_size_changes_nothing(scene: Scene, batch_size: int) -> None:
    model = ScriptedModel()
    sink, _ = run(scene, model, batch_size=batch_size)
    expected, _ = run(scene, ScriptedModel(), batch_size=15)
    assert list(sink.chips().items()) == list(expected.chips().items())
    assert sink.rows["locations"] == expected.rows["locations"]
    assert max(model.batches) == min(batch_size, 15)


def test_several_workers_share_the_chips_of_a_small_pair(scene: Scene) -> None:
    model = ScriptedModel(workers=2)
    sink, _ = run(scene, model, batch_size=64)
    expected, _ = run(scene, ScriptedModel(), batch_size=15)
    assert list(sink.chips().items()) == list(expected.chips().items())
    assert sorted(model.batches) == [7, 8]


def test_every_question_of_a_batch_is_asked_at_once(scene: Scene, model: ScriptedModel) -> None:
    run(scene, model, batch_size=15)
    assert len(model.history) == 1
    assert [question.name for question in model.history[0]] == ["caption", "change", "count", "location"]
    assert [question.yes_no for question in model.history[0]] == [False, True, False, False]


@pytest.mark.parametrize("most", [1, 3, 5])
def test_a_batch_that_does_not_fit_is_halved_and_asked_again(scene: Scene, most: int) -> None:
    sink, summary = run(scene, ScriptedModel(most=most), batch_size=12)
    expected, _ = run(scene, ScriptedModel())
    assert sink.chips() == expected.chips()
    assert summary.batch_size <= most
    assert not summary.failed


def test_a_chip_that_never_fits_is_an_error_of_its_own(scene: Scene) -> None:
    sink, summary = run(scene, ScriptedModel(most=0), batch_size=4)
    assert {row["status"] for row in sink.chips().values()} == {"error"}
    assert summary.statuses["error"] == 15
    assert "do not fit" in summary.first_failure
    row = sink.chips()["r00000_c00000"]
    assert row["caption"] is None
    assert row["answer_caption"] is None
    assert row["valid_fraction"] == 1


def test_one_bad_chip_takes_no_other_with_it(tmp_path: Path, pixels: np.ndarray) -> None:
    before = write_tiled(tmp_path / "a.tif", pixels)
    pixels[:, 32:64, 64:96] = 255
    scene = Scene(before, write_tiled(tmp_path / "b.tif", pixels))
    sink, summary = run(scene, ScriptedModel(poison=255), batch_size=15)
    statuses = {name: row["status"] for name, row in sink.chips().items()}
    assert statuses.pop("r00032_c00064") == "error"
    assert set(statuses.values()) == {"answered"}
    assert summary.first_failure == "this pair cannot be answered"
    assert summary.batch_size == 15  # the size was not to blame
    with pytest.raises(ModelError, match="cannot be answered"):
        run(scene, ScriptedModel(poison=255), on_error="fail")


def test_an_unreadable_chip_is_written_and_the_rest_answered(
    tmp_path: Path, pixels: np.ndarray, model: ScriptedModel
) -> None:
    paths = [write_tiled(tmp_path / f"{name}.tif", pixels, compress="deflate") for name in "ab"]
    spoil(paths[1], [(1, 2)])
    scene = Scene(*paths)
    sink, summary = run(scene, model, batch_size=4)
    row = sink.chips()["r00032_c00064"]
    assert row["status"] == "unreadable"
    assert row["valid_fraction"] is None
    assert summary.statuses == {"answered": 14, "unreadable": 1}
    assert f"chip r00032_c00064: {scene.after}: a part of it cannot be read" in summary.first_failure
    with pytest.raises(RasterError, match=r"r00032_c00064: .*cannot be read"):
        run(scene, model, on_error="fail")


def test_chips_without_data_are_written_and_not_asked(tmp_path: Path, pixels: np.ndarray) -> None:
    before = write_tiled(tmp_path / "a.tif", pixels)
    pixels[:, :, :32] = 0  # the first column of chips
    pixels[:, :8, 32:64] = 0  # a quarter of another chip
    scene = Scene(before, write_tiled(tmp_path / "b.tif", pixels, nodata=0))
    model = ScriptedModel()
    sink, summary = run(scene, model, batch_size=100)
    chips = sink.chips()
    assert {name for name, row in chips.items() if row["status"] == "nodata"} == {
        "r00000_c00000",
        "r00032_c00000",
        "r00064_c00000",
    }
    assert sum(model.batches) == 12
    assert chips["r00000_c00032"]["valid_fraction"] == 0.75
    assert chips["r00000_c00000"]["changed"] is None
    assert summary.statuses["nodata"] == 3
    strict, _ = run(scene, ScriptedModel(), max_nodata=0.2)
    assert strict.chips()["r00000_c00032"]["status"] == "nodata"
    # "at most everything" still asks nothing about chips without a single pixel
    lax, _ = run(scene, ScriptedModel(), max_nodata=1)
    assert lax.chips()["r00000_c00000"]["status"] == "nodata"


def test_a_cascade_asks_the_rest_of_changed_chips_alone(scene: Scene, model: ScriptedModel) -> None:
    sink, summary = run(scene, model, batch_size=15, cascade=True)
    plain, _ = run(scene, ScriptedModel(), batch_size=15)
    assert [len(asked) for asked in model.history] == [1, 3]
    assert summary.statuses == {"answered": 1, "cascaded": 14}
    for name, row in sink.chips().items():
        whole = plain.chips()[name]
        if name == scene.changed_chip:
            assert row == whole
            continue
        assert row["status"] == "cascaded"
        assert row["caption_score"] is None
        for column in ("changed", "changed_score", "caption", "new_roads", "new_buildings", "road_cells"):
            assert row[column] == whole[column], column


def test_a_cascade_leaves_own_questions_empty_and_asks_again_where_memory_is_short(scene: Scene) -> None:
    own = (*QUESTIONS, QuestionSpec("water", "open", "any water?"))
    sink, summary = run(scene, ScriptedModel(most=4), own, batch_size=15, cascade=True)
    assert summary.batch_size == 3
    chips = sink.chips()
    assert chips[scene.changed_chip]["answer_water"] == "nothing to say"
    assert [row["answer_water"] for name, row in chips.items() if name != scene.changed_chip] == [None] * 14


@pytest.mark.parametrize(("threshold", "changed", "asked"), [(0.95, 0, 0), (0.9, 1, 1), (0.1, 15, 15)])
def test_the_threshold_decides_what_a_cascade_asks(
    scene: Scene, threshold: float, changed: int, asked: int
) -> None:
    sink, summary = run(scene, ScriptedModel(), cascade=True, threshold=threshold)
    assert (summary.changed, summary.statuses["answered"]) == (changed, asked)
    assert {(row["answer_change"], row["changed_score"]) for row in sink.chips().values()} == {
        ("yes", 0.9),
        ("no", 0.1),
    }


def test_the_threshold_is_that_of_the_questions_which_others_agree_with(scene: Scene) -> None:
    model = ScriptedModel()
    run(scene, model, threshold=0.95)
    asked = {question.name: question for question in model.history[0]}
    assert asked["change"].threshold == 0.95
    assert asked["change"] in asked["caption"].agrees_with
    assert asked["caption"] in asked["count"].agrees_with


def test_an_answer_without_a_score_ignores_the_threshold(scene: Scene) -> None:
    model = ScriptedModel(
        script=lambda before, after, question: Reply("yes" if question.yes_no else "x", float("nan"))
    )
    _, summary = run(scene, model, threshold=1.0)
    assert summary.changed == 15


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_a_threshold_is_a_probability(scene: Scene, threshold: float) -> None:
    with pytest.raises(ConfigError, match="`threshold="):
        single_job(scene, threshold=threshold)


def test_a_threshold_needs_the_question(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="`threshold` needs the yes/no question"):
        single_job(scene, (QuestionSpec("caption", "caption"),), threshold=0.5)


def test_a_cascade_goes_on_where_yes_or_no_cannot_be_read(scene: Scene) -> None:
    def mumble(before: Any, after: Any, question: Any) -> str:
        return "perhaps" if question.name == "change" else CHANGED[question.name]

    sink, _ = run(scene, ScriptedModel(script=mumble), cascade=True)
    assert {row["status"] for row in sink.chips().values()} == {"answered"}
    assert {row["new_buildings"] for row in sink.chips().values()} == {2}


def test_limit_takes_the_first_chips(scene: Scene, model: ScriptedModel) -> None:
    sink, summary = run(scene, model, limit=4, batch_size=3)
    assert list(sink.chips()) == ["r00000_c00000", "r00000_c00032", "r00000_c00064", "r00000_c00096"]
    assert model.batches == [3, 1]
    assert summary.chips == 4


def test_an_answer_that_cannot_be_read_keeps_its_text_and_has_no_value(scene: Scene) -> None:
    said = {"caption": "", "change": "perhaps", "count": "many", "location": "roads ['north'] buildings []"}
    sink, summary = run(scene, ScriptedModel(script=lambda before, after, question: said[question.name]))
    row = sink.chips()[scene.changed_chip]
    assert row["status"] == "answered"
    assert [row[name] for name in ("changed", "caption", "new_roads", "road_cells")] == [None] * 4
    assert [row[f"answer_{name}"] for name in said] == list(said.values())
    assert not sink.rows["locations"]
    assert not summary.failed


def test_model_text_is_one_clean_line_and_scores_are_numbers(scene: Scene) -> None:
    wild = "two\nhouses\x00\t\x1b[31mred \ud800\u202e"
    sink, _ = run(scene, ScriptedModel(script=lambda *asked: Reply(wild, float("nan"))))
    row = sink.chips()[scene.changed_chip]
    assert row["caption"] == row["answer_count"] == "two houses [31mred"
    assert row["caption_score"] is None
    assert row["changed_score"] is None


def test_own_questions_are_columns_of_their_own(scene: Scene) -> None:
    specs = (
        QuestionSpec("water", "open", "Any new water?"),
        QuestionSpec("cap", "caption", "Describe."),
        QuestionSpec("trees", "open", "Any trees felled?"),
    )
    model = ScriptedModel(script=lambda before, after, question: f"said to {question.prompt}")
    sink, summary = run(scene, model, specs)
    row = sink.chips()[scene.changed_chip]
    assert row["answer_water"] == "said to Any new water?"
    assert row["answer_trees"] == "said to Any trees felled?"
    assert row["caption"] == row["answer_cap"] == "said to Describe."
    assert row["changed"] is None
    assert "answer_change" not in row
    assert summary.changed == 0


def test_progress_ends_at_the_number_of_chips(scene: Scene, model: ScriptedModel) -> None:
    chips: list[int] = []
    _, summary = run(scene, model, batch_size=4, on_progress=lambda result: chips.append(result.chips))
    assert chips == [0, 4, 8, 12, 15]  # 0: the pair was opened
    assert summary.changed == 1


def test_the_most_changed_chips_come_first_and_are_few(scene: Scene) -> None:
    scores = iter(np.random.default_rng(1).permutation(15) / 20 + 0.2)
    model = ScriptedModel(
        script=lambda before, after, question: (
            Reply("yes", float(next(scores))) if question.name == "change" else "x"
        )
    )
    _, summary = run(scene, model)
    assert summary.changed == 15
    assert [chip.score for chip in summary.most_changed] == pytest.approx(
        [0.2 + i / 20 for i in range(14, 4, -1)]
    )


def test_chips_whose_answers_agree_come_before_those_with_conflicts(scene: Scene) -> None:
    two_chips = ["there is no difference", Reply("yes", 0.9), "a pond appears", Reply("yes", 0.6)]
    model = ScriptedModel(queue=two_chips * 8)
    specs = tuple(spec for spec in QUESTIONS if spec.task in ("caption", "change"))
    _, summary = run(scene, model, specs)
    assert [(chip.score, bool(chip.conflicts)) for chip in summary.most_changed] == [
        *[(0.6, False)] * 7,
        *[(0.9, True)] * 3,
    ]
    assert (
        summary.conflicts
        == {"changed_but_caption_denies": summary.conflicting}
        == {"changed_but_caption_denies": 8}
    )


def test_provenance_is_json_and_names_what_was_used(scene: Scene, model: ScriptedModel) -> None:
    with open_pair(RasterPair(*scene.args)) as reader:
        record = provenance(single_job(scene), model, reader.provenance())
    again = json.loads(json.dumps(record, allow_nan=False))
    assert again["model"]["fingerprint"] == model.fingerprint
    assert [question["name"] for question in again["questions"]] == ["caption", "change", "count", "location"]
    assert again["versions"]["deltavlm"]
    assert again["inputs"]["before"]["path"] == str(scene.before)


@pytest.mark.parametrize(
    ("gsd_m", "words"),
    [
        (0.5, None),
        (0.3, None),
        (1.0, None),
        (1.005, None),  # half a per cent of rounding in a warp
        (1.1, "1.1 m"),
        (10.0, "10 m"),
        (0.1, "`gsd_m=0.5`"),
        (None, "not known"),
    ],
)
def test_a_pixel_far_from_the_training_is_worth_a_warning(gsd_m: float | None, words: str | None) -> None:
    warning = Scale(gsd_m, 0.5).warning()
    assert (warning is None) == (words is None)
    assert words is None or warning is None or words in warning


def test_chips_larger_than_the_models_show_larger_pixels() -> None:
    assert Scale(0.5, 0.5, shrink=2).warning() is None
    assert "a chip of this size has 2 m a pixel" in (Scale(0.5, 0.5, shrink=4).warning() or "")
    assert Scale(0.1, 0.5, shrink=4).warning() is None
    assert Scale(4.2, 0.5).is_far
    assert not Scale(3.9, 0.5).is_far
    assert Scale(0.06, 0.5).is_far
    assert not Scale(0.06, 0.5, shrink=4).is_far
    assert not Scale(None, 0.5).is_far
