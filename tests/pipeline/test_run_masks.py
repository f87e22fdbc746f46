"""Run with polygons and rasters of change: their content, blending, files, resuming."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

from deltavlm.errors import ConfigError, OutputError
from deltavlm.files import lock
from deltavlm.geo.blend import blend_blocks
from deltavlm.geo.pair import ReadOptions
from deltavlm.geo.styles import CLASSES as CLASS_COLOURS
from deltavlm.model.folder import find_folder, read_config
from deltavlm.model.interface import Masks
from deltavlm.pipeline.changes import ChangeOptions
from deltavlm.pipeline.mask_codec import CLASSES, KINDS, class_of_kind
from deltavlm.tasks.questions import QuestionSpec
from tests.conftest import Scene
from tests.jobs import interrupted_after, job_into, run_job
from tests.pairs import features, layer, write_pairs
from tests.rasters import noise, read_pixels, write_raster
from tests.scripted_model import CHANGED, ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")

RASTERS: dict[str, Any] = {"mask": "m.tif", "probability": "p.tif"}


def write_dates(folder: Path, before: np.ndarray, after: np.ndarray, **profile: Any) -> tuple[Path, Path]:
    """Write both dates of a pair."""
    return (
        write_raster(folder / "b.tif", before, **profile),
        write_raster(folder / "a.tif", after, **profile),
    )


def test_a_white_house_becomes_a_polygon(scene: Scene, bright: ScriptedModel) -> None:
    result = run_job(job_into("out.gpkg", scene, polygons=True, **RASTERS), bright)
    assert result.polygons == 1
    assert result.files == {"mask": Path("m.tif"), "probability": Path("p.tif")}
    assert sorted(path.name for path in Path().iterdir()) == ["m.tif", "out.gpkg", "p.tif"]
    (row,) = layer("out.gpkg", "changes")
    assert (row["class"], row["kind"]) == ("building", "building_built")
    assert row["area_m2"] == pytest.approx(10 * 10 * 0.25)
    assert row["perimeter_m"] == pytest.approx(4 * 10 * 0.5)
    assert row["mean_score"] == pytest.approx(1)
    assert row["geometry"].bounds == (500_035, 4_999_975, 500_040, 4_999_980)
    assert (row["lon"], row["lat"]) == pytest.approx((3.0005, 45.154), abs=1e-3)
    assert "r00028_c00056" in row["chip_ids"]
    assert row["caption"] == "two houses were built beside the new road"
    expected = np.zeros((96, 160), np.uint8)
    expected[40:50, 70:80] = 1
    np.testing.assert_array_equal(read_pixels("m.tif")[0], expected)
    probabilities = np.zeros((len(CLASSES) + len(KINDS), 96, 160), np.uint8)
    probabilities[CLASSES.index("building")] = expected * 254
    probabilities[len(CLASSES) + KINDS.index("building_built")] = expected * 254
    np.testing.assert_array_equal(read_pixels("p.tif"), probabilities)


def test_rasters_are_cogs_on_the_grid_of_before(scene: Scene, bright: ScriptedModel) -> None:
    run_job(job_into("out.gpkg", scene, **RASTERS), bright)
    with rasterio.open(scene.before) as before:
        for name in ("m.tif", "p.tif"):
            with rasterio.open(name) as raster:
                assert (raster.crs, raster.transform, raster.shape) == (
                    before.crs,
                    before.transform,
                    before.shape,
                )
                assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert raster.profile["tiled"]
                assert raster.profile["compress"] == "deflate"
                assert raster.nodata == 255
                record = json.loads(raster.tags()["deltavlm"])
                assert record["changes"]["threshold"] == 0.5
                assert record["options"]["overlap_px"] == 4
    with rasterio.open("m.tif") as mask:
        colours = mask.colormap(1)
        assert {name: colours[CLASSES.index(name) + 1][:3] for name in CLASSES} == dict(CLASS_COLOURS)
        assert [mask.tags(1)[f"CATEGORY_{value}"] for value in range(4)] == [
            "none",
            "building",
            "road",
            "other",
        ]
    with rasterio.open("p.tif") as probability:
        assert probability.descriptions == ("building", "road", "other", *KINDS)
        assert probability.scales == (1 / 254,) * len(probability.descriptions)
    assert "changes" not in [name for name, _ in pyogrio.list_layers("out.gpkg")]


def test_pixels_that_were_not_analyzed_are_nodata(
    scene: Scene, bright: ScriptedModel, tmp_path: Path
) -> None:
    """Holes in one date, a chip without valid pixels, and the ground outside of a bounding box."""
    after = read_pixels(scene.after)
    after[:, 40:44, 0:160] = 0
    after[:, 0:32, 0:32] = 0
    pair = (scene.before, write_raster(tmp_path / "holes.tif", after, nodata=0))
    run_job(job_into("out.gpkg", pair, overlap_px=0, **RASTERS), bright)
    expected = (after == 0).any(axis=0)
    np.testing.assert_array_equal(read_pixels("m.tif")[0] == 255, expected)
    np.testing.assert_array_equal((read_pixels("p.tif") == 255).all(axis=0), expected)
    xmin = 500_000 + 64 * 0.5
    read = ReadOptions(bbox=(xmin + 1, 4_999_000, xmin + 2, 5_000_000), bbox_crs="EPSG:32631")
    run_job(job_into("out.gpkg", pair, overlap_px=0, read=read, overwrite=True, **RASTERS), bright)
    analyzed = read_pixels("m.tif")[0] != 255
    assert analyzed[:, 64:96].any()
    assert not analyzed[:, :64].any()
    assert not analyzed[:, 96:].any()


def test_blending_makes_masks_depend_less_on_the_chip_grid(
    model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scene and the same shifted by half a chip, with a head that is less sure towards the edge of a chip.

    Of the pixels that differ without an overlap, fewer than a third differ with one of a quarter of a chip.
    """
    edge = np.minimum(np.arange(32), np.arange(32)[::-1])
    confidence = np.minimum(1, (3 + np.minimum.outer(edge, edge)) / 8).astype(np.float32)

    def masks(encoded: Any) -> Masks:
        changed = np.stack([(before != after).any(axis=0) for before, after in encoded])
        probability = changed * confidence
        return Masks(("none", "building_built"), np.stack([1 - probability, probability], axis=1))

    monkeypatch.setattr(model, "masks", masks)
    before = noise(3, 176, 176)
    after = before.copy()
    for row, col in np.random.default_rng(0).integers(0, 160, (14, 2)):
        after[:, row : row + 14, col : col + 14] = 255

    def differing_share(overlap_px: int) -> float:
        masks = []
        for start in (0, 16):
            cropped = (date[:, start : start + 160, start : start + 160] for date in (before, after))
            pair = write_dates(tmp_path, *cropped)
            run_job(job_into("o.gpkg", pair, mask="m.tif", overlap_px=overlap_px, overwrite=True), model)
            masks.append(read_pixels("m.tif")[0])
        differing = masks[0][16:, 16:] != masks[1][:-16, :-16]
        return float(differing[32:-32, 32:-32].mean())

    without, blended = differing_share(0), differing_share(8)
    assert without > 0.005
    assert blended < without / 3


