"""Outputs written by an earlier version are read as that version read them.

tests/golden/outputs_81764d4.zip holds outputs of commit 81764d4 in every format, of a pair and of a list of
pairs, the rasters that they were made from, and `expected.json`: the figures of `summarize` and the data of
the report page, as that commit computed them.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from deltavlm.geo.measure import areas_m2
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.schema import ANALYZED_STATUSES
from deltavlm.report.build import open_report
from deltavlm.report.images import ImageOptions
from deltavlm.report.page_data import PageImages, page_data
from deltavlm.summaries.areas import single_area
from deltavlm.summaries.results import read_results
from deltavlm.summaries.stac import result_item
from deltavlm.summaries.totals import as_row, summarize_areas, summarize_chips

GROUND = {
    *("changed_share", "changed_km2", "new_buildings", "new_roads", "mean_score", "looked_at_km2"),
    *("looked_at_share", "overlap"),
}
"""Figures in which that version counted ground in several chips for each of them, or for no pair but one."""

ARCHIVE = Path(__file__).parent.parent / "golden" / "outputs_81764d4.zip"
with zipfile.ZipFile(ARCHIVE) as archive:
    EXPECTED: dict[str, dict[str, Any]] = json.loads(archive.read("expected.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("earlier")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(path)
    return path


def as_json(value: object) -> Any:
    return json.loads(json.dumps(value))


def approximately(value: Any) -> Any:
    """Numbers up to rounding errors of PROJ and GEOS, whose versions differ."""
    if isinstance(value, dict):
        return {key: approximately(member) for key, member in value.items()}
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("name", EXPECTED)
def test_the_summary_is_the_same(folder: Path, name: str) -> None:
    results = read_results([folder / name])
    expected = EXPECTED[name]["summary"]
    row = as_json(as_row(summarize_chips(results)))
    same = expected["all"].keys() - GROUND
    assert {name: row[name] for name in same} == approximately({name: expected["all"][name] for name in same})
    assert row["conflicting"] == 0  # a column since then
    assert row["basis"] == "chips"  # its polygons do not say what happened
    shares = results.chips["ground_share"].to_numpy()
    for code in np.unique(codes := results.chips["pair_id"].factorize(use_na_sentinel=False)[0]):
        of_pair = codes == code
        union = areas_m2(np.array([shapely.union_all(results.lonlat[of_pair])], dtype=object))
        assert (shares * results.areas_m2)[of_pair].sum() == pytest.approx(union[0], rel=1e-4)
    weights = shares * results.chips["status"].isin(ANALYZED_STATUSES).to_numpy()
    assert row["looked_at_km2"] == pytest.approx((weights * results.areas_m2).sum() / 1e6)
    assert row["new_roads"] == pytest.approx((weights * results.chips["new_roads"].fillna(0)).sum())
    assert len(summarize_areas(results, single_area(results))) == 1
    assert result_item(results, folder / "item.json", before_date="2015", after_date="2024")["bbox"]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_report_shows_the_same(folder: Path, name: str) -> None:
    report = open_report(folder / name, ImageOptions())
    data = as_json(page_data(report.output, report.pairs, PageImages()))
    expected = EXPECTED[name]["report"]
    for pair, expected_pair in zip(data["pairs"], expected["pairs"], strict=True):
        number, _ = expected_pair["changes"]
        assert pair.pop("totals")["basis"] == "chips"
        assert pair == approximately(expected_pair | {"changes": number})
    assert data["title"] == expected["title"]
    for name in ("shift", "clouds"):  # columns that it did not have
        assert set(data["chips"]["columns"].pop(name)) == {None}
    for name in ("verdict", "note"):  # of a review: columns since then
        assert not any(data["chips"]["columns"].pop(name))
    conflicts = data["chips"]["columns"].pop("conflicts")  # a column since then
    assert not any(conflicts)
    for axis in ("lon", "lat"):  # which had six decimals
        data["chips"]["columns"][axis] = [round(degrees, 6) for degrees in data["chips"]["columns"][axis]]
    assert data["chips"] == expected["chips"]
    assert len(data["changes"]) == len(expected["changes"])
    for change, expected_change in zip(data["changes"], expected["changes"], strict=True):
        assert change.pop("kind") == change["class"]  # a column since then
        assert [change.pop(name) for name in ("id", "verdict", "note")] == [None, "", ""]
        assert change == approximately(expected_change)


def test_the_page_shows_the_images(folder: Path) -> None:
    """They are in the folder of the output, though it was made in another one."""
    report = open_report(folder / "pairs.gpkg", ImageOptions())
    html, missing = report.html()
    assert list(missing) == ["lost"]
    assert html.startswith("<!doctype html>")


def test_layers_of_a_package(folder: Path) -> None:
    output = read_output(folder / "pairs.gpkg")
    assert [row["status"] for row in output.rows("pairs")] == ["answered", "answered", "failed"]
    assert output.rows("pairs")[0]["inputs"]["before"]["path"] == "before.tif"
    assert [row["class"] for row in output.rows("changes")] == ["building"]
    assert output.rows("changes")[0]["chip_ids"]
    assert read_output(folder / "pairs.geojson").rows("pairs") == []
