"""Totals do not depend on how the ground is cut into chips, and are the same wherever they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from deltavlm.geo.pair import ReadOptions
from deltavlm.model.interface import Masks, Question, Reply
from deltavlm.pipeline.changes import ChangeOptions
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.totals import Totals, sum_totals
from deltavlm.report.build import open_report
from deltavlm.report.images import ImageOptions
from deltavlm.report.page_data import PageImages, page_data
from deltavlm.summaries.results import read_results
from deltavlm.summaries.stac import result_item
from deltavlm.summaries.totals import as_row, summarize_chips
from tests.jobs import job_into, run_job
from tests.rasters import noise, write_raster
from tests.scripted_model import UNCHANGED, ScriptedModel, reply

pytestmark = pytest.mark.usefixtures("empty_folder")

ROWS, COLS, STEP, SIDE = 300, 432, 12, 4  # px: the raster, and a square of SIDE in each cell of STEP
GSD_M = 0.5


def with_squares(folder: Path, offset: tuple[int, int] = (0, 0)) -> tuple[tuple[Path, Path], int]:
    """Pair whose right two thirds have white squares in `after`, and their number.

    offset: rows and columns of unchanged ground before the first, which shift the chip grid.
    """
    before = noise(3, ROWS + offset[0], COLS + offset[1])
    after = before.copy()
    rng = np.random.default_rng(4)
    corners = [
        (offset[0] + row + down, offset[1] + col + right)
        for row in range(0, ROWS, STEP)
        for col in range(COLS // 3, COLS, STEP)
        for down, right in [rng.integers(0, STEP - SIDE, 2)]
    ]
    for top, left in corners:
        after[:, top : top + SIDE, left : left + SIDE] = 255
    pair = tuple(write_raster(folder / name, date) for name, date in (("b.tif", before), ("a.tif", after)))
    return pair, len(corners)  # type: ignore[return-value]


def white(image: np.ndarray) -> np.ndarray:
    return (image == 255).all(axis=0)


def counted(before: np.ndarray, after: np.ndarray, question: Question) -> str:
    """Answer of a model that counts the squares in a chip by their area."""
    number = round(int(white(after).sum()) / SIDE**2)
    if question.name == "count" and number:
        return f"{number} new building{'s' * (number > 1)}"
    return "yes" if question.name == "change" and number else UNCHANGED.get(question.name, "")


class SquareModel(ScriptedModel):
    """Model that counts white squares, and whose mask is their pixels."""

    def masks(self, encoded: Any) -> Masks:
        built = np.array([white(after) for _, after in encoded], np.float32)
        return Masks(("none", "building_built"), np.stack([1 - built, built], axis=1))


def totals_everywhere(output: str, pair: tuple[Path, Path], **fields: Any) -> Totals:
    """Totals of a run, which its report, summary and STAC item have too."""
    changes = ChangeOptions(simplify_px=0)
    script = fields.pop("script", counted)
    job = job_into(output, pair, overwrite=True, changes=changes, **fields)
    model = SquareModel(script=script, chip_px=job.options.chip_px, poison=7)
    totals = run_job(job, model).totals
    expected = {
        name: pytest.approx(value, rel=1e-3) if isinstance(value, float | dict) else value
        for name, value in totals.as_dict().items()
    }
    report = open_report(Path(output), ImageOptions())
    page = page_data(report.output, report.pairs, PageImages())
    assert page["totals"] == page["pairs"][0]["totals"] == expected
    results = read_results([Path(output)])
    summary = summarize_chips(results)
    assert summary.totals.as_dict() == expected
    row = as_row(summary)
    for column in ("basis", "changed_km2", "changed_share", "new_buildings", "new_roads", "cloud_share"):
        assert row[column] == expected[column]
    assert row["looked_at_km2"] == expected["analyzed_km2"]
    properties = result_item(results, Path("item.json"), before_date="2020", after_date="2024")["properties"]
    assert {name: properties[f"deltavlm:{name}"] for name in expected} == expected
    return totals


CUTS = [  # chip size, overlap, offset
    *((32, 0, (0, 0)), (48, 0, (0, 0)), (96, 0, (0, 0)), (900, 0, (0, 0)), (64, 8, (0, 0)), (64, 40, (0, 0))),
    *((64, 0, (7, 13)), (64, 0, (31, 1)), (100, 0, (5, 0))),
]


@pytest.mark.parametrize(("chip_px", "overlap_px", "offset"), CUTS)
def test_sums_over_chips_do_not_depend_on_the_cut(
    tmp_path: Path, chip_px: int, overlap_px: int, offset: tuple[int, int]
) -> None:
    """Within 5 % for what is counted; changed ground is that of whole chips, so within a chip at its edge."""
    pair, number = with_squares(tmp_path, offset)
    totals = totals_everywhere("out.geojson", pair, chip_px=chip_px, overlap_px=overlap_px)
    height, width = ROWS + offset[0], COLS + offset[1]
    assert totals.basis == "chips"
    assert totals.analyzed_km2 == pytest.approx(height * width * GSD_M**2 / 1e6, rel=1e-3)
    assert totals.new_buildings == pytest.approx(number, rel=0.05)
    assert totals.changed_share is not None
    truth = COLS * 2 / 3 * ROWS / (width * height)
    assert truth - 0.02 <= totals.changed_share <= min(1, truth + 2 * chip_px / width)


@pytest.mark.parametrize(("output", "cut"), [("out.gpkg", CUTS[3]), ("out.geojson", CUTS[6])])
def test_changed_ground_by_polygons_is_exact(
    tmp_path: Path, output: str, cut: tuple[int, int, tuple[int, int]]
) -> None:
    chip_px, overlap_px, offset = cut
    pair, number = with_squares(tmp_path, offset)
    totals = totals_everywhere(output, pair, chip_px=chip_px, overlap_px=overlap_px, polygons=True)
    assert (totals.basis, totals.kinds) == ("polygons", {"building_built": number})
    assert totals.new_buildings == pytest.approx(number, rel=0.05)
    area_m2 = number * SIDE**2 * GSD_M**2
    assert totals.changed_km2 == pytest.approx(area_m2 / 1e6, rel=1e-3)
    assert totals.kind_areas == {"building_built": pytest.approx(area_m2, rel=1e-3)}
    assert totals.kinds_text == f"{number} building_built {totals.kind_areas['building_built']:,.0f} m²"


@pytest.mark.parametrize("chip_px", [32, 96])
def test_ground_outside_of_the_area_of_interest_does_not_count(tmp_path: Path, chip_px: int) -> None:
    """A box with a quarter of the right two thirds; its edges cut chips and no square."""
    pair, _ = with_squares(tmp_path)
    left, top = COLS // 3 + 2 * STEP, 4 * STEP
    width, height = 12 * STEP, 10 * STEP
    west, north = 500_000 + left * GSD_M, 5_000_000 - top * GSD_M
    box = (west, north - height * GSD_M, west + width * GSD_M, north)
    read = ReadOptions(bbox=box, bbox_crs="EPSG:32631")
    totals = totals_everywhere("out.gpkg", pair, chip_px=chip_px, overlap_px=0, read=read)
    assert totals.analyzed_km2 == pytest.approx(width * height * GSD_M**2 / 1e6, rel=0.02)
    assert totals.new_buildings == pytest.approx(12 * 10, rel=0.1)
    totals = totals_everywhere("out.gpkg", pair, chip_px=chip_px, read=read, polygons=True)
    assert totals.kinds == {"building_built": 12 * 10}


@pytest.mark.parametrize("chip_px", [32, 96])
def test_clouds_hide_the_same_share_however_the_ground_is_cut(tmp_path: Path, chip_px: int) -> None:
    """Also in chips that are not analyzed, as they are hidden whole."""
    pair, _ = with_squares(tmp_path)
    clouds = np.zeros((1, ROWS, COLS), np.uint8)
    clouds[:, :, : COLS // 3] = clouds[:, : ROWS // 4] = 1
    read = ReadOptions(after_cloud_mask=str(write_raster(tmp_path / "clouds.tif", clouds)))
    totals = totals_everywhere("out.gpkg", pair, chip_px=chip_px, overlap_px=0, read=read)
    assert totals.cloud_share == pytest.approx(1 / 3 + 2 / 3 / 4, rel=0.03)
    assert totals.analyzed_km2 == pytest.approx(COLS * ROWS / 2 * GSD_M**2 / 1e6, rel=0.1)
    assert str(totals).endswith(f"; {100 * totals.cloud_share:.2g} % of the ground hidden by clouds")
    without = totals_everywhere("out.gpkg", pair, chip_px=chip_px, overlap_px=0)
    assert without.cloud_share is None
    assert (totals + without).cloud_share == pytest.approx(totals.cloud_share)  # of ground with a mask


@pytest.mark.parametrize("output", ["out.gpkg", "out.geojson"])
@pytest.mark.parametrize("has_area", [False, True])
def test_ground_of_chips_without_an_answer_belongs_to_answered_ones(
    tmp_path: Path, output: str, has_area: bool
) -> None:
    """It was booked half: of chips of 100 px the last column shares 68 px with the one before it."""
    pair, number = with_squares(tmp_path)
    with rasterio.open(pair[1], "r+") as raster:  # chip (0, 4) fails, and the right third of (2, 4) is a hole
        raster.write(np.full((3, 100, 100), 7, np.uint8), window=Window(COLS - 100, 0, 100, 100))
        mask = np.full((ROWS, COLS), 255, np.uint8)
        mask[200:, COLS - 32 :] = 0
        raster.write_mask(mask)
    expected_px = ROWS * COLS - 2 * 32 * 100
    expected = number - (100 * 100 + 32 * 100) / STEP**2
    read = ReadOptions()
    if has_area:  # without the first 50 rows
        read = ReadOptions(bbox=(500_000, 4_999_850, 500_216, 4_999_975), bbox_crs="EPSG:32631")
        expected_px -= 50 * (COLS - 32)
        expected -= 50 * (COLS * 2 / 3 - 100) / STEP**2
    totals = totals_everywhere(output, pair, chip_px=100, overlap_px=0, read=read, max_nodata=0.2)
    assert totals.analyzed_km2 == pytest.approx(expected_px * GSD_M**2 / 1e6, rel=1e-3)
    assert totals.new_buildings == pytest.approx(expected, rel=0.05)


def test_ground_beyond_the_limit_belongs_to_the_chips_within_it(tmp_path: Path) -> None:
    pair, _ = with_squares(tmp_path)
    totals = totals_everywhere("out.gpkg", pair, chip_px=100, overlap_px=0, limit=4)  # of five in a row
    assert totals.analyzed_km2 == pytest.approx(400 * 100 * GSD_M**2 / 1e6, rel=1e-3)


def test_a_chip_called_unchanged_has_nothing_new(tmp_path: Path) -> None:
    """Its counts are a contradiction, kept in its row; a null is no such call."""

    def contradicting(answer: str) -> Callable[[Any, Any, Question], Reply]:
        said = {"count": reply("3 new buildings"), "change": Reply(answer, 0.9 if answer == "yes" else 0.1)}
        return lambda before, after, question: said.get(question.name, reply(""))

    pair, _ = with_squares(tmp_path)
    for answer, each in (("no", 0), ("perhaps", 3), ("yes", 3)):
        script = contradicting(answer)
        totals = totals_everywhere("out.geojson", pair, chip_px=100, overlap_px=0, script=script)
        assert totals.new_buildings == pytest.approx(each * ROWS * COLS / 100**2)
    rows = read_output(Path("out.geojson")).rows("chips")
    assert {row["new_buildings"] for row in rows} == {3}


def test_figures_of_outputs_are_added() -> None:
    chips = Totals("chips", analyzed=4e6, changed=1e6, new_buildings=2.5)
    polygons = Totals("polygons", analyzed=6e6, changed=1e6, new_buildings=1.0, new_roads=3.0)
    both = sum_totals([chips, polygons])
    assert (both.basis, both.changed_km2, both.changed_share) == ("chips and polygons", 2, 0.2)
    assert (both.new_buildings, both.new_roads) == (3.5, 3)
    assert sum_totals([]).as_dict()["basis"] is None
    assert str(both) == (
        "changed ground 2.00 of 10.00 km² (20 %) by chips and polygons; "
        "3.5 new buildings, 3 new roads by chips"
    )
    first = replace(polygons, kinds={"other": 2.0}, kind_areas={"other": 2.5e6})
    other = replace(first, kinds={"other": 1.0, "road_built": 3.0}, kind_areas={"other": 20, "road_built": 9})
    assert (first + other).kinds_text == "3 other 2.50 km², 3 road_built 9 m²"
    assert (first + other).as_dict()["kinds_km2"] == {"other": 2.50002, "road_built": 9e-6}
    assert (first + replace(other, has_crs=False)).kinds_text == "3 other, 3 road_built"
    assert replace(first, has_crs=False).kinds_text == "2 other 2,500,000 px"
    in_pixels = chips + replace(polygons, has_crs=False)  # square pixels and square metres have no sum
    assert (in_pixels.changed_km2, in_pixels.changed_share, in_pixels.new_buildings) == (None, None, 3.5)


def test_ground_is_that_of_the_area_of_interest_and_of_the_data(
    model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strip that lies where chips overlap counts once, and a band without data does not."""
    monkeypatch.chdir(tmp_path)
    mask = np.ones((96, 160), bool)
    mask[:, :4] = False  # an eighth of the chips of the first column
    whole, banded = (
        tuple(
            write_raster(Path(f"{name}_{date}.tif"), noise(low=low), mask=data)
            for date, low in (("b", 1), ("a", 3))
        )
        for name, data in (("whole", None), ("banded", mask))
    )
    strip = ReadOptions(bbox=(500_012, 4_999_960, 500_015, 4_999_990), bbox_crs="EPSG:32631")
    for overlap_px in (0, 8, 20):
        result = run_job(job_into(f"aoi{overlap_px}.gpkg", whole, read=strip, overlap_px=overlap_px), model)
        assert result.totals.analyzed == pytest.approx(3 * 30, rel=2e-3)
        result = run_job(job_into(f"all{overlap_px}.gpkg", banded, overlap_px=overlap_px), model)
        assert result.totals.analyzed == pytest.approx(156 * 96 / 4, rel=0.02)