def square_in_each_chip(encoded: Any) -> Masks:
    """A square of 8 x 8 px in the middle of each chip, in which building and road together have 0.8."""
    shares = np.zeros((len(encoded), 3, 32, 32), np.float32)
    shares[:, 0] = 1
    shares[:, :, 12:20, 12:20] = np.array([0.2, 0.45, 0.35], np.float32)[:, None, None]
    return Masks(("none", "building_built", "road_built"), shares)


def drawn(scene: Scene, chips: Literal["changed", "all"], **fields: Any) -> list[dict[str, Any]]:
    model = ScriptedModel()
    model.masks = square_in_each_chip  # type: ignore[method-assign]
    options = ChangeOptions(chips=chips)
    path = f"{chips}.gpkg"
    run_job(job_into(path, scene, polygons=True, changes=options, overlap_px=0, **fields), model)
    return layer(path, "changes")


def test_polygons_are_drawn_where_the_chip_is_called_changed(scene: Scene) -> None:
    """They are some of all, outlines included, and none has a caption that denies change."""
    everything, changed = drawn(scene, "all"), drawn(scene, "changed")
    assert len(everything) == 15
    assert [row["chip_ids"] for row in changed] == [[scene.changed_chip]]
    (same,) = (row for row in everything if row["chip_ids"] == [scene.changed_chip])
    assert changed == [same | {"polygon_id": 1}]
    assert changed[0]["caption"] == CHANGED["caption"]
    assert {row["caption"] for row in everything} == {None, CHANGED["caption"]}


