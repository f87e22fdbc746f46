"""Reviews: verdicts and notes of a person, in a file or in the columns of an output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest

from deltavlm.errors import ConfigError, InputError
from deltavlm.pipeline.outputs_reader import Output, at_threshold, read_output
from deltavlm.pipeline.review import Opinion, check_verdicts, read_review, with_review
from deltavlm.summaries.results import read_results
from deltavlm.summaries.review import Precision, summarize_review
from tests.conftest import Scene
from tests.jobs import job_into, run_job
from tests.pairs import write_pairs
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")

ROWS: list[dict[str, Any]] = [
    {"layer": "changes", "pair_id": "", "id": "1", "verdict": "road", "note": 'a "new", wide\nroad'},
    {"layer": "chips", "pair_id": "", "id": "r00000_c00000", "verdict": "reject", "note": ""},
]


def write_json(rows: object, name: str = "review.json") -> Path:
    path = Path(name)
    path.write_text(json.dumps({"output": "out.gpkg", "review": rows}))
    return path


@pytest.fixture
def output(scene: Scene, bright: ScriptedModel) -> Output:
    run_job(job_into("out.gpkg", scene, polygons=True), bright)
    return read_output(Path("out.gpkg"))


def test_json_and_csv_say_the_same() -> None:
    csv = Path("review.csv")
    csv.write_text(
        "layer,pair_id,id,verdict,note\r\n"
        'changes,,1,Road,"a ""new"", wide\nroad"\r\n'
        "chips,,r00000_c00000,reject,\r\n"
    )
    for path in (write_json(ROWS), csv):
        opinions = read_review(path).opinions
        assert opinions["changes"] == {("", "1"): Opinion("road", 'a "new", wide\nroad')}
        assert opinions["chips"] == {("", "r00000_c00000"): Opinion("reject", None)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no review, whose columns are"),
        ("{", "is not valid JSON"),
        ("{}", "is no review, an object with a list"),
        ('{"review": 1}', "is no review, an object with a list"),
        ("[]", "is no review, an object with a list"),
        ('{"review": [1]}', "row 1: is no object"),
        ('{"review": [{"layer": "cells", "id": "1"}]}', "its layer is 'cells', not one of chips, changes"),
        ('{"review": [{"layer": "chips"}]}', "row 1: names no chip_id"),
        ('{"review": [{"layer": "chips", "id": "x", "verdict": "maybe"}]}', "its verdict is 'maybe'"),
        (
            '{"review": [{"layer": "chips", "id": "x", "verdict": "road"}]}',
            "its verdict is 'road', not one of accept, reject$",
        ),
        ('{"review": [{"layer": "chips", "id": "x", "note": [1]}]}', "row 1, note: is no text"),
        (
            '{"review": [{"layer": "chips", "id": "x"}, {"layer": "chips", "id": "x"}]}',
            "row 2: is the second",
        ),
        ('{"review": []}', "holds no verdicts"),
        ("layer,pair_id,id,verdict,note\n", "holds no verdicts"),
        ("a,b\n1,2\n", "is no review, whose columns are layer, pair_id, id, verdict, note"),
        ('layer,pair_id,id,verdict,note\n"', "is not valid CSV"),
    ],
)
def test_files_that_are_no_review(text: str, words: str) -> None:
    path = Path("review.json")
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_review(path)


def test_opinions_become_columns(output: Output) -> None:
    reviewed = with_review(output, read_review(write_json(ROWS)))
    (polygon,) = reviewed.rows("changes")
    assert (polygon["polygon_id"], polygon["verdict"], polygon["note"]) == (1, "road", 'a "new", wide\nroad')
    chips = {row["chip_id"]: row["verdict"] for row in reviewed.rows("chips")}
    assert chips.pop("r00000_c00000") == "reject"
    assert {*chips.values()} == {None}


def test_a_review_of_another_output(output: Output) -> None:
    rows = [{"layer": "changes", "id": 7, "verdict": "accept"}]
    with pytest.raises(InputError, match=r"out.gpkg has no polygon_id '7'; is the review of another output"):
        with_review(output, read_review(write_json(rows)))
    rows = [{"layer": "chips", "pair_id": "p1", "id": "r00000_c00000", "verdict": "accept"}]
    with pytest.raises(InputError, match="in pair 'p1'"):
        with_review(output, read_review(write_json(rows)))


def test_a_review_of_an_output_of_another_name(output: Output) -> None:
    Path("review.json").write_text(json.dumps({"output": "other.gpkg", "review": ROWS}))
    with pytest.raises(InputError, match=r"is the review of other.gpkg, not of out.gpkg"):
        with_review(output, read_review(Path("review.json")))


@pytest.mark.parametrize(("layer", "name"), [("chips", "chip_id r00000_c00000"), ("changes", "polygon_id 1")])
def test_a_verdict_in_a_column_that_is_none(output: Output, layer: str, name: str) -> None:
    """It counted as rejected; other programs than QGIS offer no choices."""
    frame = output.layers[layer].copy()
    frame["verdict"] = ["yes"] + [None] * (len(frame) - 1)
    wrong = replace(output, layers={**output.layers, layer: frame})
    with pytest.raises(InputError, match=rf"out\.gpkg, {name}: its verdict is 'yes', not one of accept, re"):
        check_verdicts(wrong)
    check_verdicts(output)


def test_pairs_of_a_list_are_told_apart(model: ScriptedModel, tmp_path: Path) -> None:
    run_job(job_into("out.gpkg", write_pairs(tmp_path / "data", 2)), model)
    rows = [{"layer": "chips", "pair_id": "p1", "id": "r00000_c00000", "verdict": "accept"}]
    reviewed = with_review(read_output(Path("out.gpkg")), read_review(write_json(rows)))
    assert {row["pair_id"]: row["verdict"] for row in reviewed.rows("chips")} == {"p0": None, "p1": "accept"}


@pytest.mark.parametrize(
    ("right", "reviewed", "low", "high"), [(8, 10, 0.490, 0.943), (0, 5, 0.0, 0.434), (50, 50, 0.929, 1.0)]
)
def test_wilson_intervals(right: int, reviewed: int, low: float, high: float) -> None:
    """Against the table values of the score interval (Newcombe 1998)."""
    precision = Precision.of(right, reviewed)
    assert precision is not None
    assert (precision.low, precision.high) == pytest.approx((low, high), abs=1e-3)
    assert Precision.of(0, 0) is None


def test_precision_and_accepted_totals() -> None:
    """Of six polygons: three accepted, one is of another class, one rejected, one not reviewed; the rejected
    one tells no class, so none that could be wrong."""
    verdicts = ["accept", "accept", "accept", "road", "reject", None]
    classes = ["building", "building", "road", "building", "other", "other"]
    results = read_results_of(classes, verdicts)
    summary = summarize_review(results)
    assert summary is not None
    assert summary.polygon_change is not None
    assert (summary.polygon_change.right, summary.polygon_change.reviewed) == (4, 5)
    assert summary.polygon_class is not None
    assert (summary.polygon_class.right, summary.polygon_class.reviewed) == (3, 4)
    assert summary.accepted == {"building": 2, "road": 2}
    assert summary.accepted_m2 == {"building": 30, "road": 70}
    assert json.dumps(summary.as_json())
    assert any("2 building (30 m²), 2 road (70 m²)" in line for line in summary.lines())
    assert summarize_review(read_results_of(classes, [None] * 6)) is None


def test_no_precision_of_classes_that_a_run_does_not_tell() -> None:
    """Where pixels are too coarse for classes every polygon is `other`; that counted as a wrong class."""
    summary = summarize_review(read_results_of(["other"] * 3, ["building", "road", "reject"]))
    assert summary is not None
    assert summary.polygon_change is not None
    assert (summary.polygon_change.right, summary.polygon_change.reviewed) == (2, 3)
    assert summary.polygon_class is None
    assert "Polygons that show a change of their class: n/a" in summary.lines()[1]


def read_results_of(classes: list[str], verdicts: list[str | None]) -> Any:
    """Results with polygons of 10, 20, ... m² of these classes, and three chips without a verdict."""
    import geopandas
    import pandas as pd
    import shapely

    boxes = [shapely.box(0, 0, 1, 1)] * len(classes)
    polygons = geopandas.GeoDataFrame(
        {
            "polygon_id": range(1, len(classes) + 1),
            "class": classes,
            "kind": classes,
            "area_m2": 10.0 * np.arange(1, len(classes) + 1),
            "verdict": pd.Series(verdicts, dtype="object"),
        },
        geometry=boxes,
        crs="EPSG:32631",
    )
    chips = geopandas.GeoDataFrame(
        {
            "chip_id": ["a", "b", "c"],
            "status": "answered",
            "changed": [True, True, False],
            "changed_score": 0.9,
        },
        geometry=boxes[:3],
        crs="EPSG:32631",
    )
    path = Path("made.gpkg")
    path.unlink(missing_ok=True)
    pyogrio.write_dataframe(chips, path, layer="chips")
    pyogrio.write_dataframe(polygons, path, layer="changes", append=True)
    return read_results([path])


def test_columns_edited_in_a_gis_count(output: Output) -> None:
    with pyogrio_edit("out.gpkg", "chips") as frame:
        frame["verdict"] = frame["verdict"].astype("object")
        frame.loc[frame["changed"] == True, "verdict"] = "reject"  # noqa: E712
        frame.loc[frame["chip_id"] == "r00000_c00000", "verdict"] = "accept"
    summary = summarize_review(read_results([Path("out.gpkg")]))
    assert summary is not None
    assert summary.changed_chips is not None
    assert summary.changed_chips.right == 0
    assert summary.unchanged_chips is not None
    assert (summary.unchanged_chips.right, summary.unchanged_chips.reviewed) == (1, 1)


def test_verdicts_follow_the_calls_at_a_threshold(output: Output) -> None:
    """A page at a threshold showed a verdict written in QGIS on the opposite call, and downloaded it so."""
    with pyogrio_edit("out.gpkg", "chips") as frame:
        frame["verdict"] = frame["verdict"].astype("object")
        frame.loc[frame["changed"] == True, "verdict"] = "accept"  # noqa: E712
        frame.loc[frame["chip_id"] == "r00000_c00000", "verdict"] = "accept"

    def verdicts(threshold: float | None) -> list[tuple[bool, str]]:
        rows = read_output(Path("out.gpkg"), threshold=threshold).rows("chips")
        return sorted((row["changed"], row["verdict"]) for row in rows if row["verdict"])

    assert verdicts(None) == verdicts(0.5) == [(False, "accept"), (True, "accept")]
    assert verdicts(0.95) == [(False, "accept"), (False, "reject")]
    assert verdicts(0) == [(True, "accept"), (True, "reject")]
    for threshold in (None, 0.0, 0.95):
        truths = read_results([Path("out.gpkg")], threshold=threshold).chips["truth"].tolist()
        assert sorted(truth for truth in truths if truth is not None) == [False, True]
    twice = at_threshold(at_threshold(read_output(Path("out.gpkg")), 0.95), 0.5)
    assert {row["verdict"] for row in twice.rows("chips")} == {None, "accept"}


class pyogrio_edit:
    """Edit of a layer of a GeoPackage, written at the end of the `with`."""

    def __init__(self, path: str, layer: str) -> None:
        self.path, self.layer = path, layer

    def __enter__(self) -> Any:
        self.frame = pyogrio.read_dataframe(self.path, layer=self.layer)
        return self.frame

    def __exit__(self, *error: object) -> None:
        pyogrio.write_dataframe(self.frame, self.path, layer=self.layer, append=False)


def test_a_review_is_of_one_output(output: Output) -> None:
    paths = [Path("out.gpkg"), Path("out.gpkg")]
    with pytest.raises(ConfigError, match="is the review of one output, not of 2"):
        read_results(paths, review=write_json(ROWS))


def test_verdicts_are_on_what_the_page_called_a_chip(output: Output) -> None:
    """At another threshold the truth stays, and precision is that of the other calls."""
    changed = next(row["chip_id"] for row in output.rows("chips") if row["changed"])
    rows = [
        {"layer": "chips", "id": changed, "verdict": "reject"},
        {"layer": "chips", "id": "r00000_c00000", "verdict": "accept"},
    ]
    review = write_json(rows)
    at_half = summarize_review(read_results([Path("out.gpkg")], review=review))
    assert at_half is not None
    assert (at_half.changed_chips and at_half.changed_chips.right) == 0
    assert (at_half.unchanged_chips and at_half.unchanged_chips.right) == 1
    stricter = summarize_review(read_results([Path("out.gpkg")], review=review, threshold=0.95))
    assert stricter is not None
    assert stricter.changed_chips is None
    assert stricter.unchanged_chips is not None
    assert (stricter.unchanged_chips.right, stricter.unchanged_chips.reviewed) == (2, 2)
    at_page = json.loads(review.read_text()) | {"threshold": 0.95}
    at_page["review"] = [{"layer": "chips", "id": changed, "verdict": "reject"}]
    review.write_text(json.dumps(at_page))  # a missed change
    missed = summarize_review(read_results([Path("out.gpkg")], review=review))
    assert missed is not None
    assert missed.changed_chips is not None
    assert (missed.changed_chips.right, missed.changed_chips.reviewed) == (1, 1)
