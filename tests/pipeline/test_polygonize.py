"""Polygons from the stored probabilities of a run: those of the run, and with other options."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely

from deltavlm.errors import ConfigError, InputError
from deltavlm.geo.aoi import area_of_interest
from deltavlm.geo.features import Feature
from deltavlm.geo.pair import ReadOptions
from deltavlm.geo.polygonize import Region, fill_holes, merge_regions
from deltavlm.pipeline.changes import ChangeOptions
from deltavlm.pipeline.outputs_reader import read_output
from deltavlm.pipeline.polygonize import open_probability, polygonize, probability_path, run_area
from deltavlm.summaries.results import read_results
from deltavlm.summaries.totals import summarize_chips
from tests.conftest import Scene
from tests.jobs import job_into, run_job
from tests.pairs import features, layer
from tests.rasters import noise, read_pixels, write_raster
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")


def drawn(options: ChangeOptions | None = None, **fields: Any) -> list[Feature]:
    """Polygons of `p.tif` with the output `out.geojson`."""
    with open_probability(Path("p.tif")) as raster:
        output = read_output(Path("out.geojson"), ())
        return polygonize(raster, options or ChangeOptions(**fields), output=output)


def same(found: list[Feature], rows: list[dict[str, Any]]) -> bool:
    """True where polygons have the columns and the areas of these features."""
    reviewed = {"verdict": None, "note": None}
    return [{**each.properties, **reviewed} for each in found] == [row["properties"] for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        ChangeOptions(),
        ChangeOptions(threshold=0.3, min_area_m2=0, simplify_px=0, chips="all"),
        ChangeOptions(threshold=0.95),
    ],
)
def test_polygons_of_the_run(scene: Scene, bright: ScriptedModel, options: ChangeOptions) -> None:
    job = job_into("out.geojson", scene, polygons=True, probability="p.tif", changes=options)
    run_job(job, bright)
    rows = features("out.changes.geojson")
    assert rows
    assert same(drawn(options), rows)


def test_polygons_of_a_run_with_an_area_of_interest_and_gaps(bright: ScriptedModel) -> None:
    before, mask = noise(), np.ones((96, 160), bool)
    mask[44:46, :] = False  # through the house
    after = before.copy()
    after[:, 40:50, 70:80] = 255
    images = (
        write_raster(Path("b.tif"), before, mask=mask),
        write_raster(Path("a.tif"), after, mask=mask),
    )
    box = ReadOptions(bbox=(500_036.3, 4_999_970, 500_060, 5_000_000), bbox_crs="EPSG:32631")
    run_job(job_into("out.geojson", images, read=box, polygons=True, probability="p.tif"), bright)
    with open_probability(Path("p.tif")) as raster:
        run = run_area(raster)
        assert (run.bbox, run.bbox_crs, run.aoi) == (box.bbox, "EPSG:32631", None)
        area = area_of_interest(raster.geobox, run.bbox, run.bbox_crs, None)
        found = polygonize(raster, ChangeOptions(), output=read_output(Path("out.geojson"), ()), aoi=area)
    rows = features("out.changes.geojson")
    assert len(rows) == 2
    assert same(found, rows)


def test_a_raster_alone_has_the_polygons_of_all_chips(scene: Scene, bright: ScriptedModel) -> None:
    run_job(job_into("out.geojson", scene, polygons=True, probability="p.tif"), bright)
    with open_probability(Path("p.tif")) as raster:
        (polygon,) = polygonize(raster, ChangeOptions())
    assert polygon.properties["caption"] is None
    assert polygon.properties["chip_ids"] == []
    assert polygon.geometry.bounds == (500_035, 4_999_975, 500_040, 4_999_980)


def test_class_and_merge_and_holes(scene: Scene, bright: ScriptedModel) -> None:
    run_job(job_into("out.geojson", scene, polygons=True, probability="p.tif"), bright)
    assert drawn(classes=("road", "other")) == []
    assert len(drawn(classes=("building",), merge_m=5, fill_holes_m2=1)) == 1


def box_region(col: int, row: int, size: int = 10, value: int = 1, mean: float = 0.5) -> Region:
    return Region(value, shapely.box(col, row, col + size, row + size), size**2, mean, np.array([size**2.0]))


def test_regions_of_a_class_that_are_near_become_one() -> None:
    regions = [box_region(0, 0), box_region(14, 0, mean=1.0), box_region(14, 14, value=2), box_region(60, 0)]
    merged, outlines = merge_regions(regions, [region.polygon for region in regions], 4)
    assert [(region.value, region.pixels, region.mean) for region in merged] == [
        (1, 200, 0.75),
        (2, 100, 0.5),
        (1, 100, 0.5),
    ]
    assert outlines[0].symmetric_difference(shapely.box(0, 0, 24, 10)).area < 0.1
    assert merged[0].sums.tolist() == [200]
    apart, _ = merge_regions(regions, [region.polygon for region in regions], 3.9)
    assert [region.pixels for region in apart] == [100] * 4
    assert merge_regions([], [], 4) == ([], [])


def test_small_holes_are_filled() -> None:
    square, small, large = shapely.box(0, 0, 50, 50), shapely.box(5, 5, 8, 8), shapely.box(20, 20, 40, 40)
    polygon = square - small - large
    assert fill_holes(polygon, 9.5).equals(square - large)
    assert fill_holes(polygon, 9).equals(polygon)
    assert fill_holes(shapely.MultiPolygon([polygon, shapely.box(60, 0, 61, 1)]), 500).area == 2501


def test_metres_need_a_crs(scene: Scene, bright: ScriptedModel) -> None:
    images = tuple(
        write_raster(Path(f"{path.stem}.tif"), read_pixels(path), crs=None)
        for path in (scene.before, scene.after)
    )
    read = ReadOptions(allow_no_crs=True)
    run_job(job_into("out.geojson", images, read=read, polygons=True, probability="p.tif"), bright)
    assert same(drawn(), features("out.changes.geojson"))
    with pytest.raises(ConfigError, match="need a raster with a CRS"):
        drawn(merge_m=3)


def test_inputs_that_do_not_belong_together(scene: Scene, bright: ScriptedModel) -> None:
    run_job(job_into("out.geojson", scene, polygons=True, probability="p.tif"), bright)
    run_job(job_into("other.geojson", scene, chip_px=48), bright)
    other = read_output(Path("other.geojson"), ())
    with (
        open_probability(Path("p.tif")) as raster,
        pytest.raises(InputError, match=r"other.geojson: is not of the run that wrote p.tif"),
    ):
        polygonize(raster, ChangeOptions(), output=other)
    with pytest.raises(InputError, match="was written without a raster of probabilities"):
        probability_path(read_output(Path("other.geojson"), ()))
    output = read_output(Path("out.geojson"), ())
    assert probability_path(output) == Path("p.tif")
    for name in ("../p.tif", "a/../../p.tif", str(Path("p.tif").absolute())):
        escaping = replace(output, provenance={**output.provenance, "probability": name})
        with pytest.raises(InputError, match=rf"its raster is '{name}', outside of its folder"):
            probability_path(escaping)
    with pytest.raises(InputError, match="is no raster of probabilities"), open_probability(scene.before):
        pass


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"options": 1}', "NaN", '{"options": {"chip_px": "x"}}'])
def test_tags_that_say_nothing(scene: Scene, bright: ScriptedModel, text: str) -> None:
    run_job(job_into("out.gpkg", scene, polygons=True, probability="p.tif"), bright)
    with rasterio.open("p.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
        raster.update_tags(deltavlm=text)
    with pytest.raises(InputError, match="tags do not say how it was made"), open_probability(Path("p.tif")):
        pass


def test_the_raster_moves_with_its_output(scene: Scene, bright: ScriptedModel) -> None:
    Path("a").mkdir()
    Path("b").mkdir()
    run_job(job_into("a/out.gpkg", scene, polygons=True, probability="a/p.tif"), bright)
    for name in ("out.gpkg", "p.tif"):
        shutil.move(f"a/{name}", f"b/{name}")
    output = read_output(Path("b/out.gpkg"), ())
    assert probability_path(output) == Path("b/p.tif")
    with open_probability(Path("b/p.tif")) as raster:
        (found,) = polygonize(raster, ChangeOptions(), output=output)
        assert json.dumps(raster.provenance)
    (row,) = layer("b/out.gpkg", "changes")
    assert found.geometry.equals(row["geometry"])


def test_a_stored_threshold_leaves_out_polygons_of_unchanged_chips(
    scene: Scene, bright: ScriptedModel
) -> None:
    """As a run at that threshold does."""
    run_job(job_into("out.gpkg", scene, polygons=True), bright)
    assert len(read_output(Path("out.gpkg"), threshold=0.5).rows("changes")) == 1
    assert read_output(Path("out.gpkg"), threshold=0.95).rows("changes") == []
    summaries = [summarize_chips(read_results([Path("out.gpkg")], threshold=at)) for at in (0.5, 0.95)]
    changed_m2 = [summary.totals.changed for summary in summaries]
    assert changed_m2 == [pytest.approx(25), 0]
    run_job(job_into("all.gpkg", scene, polygons=True, changes=ChangeOptions(chips="all")), bright)
    assert len(read_output(Path("all.gpkg"), threshold=0.95).rows("changes")) == 1