def test_the_threshold_of_scores_decides_which_polygons_are_drawn(scene: Scene) -> None:
    assert len(drawn(scene, "changed", threshold=0.1)) == 15
    assert drawn(scene, "changed", threshold=0.95, overwrite=True) == []


def test_the_score_of_a_polygon_is_that_of_the_threshold(scene: Scene) -> None:
    """It is of all classes together, as the threshold is: 0.45 of building and 0.35 of road."""
    (row,) = drawn(scene, "changed")
    assert row["class"] == "building"
    assert row["mean_score"] == pytest.approx(0.8, abs=0.01)


def test_the_mask_ends_at_the_area_of_interest(scene: Scene, bright: ScriptedModel) -> None:
    """The house, columns 70 to 79, ended at the chip; the probabilities still do, for `polygonize`."""
    box = ReadOptions(bbox=(500_000, 4_999_952, 500_037.6, 5_000_000), bbox_crs="EPSG:32631")
    run_job(job_into("out.gpkg", scene, read=box, overlap_px=0, polygons=True, **RASTERS), bright)
    (mask,), (building, *_) = read_pixels("m.tif"), read_pixels("p.tif")
    assert (mask[40:50, 70:75] == 1).all()
    assert (mask[:, 75:] == 255).all()
    assert (mask[:, :75] != 255).all()
    assert (building[41:49, 71:79] > 200).all()
    (row,) = layer("out.gpkg", "changes")
    assert row["geometry"].bounds[2] == pytest.approx(500_037.6)


def test_polygons_are_drawn_where_nobody_asked_whether_it_changed(scene: Scene) -> None:
    job = job_into("out.gpkg", scene, polygons=True, overlap_px=0)
    model = ScriptedModel()
    model.masks = square_in_each_chip  # type: ignore[method-assign]
    run_job(replace(job, questions=(QuestionSpec("caption", "caption"),)), model)
    assert len(layer("out.gpkg", "changes")) == 15


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_polygon_across_chips_belongs_to_the_one_with_its_largest_part(
    bright: ScriptedModel, tmp_path: Path, is_changed: bool
) -> None:
    """Columns 20 to 44 of a house: 12 in the left chip, 12 + 1 in the right one."""
    before = noise(3, 32, 64)
    after = before.copy()
    after[:, 10:20, 20:45] = 255
    dates = write_dates(tmp_path, before, after)
    bright.script = lambda before, after, question: (
        ("yes" if ((after == 255).all(axis=0).sum() > 125) == is_changed else "no")
        if question.yes_no
        else "there is no difference"
    )
    run_job(job_into("out.gpkg", dates, polygons=True, overlap_px=0), bright)
    assert len(layer("out.gpkg", "changes")) == is_changed


@pytest.mark.parametrize("suffix", [".geojson", ".fgb", ".parquet", ".geojsonl"])
def test_formats_of_one_layer_have_polygons_in_a_file_of_their_own(
    scene: Scene, bright: ScriptedModel, suffix: str
) -> None:
    result = run_job(job_into(f"out{suffix}", scene, polygons=True), bright)
    assert (result.polygons, result.files) == (1, {"polygons": Path(f"out.changes{suffix}")})
    expected = {f"out.changes{suffix}", f"out{suffix}", "out.changes.qml", "out.qml"}
    assert {path.name for path in Path().iterdir()} == expected
    if suffix == ".geojson":
        assert [row["properties"]["class"] for row in features("out.changes.geojson")] == ["building"]
        assert len(features("out.geojson")) == 24
    run_job(job_into(f"out{suffix}", scene, overwrite=True), bright)  # needs no polygons
    Path(f"out{suffix}").unlink()
    with pytest.raises(OutputError, match=rf"out\.changes\{suffix}: exists already"):
        run_job(job_into(f"out{suffix}", scene, polygons=True), bright)


