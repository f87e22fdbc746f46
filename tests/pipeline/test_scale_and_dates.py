"""Run over pairs far from the model's scale, and with dates given, tagged or swapped."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import rasterio
from affine import Affine

from deltavlm.errors import ConfigError
from deltavlm.geo.dates import are_swapped, date_of_tags
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
from deltavlm.pipeline.pairs import PairList
from deltavlm.summaries.results import read_results
from deltavlm.summaries.stac import result_item
from tests.conftest import CHIP, Scene
from tests.jobs import job_into, run_job
from tests.pairs import layer
from tests.rasters import moved, noise, write_raster
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")


def pair_of_gsd(name: str, gsd_m: float, *, width: int = CHIP) -> tuple[Path, Path]:
    """Two images of one chip in height, with pixels of `gsd_m` metres, of which the first chip differs."""
    pixels = noise(rows=CHIP, cols=width)
    transform = Affine(gsd_m, 0, 500_000, 0, -gsd_m, 5_000_000)
    before = write_raster(Path(f"{name}_b.tif"), pixels, transform=transform)
    pixels[:, 4:9, 4:9] = 255
    return before, write_raster(Path(f"{name}_a.tif"), pixels, transform=transform)


def test_counts_and_cells_are_left_out_far_from_the_scale_of_the_training(
    model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    run_job(job_into("far.gpkg", pair_of_gsd("far", 10.0)), model)
    (row,) = layer("far.gpkg", "chips")
    assert row["changed"]
    assert row["caption"] == "two houses were built beside the new road"
    left_out = (
        "new_buildings",
        "new_roads",
        "building_cells",
        "road_cells",
        "answer_count",
        "answer_location",
    )
    assert [name for name in left_out if row[name] is not None and row[name] == row[name]] == []
    assert "20 times coarser" in caplog.text
    assert "`any_scale=True`" in caplog.text
    assert len(layer("far.gpkg", "locations")) == 0

    run_job(job_into("kept.gpkg", pair_of_gsd("far", 10.0), any_scale=True), model)
    (row,) = layer("kept.gpkg", "chips")
    assert (row["new_buildings"], row["new_roads"]) == (2, 1)

    run_job(job_into("near.gpkg", pair_of_gsd("near", 3.9)), model)
    assert layer("near.gpkg", "chips")[0]["new_buildings"] == 2


def test_polygons_far_from_the_scale_have_no_class(model: ScriptedModel) -> None:
    images = pair_of_gsd("far", 10.0)
    run_job(job_into("far.gpkg", images, polygons=True, mask="far.tif"), model)
    assert {row["class"] for row in layer("far.gpkg", "changes")} == {"other"}
    run_job(job_into("kept.gpkg", images, polygons=True, any_scale=True), model)
    assert {row["class"] for row in layer("kept.gpkg", "changes")} == {"building"}


def test_the_same_pixels_at_two_scales_are_answered_for_each(model: ScriptedModel) -> None:
    rows = ["id,before,after"]
    for name, gsd_m in (("near", 0.5), ("far", 10.0), ("also_near", 0.5)):
        before, after = pair_of_gsd(name, gsd_m)
        rows.append(f"{name},{before},{after}")
    Path("list.csv").write_text("\n".join(rows))
    run_job(job_into("out.gpkg", Path("list.csv")), model)
    counts = {row["pair_id"]: row["new_buildings"] for row in layer("out.gpkg", "chips")}
    assert counts["near"] == counts["also_near"] == 2
    assert counts["far"] != counts["far"] or counts["far"] is None


def test_a_mild_warning_about_scale_does_not_swallow_a_grave_one(
    model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["id,before,after"]
    for name, gsd_m in (("mild", 1.5), ("far", 10.0), ("fine", 0.2), ("farther", 30.0)):
        rows.append("{},{},{}".format(name, *pair_of_gsd(name, gsd_m)))
    Path("list.csv").write_text("\n".join(rows))
    run_job(job_into("out.gpkg", Path("list.csv")), model)
    warned = [vars(record)["pair"] for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["mild", "far", "fine"]


@pytest.mark.parametrize(
    ("gsd_m", "pixel_m", "allowed"), [(5.0, 10.0, True), (4.9, 10.0, False), (0.5, 0.3, True)]
)
def test_resampling_does_not_invent_detail(gsd_m: float, pixel_m: float, allowed: bool) -> None:
    before, after = pair_of_gsd("image", pixel_m, width=4 * CHIP)
    pair, options = RasterPair(str(before), str(after)), ReadOptions(gsd_m=gsd_m)
    if allowed:
        with open_pair(pair, options) as reader:
            assert reader.gsd_m == pytest.approx(gsd_m, rel=0.02)
        return
    with pytest.raises(ConfigError, match=r"finer than half a pixel of before, which is 10 m"):
        open_pair(pair, options).__enter__()


@pytest.mark.parametrize(
    ("tags", "date"),
    [
        ({"TIFFTAG_DATETIME": "2019:05:31 10:20:30"}, "2019-05-31T10:20:30"),
        ({"TIFFTAG_DATETIME": "2019:05:31 00:00:00"}, "2019-05-31"),
        ({"TIFFTAG_DATETIME": "2024:01:01 12:00:00", "ACQUISITIONDATETIME": "2019-05-31"}, "2019-05-31"),
        ({"datetime": "2019-05-31T10:20:30Z"}, "2019-05-31T10:20:30Z"),
        ({"DATE_ACQUIRED": "2019-05-31"}, "2019-05-31"),
        ({"TIFFTAG_DATETIME": "0000:00:00 00:00:00"}, None),
        ({"TIFFTAG_DATETIME": "2019:13:31 10:20:30"}, None),
        ({"TIFFTAG_DATETIME": "yesterday"}, None),
        ({"TIFFTAG_SOFTWARE": "2019"}, None),
    ],
)
def test_date_of_the_tags_of_a_file(tags: dict[str, str], date: str | None) -> None:
    assert date_of_tags(tags) == date


def test_dates_come_from_the_tags_and_given_ones_win(scene: Scene, model: ScriptedModel) -> None:
    for path, year in ((scene.before, 2015), (scene.after, 2024)):
        with rasterio.open(path, "r+") as raster:
            raster.update_tags(TIFFTAG_DATETIME=f"{year}:06:01 00:00:00")
    run_job(job_into("out.gpkg", scene), model)
    assert {(row["before_date"], row["after_date"]) for row in layer("out.gpkg", "chips")} == {
        ("2015-06-01", "2024-06-01")
    }
    item = result_item(read_results([Path("out.gpkg")]), Path("item.json"))["properties"]
    assert (item["start_datetime"], item["end_datetime"]) == ("2015-06-01T00:00:00Z", "2024-06-01T23:59:59Z")
    job = job_into("given.gpkg", scene, polygons=True, overlap_px=0)
    pairs = PairList.single(*scene.args, before_date="2014")
    run_job(type(job)(**{**vars(job), "pairs": pairs}), model)
    for name in ("chips", "changes"):
        rows = layer("given.gpkg", name)
        assert {(row["before_date"], row["after_date"]) for row in rows} == {("2014", "2024-06-01")}


@pytest.mark.parametrize(
    ("before", "after", "swapped"),
    [
        ("2024", "2015-06-01", True),
        ("2015-06-02", "2015-06-01T23:00:00", True),
        ("2015", "2015-06-01", False),
        ("2015-06-01", "2015", False),
        ("2015-06-01", "2015-06-01", False),
        (None, "2015", False),
    ],
)
def test_swapped_dates(before: str | None, after: str | None, swapped: bool) -> None:
    assert are_swapped(before, after) is swapped


def test_swapped_dates_and_one_image_given_twice_are_warned_about(scene: Scene) -> None:
    pair = RasterPair(*scene.args, before_date="2024", after_date="2015")
    with open_pair(pair) as reader:
        assert reader.warnings == ("before is dated 2024 and after 2015: are they swapped?",)
        assert reader.notes[0] == reader.warnings[0]
    copy = Path(shutil.copy(scene.before, "copy.tif"))
    Path("link.tif").symlink_to(scene.before)
    for path in (scene.before, copy, Path("link.tif")):
        with open_pair(RasterPair(str(scene.before), str(path))) as reader:
            assert reader.warnings == ("before and after are the same image, so nothing can have changed",)
    other = write_raster(Path("other.tif"), noise(), transform=moved(0, 0))
    with open_pair(RasterPair(str(scene.before), str(other))) as reader:
        assert not any("same image" in warning for warning in reader.warnings)