def test_the_layer_changes_alone(scene: Scene, bright: ScriptedModel) -> None:
    run_job(job_into("out.geojson", scene, polygons=True, layer="changes"), bright)
    assert {path.name for path in Path().iterdir()} == {"out.geojson", "out.qml"}
    assert [row["properties"]["class"] for row in features("out.geojson")] == ["building"]
    with pytest.raises(ConfigError, match="without `polygons`"):
        job_into("other.geojson", scene, layer="changes")


def test_small_polygons_are_dropped_and_the_threshold_holds(bright: ScriptedModel, tmp_path: Path) -> None:
    before = noise(3, 32, 64)
    after = before.copy()
    after[:, 2:12, 2:12] = 255  # 25 m2
    after[:, 20:22, 20:22] = 255  # 1 m2
    after[:, 2:12, 40:50] ^= 1  # a road, to 0.6
    pair = write_dates(tmp_path, before, after)

    def polygons(**options: Any) -> list[tuple[str, float]]:
        changes = ChangeOptions(simplify_px=0, **options)
        job = job_into("out.gpkg", pair, overlap_px=0, overwrite=True, polygons=True, changes=changes)
        run_job(job, bright)
        return [(row["class"], row["area_m2"]) for row in layer("out.gpkg", "changes")]

    assert polygons() == [("building", 25), ("road", 25), ("building", 1)]
    assert polygons(min_area_m2=2) == [("building", 25), ("road", 25)]
    assert polygons(min_area_m2=26) == []
    assert polygons(threshold=0.7) == [("building", 25), ("building", 1)]


def with_squares(folder: Path, *corners: tuple[int, int], **profile: Any) -> tuple[Path, Path]:
    """Pair of 32 x 64 px with white squares of 10 px in `after`, by column and row of their upper left."""
    before = noise(3, 32, 64)
    after = before.copy()
    for col, row in corners:
        after[:, row : row + 10, col : col + 10] = 255
    return write_dates(folder, before, after, **profile)


@pytest.mark.parametrize(
    ("classes", "shares", "kind"),
    [
        (("building_built", "building_removed"), (0.3, 0.5), "building_removed"),
        (("building_built", "building_removed"), (0.4, 0.4), "building_changed"),
        (("building",), (0.8,), "building_changed"),  # a head that knows no direction
        (("road_built", "road_widened"), (0.3, 0.5), "road_changed"),
        (("trees_removed", "trees_planted"), (0.6, 0.1), "trees_removed"),
        (("trees_removed", "water_new"), (0.4, 0.4), "other"),
        (("ground",), (0.8,), "other"),
    ],
)
def test_kind_is_what_the_head_is_sure_of(
    model: ScriptedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    classes: tuple[str, ...],
    shares: tuple[float, ...],
    kind: str,
) -> None:
    """A kind needs most of the probability of its class; a direction is never invented."""

    def masks(encoded: Any) -> Masks:
        white = np.array([(after == 255).all(axis=0) for _, after in encoded])
        planes = [white * share for share in shares]
        return Masks(("none", *classes), np.stack([1 - sum(planes), *planes], axis=1).astype(np.float32))

    monkeypatch.setattr(model, "masks", masks)
    run_job(job_into("out.gpkg", with_squares(tmp_path, (5, 5)), polygons=True), model)
    (row,) = layer("out.gpkg", "changes")
    assert (row["kind"], row["class"]) == (kind, class_of_kind(kind))
    assert row["mean_score"] == pytest.approx(sum(shares), abs=0.01)


def test_polygons_end_at_the_area_of_interest(bright: ScriptedModel, tmp_path: Path) -> None:
    """One is cut, one is cut in two, and one that lies outside, in a chip that was read, is dropped."""
    pair = with_squares(tmp_path, (2, 2), (20, 2), (2, 20))
    left, top = 500_000, 5_000_000
    u_shape = shapely.box(left, top - 6, left + 12.5, top - 2) - shapely.box(
        left + 11, top - 5, left + 12, top
    )
    area = geopandas.GeoDataFrame(geometry=[u_shape], crs=32631).to_crs(4326)
    area.to_file(tmp_path / "aoi.geojson")
    run_job(job_into("out.gpkg", pair, read=ReadOptions(aoi=tmp_path / "aoi.geojson"), polygons=True), bright)
    rows = layer("out.gpkg", "changes")
    first = shapely.box(left + 1, top - 6, left + 6, top - 2)
    second = shapely.box(left + 10, top - 6, left + 15, top - 1).intersection(u_shape)
    for row, shape in zip(rows, [first, second], strict=True):
        assert row["geometry"].symmetric_difference(shape).area < 0.01
        assert row["area_m2"] == pytest.approx(shape.area, abs=0.01)
    box = ReadOptions(bbox=(left + 3, top - 4, left + 40, top), bbox_crs="EPSG:32631")
    run_job(job_into("out.gpkg", pair, read=box, polygons=True, overwrite=True), bright)
    assert [row["area_m2"] for row in layer("out.gpkg", "changes")] == [
        pytest.approx(3 * 3),
        pytest.approx(3 * 5),
    ]


def test_simplifying_leaves_pixels_without_data_out(
    bright: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notch of two pixels in a square was filled by its simplified outline."""
    before = noise(3, 64, 64)
    after = before.copy()
    after[:, 8:40, 8:40] = 255
    after[:, 30:40, 20:22] = 0
    after[:, 8:16, 38:40] = 0
    pair = write_dates(tmp_path, before, after, nodata=0)
    changes = ChangeOptions(simplify_px=6)
    for block_px in (1024, 16):
        monkeypatch.setattr(
            "deltavlm.pipeline.changes.blend_blocks", partial(blend_blocks, block_px=block_px)
        )
        job = job_into("out.gpkg", pair, polygons=True, changes=changes, overwrite=True)
        run_job(job, bright)
        (row,) = layer("out.gpkg", "changes")
        for left, top, right, bottom in ((20, 30, 22, 40), (38, 8, 40, 16)):
            gap = shapely.box(
                500_000 + left / 2, 5_000_000 - bottom / 2, 500_000 + right / 2, 5_000_000 - top / 2
            )
            assert row["geometry"].intersection(gap).area == pytest.approx(0, abs=1e-9)
        assert row["area_m2"] > 200


def test_without_a_crs_polygons_are_in_pixels(bright: ScriptedModel, tmp_path: Path) -> None:
    """Columns in metres and degrees are null, and rasters have no georeference either."""
    before = noise(3, 32, 64)
    after = before.copy()
    after[:, 2:12, 2:12] = 255
    pair = write_dates(tmp_path, before, after, crs=None, transform=None)
    read = ReadOptions(allow_no_crs=True)
    run_job(job_into("out.geojson", pair, read=read, polygons=True, layer="changes", **RASTERS), bright)
    (row,) = features("out.geojson")
    assert shapely.geometry.shape(row["geometry"]).bounds == (2, 2, 12, 12)
    assert [row["properties"][name] for name in ("area_m2", "perimeter_m", "lon", "lat")] == [None] * 4
    assert read_pixels("m.tif")[0].sum() == 100


def test_a_run_without_masks_is_not_resumed_with_masks(scene: Scene, model: ScriptedModel) -> None:
    with interrupted_after(2, model):
        run_job(job_into("out.gpkg", scene, overlap_px=0, batch_size=2), model)
    job = job_into("out.gpkg", scene, overlap_px=0, batch_size=2, polygons=True)
    with pytest.raises(OutputError, match=r"other settings \(options\.masks\)"):
        run_job(job, model)
    run_job(job_into("out.gpkg", scene, overlap_px=0, batch_size=2, polygons=True, resume=False), model)
    assert Path("out.gpkg").exists()


@pytest.mark.parametrize("damage", [b"", b"\0" * 99], ids=["truncated", "zeros"])
def test_chips_whose_masks_are_lost_are_asked_again(
    scene: Scene, bright: ScriptedModel, damage: bytes
) -> None:
    """As after a power failure: lines of the journal were written, the bytes that they point to were not."""
    job = job_into("out.gpkg", scene, batch_size=2, polygons=True, **RASTERS)
    run_job(job, bright)
    rasters = [Path(name).read_bytes() for name in ("m.tif", "p.tif")]
    for name in ("out.gpkg", "m.tif", "p.tif"):
        Path(name).unlink()
    with interrupted_after(6, bright):
        run_job(job, bright)
    masks = Path("out.gpkg.journal.masks")
    content = masks.read_bytes()
    masks.write_bytes(content[: len(content) // 2] + damage)
    notes: list[str] = []
    result = run_job(job, bright, notes)
    (resuming,) = [note for note in notes if note.startswith("resuming: ")]
    assert resuming.endswith(" of 24 chips done")
    assert 0 < int(resuming.split()[1]) < 12
    assert result.failed == 0
    assert [Path(name).read_bytes() for name in ("m.tif", "p.tif")] == rasters
    assert not masks.exists()


def test_failed_chips_are_nodata_until_they_are_tried_again(bright: ScriptedModel, tmp_path: Path) -> None:
    after = noise(3, 32, 96)
    after[:, :, 32:64] = 77
    pair = write_dates(tmp_path, noise(3, 32, 96), after)
    bright.poison = 77
    assert run_job(job_into("out.gpkg", pair, overlap_px=0, mask="m.tif"), bright).failed == 1
    expected = np.zeros((32, 96), np.uint8)
    expected[:, 32:64] = 255
    np.testing.assert_array_equal(read_pixels("m.tif")[0], expected)
    bright.poison = None
    retry = job_into("out.gpkg", pair, overlap_px=0, mask="m.tif", retry_failed=True)
    assert run_job(retry, bright).failed == 0
    assert bright.batches[-1] == 1
    expected[:, 32:64] = 2  # another colour in the whole chip, which is a road to this head
    np.testing.assert_array_equal(read_pixels("m.tif")[0], expected)
    assert sorted(path.name for path in Path().iterdir()) == ["m.tif", "out.gpkg"]


def test_identical_chips_share_their_mask(
    model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = np.full((3, 32, 32 * 6), 7, np.uint8)
    before[:, :, 160:] = noise(3, 32, 32)
    after = before.copy()
    after[:, :, :160] = 99
    sizes = []
    monkeypatch.setattr(
        "deltavlm.pipeline.journal.file.JournalFile.unlink",
        lambda file: sizes.append(Path("out.gpkg.journal.masks").stat().st_size),
    )
    run_job(job_into("out.gpkg", write_dates(tmp_path, before, after), overlap_px=0, mask="m.tif"), model)
    assert model.batches == [2]
    assert 0 < sizes[0] < 120  # two masks, not six
    mask = read_pixels("m.tif")[0]
    assert all((mask[:, 32 * chip : 32 * chip + 32] == mask[:, :32]).all() for chip in range(5))
    assert mask[:, :160].any()
    assert not mask[:, 160:].any()


def test_polygons_and_rasters_of_a_list_of_pairs(bright: ScriptedModel, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "in", 4, chips=2, broken=[1])
    result = run_job(job_into("all.gpkg", pairs, polygons=True), bright)
    assert [failure.pair.id for failure in result.failures] == ["p1"]
    rows = layer("all.gpkg", "changes")
    assert [(row["pair_id"], row["before_date"], row["after_date"]) for row in rows] == [
        ("p0", "2020", "2024-05-01"),
        ("p3", "2020", "2024-05-04"),
    ]
    assert [row["area_m2"] for row in rows] == [pytest.approx(36)] * 2
    result = run_job(job_into("each/", pairs, polygons=True, mask="masks"), bright)
    assert [failure.pair.id for failure in result.failures] == ["p1"]
    assert sorted(path.name for path in Path("masks").iterdir()) == [
        "p0.mask.tif",
        "p2.mask.tif",
        "p3.mask.tif",
    ]
    (row,) = layer("each/p3.gpkg", "changes")
    assert row["geometry"].equals(rows[1]["geometry"])
    assert row["pair_id"] == "p3"
    assert (read_pixels("masks/p3.mask.tif") == 1).sum() == 144
    assert not list(Path("each").glob("*.journal.*"))


def test_the_limit_holds_for_polygons_too(bright: ScriptedModel, tmp_path: Path) -> None:
    """Chips beyond the limit that an earlier run has answered are in neither layer."""
    pairs = write_pairs(tmp_path / "in", 4, chips=1)
    assert not run_job(job_into("all.geojson", pairs, polygons=True, limit=3), bright).failures
    assert [row["properties"]["pair_id"] for row in features("all.changes.geojson")] == ["p0"]


def test_an_interrupted_list_resumes_to_the_same_bytes(bright: ScriptedModel, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "in", 7, chips=2)
    job, uninterrupted = (
        job_into(name, pairs, polygons=True, batch_size=2) for name in ("out.geojson", "whole.geojson")
    )
    run_job(uninterrupted, bright)
    with interrupted_after(4, bright):
        run_job(job, bright)
    notes: list[str] = []
    run_job(job, bright, notes)
    assert "resuming: 8 chips done" in notes
    for suffix in (".geojson", ".changes.geojson"):
        assert Path(f"out{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()


def test_two_runs_do_not_write_one_raster(scene: Scene, bright: ScriptedModel) -> None:
    with lock(Path("m.tif")), pytest.raises(OutputError, match=r"m\.tif: another run is writing it"):
        run_job(job_into("out.gpkg", scene, mask="m.tif"), bright)
    assert bright.batches == []


def test_columns_of_changes_are_described(scene: Scene, bright: ScriptedModel) -> None:
    run_job(job_into("out.gpkg", scene, polygons=True), bright)
    with sqlite3.connect("out.gpkg") as database:
        descriptions = dict(
            database.execute(
                "SELECT column_name, description FROM gpkg_data_columns WHERE table_name = 'changes'"
            ).fetchall()
        )
    columns = [column for column in layer("out.gpkg", "changes")[0] if column != "geometry"]
    assert columns == [
        *("polygon_id", "class", "kind", "area_m2", "perimeter_m", "mean_score", "lon", "lat", "chip_ids"),
        *("caption", "before_date", "after_date", "verdict", "note"),
    ]
    assert set(descriptions) == set(columns)


def test_nano_predicts_the_kinds() -> None:
    dense = read_config(find_folder("nano")).dense
    assert dense is not None
    assert set(dense.classes) == {"none", *KINDS}


def test_a_resumed_list_ends_at_its_area_of_interest(bright: ScriptedModel, tmp_path: Path) -> None:
    """A pair that is complete is not opened again, yet its chips and polygons know the area."""
    pairs = write_pairs(tmp_path / "data", 3, chips=2)
    box = (500_000 + 6, 4_999_000, 500_000 + 2 * 32 + 6, 5_000_000)  # starts within the squares of the first
    read = ReadOptions(bbox=box, bbox_crs="EPSG:32631")
    options: dict[str, Any] = {"read": read, "overlap_px": 0, "batch_size": 1, "polygons": True}
    whole = run_job(job_into("whole.gpkg", pairs, **options), bright)
    with interrupted_after(3, bright):
        run_job(job_into("out.gpkg", pairs, **options), bright)
    resumed = run_job(job_into("out.gpkg", pairs, **options), bright)
    assert (resumed.totals, resumed.summary.resumed) == (whole.totals, 3)
    for name in ("chips", "changes"):
        rows = layer("out.gpkg", name)
        assert rows == layer("whole.gpkg", name)
    shares = {(row["pair_id"], row["chip_id"]): row["aoi_share"] for row in layer("out.gpkg", "chips")}
    assert shares["p0", "r00000_c00000"] == pytest.approx(1 - 6 / 16)
    assert shares["p0", "r00000_c00032"] == 1
    (changed,) = [row for row in layer("out.gpkg", "changes") if row["pair_id"] == "p0"]
    assert changed["geometry"].bounds[0] == pytest.approx(500_006)
