"""`analyze --polygons`, `--mask`, `--probability`: what changed, as ground."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from numpy.typing import NDArray

from deltavlm.files import lock
from deltavlm.geo.styles import CLASSES as CLASS_COLOURS
from deltavlm.model.interface import Masks
from deltavlm.pipeline.mask_codec import CLASSES
from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.pairs import features, layer, write_pairs
from tests.rasters import noise, write_raster
from tests.scripted_model import ScriptedModel
from tests.seven import seven_checkpoint, seven_with_head

SMALL = ("--chip-size", 32)
RASTERS = ("--mask", "m.tif", "--probability", "p.tif")


@pytest.fixture
def bright(model: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> ScriptedModel:
    """A head that sees a building where `after` is white, as finely as there are pixels, and is sure of it;
    what differs else is a road, half sure."""

    def masks(encoded: Any) -> Masks:
        shares = np.zeros((len(encoded), 3, 32, 32), np.float32)
        for share, (before, after) in zip(shares, encoded, strict=True):
            white = (after == 255).all(axis=0)
            share[1], share[2] = white, 0.6 * (before != after).any(axis=0) * ~white
            share[0] = 1 - share[1] - share[2]
        return Masks(("none", "building_built", "road_removed"), shares)

    monkeypatch.setattr(model, "masks", masks)
    return model


def pixels(path: str) -> NDArray[np.uint8]:
    with rasterio.open(path) as raster:
        found: NDArray[np.uint8] = raster.read()
        return found


def test_the_white_house_is_a_polygon(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--polygons", *RASTERS, "--json", *SMALL)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["polygons"] == 1
    assert summary["extras"] == {"mask": "m.tif", "probability": "p.tif"}
    assert "1 polygon of change; mask m.tif; probability p.tif" in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["m.tif", "out.gpkg", "p.tif"]
    (row,) = layer("out.gpkg", "changes")
    assert row["class"] == "building"
    assert row["area_m2"] == pytest.approx(10 * 10 * 0.25)
    assert row["perimeter_m"] == pytest.approx(4 * 10 * 0.5)
    assert row["mean_score"] == pytest.approx(1)
    assert row["geometry"].bounds == (500_035, 4_999_975, 500_040, 4_999_980)
    assert (row["lon"], row["lat"]) == pytest.approx((3.0005, 45.154), abs=1e-3)
    assert "r00028_c00056" in row["chip_ids"]
    assert row["caption"] == "two houses were built beside the new road"
    expected = np.zeros((96, 160), np.uint8)
    expected[40:50, 70:80] = 1
    np.testing.assert_array_equal(pixels("m.tif")[0], expected)
    np.testing.assert_array_equal(pixels("p.tif"), np.stack([expected * 254, 0 * expected, 0 * expected]))


def test_the_rasters_are_what_a_gis_wants(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    assert run("analyze", *scene.args, "-o", "out.gpkg", *RASTERS, *SMALL).exit_code == 0
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
                told = json.loads(raster.tags()["deltavlm"])
                assert told["changes"]["threshold"] == 0.5
                assert told["options"]["overlap_px"] == 4
    with rasterio.open("m.tif") as mask:
        shown = mask.colormap(1)
        assert {name: shown[CLASSES.index(name) + 1][:3] for name in CLASSES} == dict(CLASS_COLOURS)
        assert [mask.tags(1)[f"CATEGORY_{value}"] for value in range(4)] == [
            "none",
            "building",
            "road",
            "other",
        ]
    with rasterio.open("p.tif") as shares:
        assert shares.descriptions == ("building", "road", "other")
        assert shares.scales == (1 / 254,) * 3
    assert "changes" not in [name for name, _ in pyogrio.list_layers("out.gpkg")]


def test_what_was_not_looked_at_is_no_data(
    run: Run, scene: Scene, bright: ScriptedModel, tmp_path: Path
) -> None:
    """A hole in one date, a chip that is all hole, and ground outside of the box that was asked for."""
    with rasterio.open(scene.after) as raster:
        after = raster.read()
    after[:, 40:44, 0:160] = 0
    after[:, 0:32, 0:32] = 0
    write_raster(tmp_path / "holes.tif", after, nodata=0)
    args = ("analyze", scene.before, tmp_path / "holes.tif", "-o", "out.gpkg", *RASTERS, *SMALL)
    assert run(*args, "--overlap", 0).exit_code == 0
    expected = (after == 0).any(axis=0)
    np.testing.assert_array_equal(pixels("m.tif")[0] == 255, expected)
    np.testing.assert_array_equal((pixels("p.tif") == 255).all(axis=0), expected)
    left = 500_000 + 64 * 0.5
    box = f"{left + 1},4999000,{left + 2},5000000"
    args = (*args, "--overlap", 0, "--bbox", box, "--bbox-crs", "EPSG:32631", "--overwrite")
    assert run(*args).exit_code == 0
    seen = pixels("m.tif")[0] != 255
    assert seen[:, 64:96].any()
    assert not seen[:, :64].any()
    assert not seen[:, 96:].any()


def test_a_scene_and_the_same_shifted_by_half_a_chip(
    run: Run, model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is less sure towards a chip's edge: of the pixels that differ without an overlap, fewer
    than a third still do with one of a quarter of a chip."""
    edge = np.minimum(np.arange(32), np.arange(32)[::-1])
    doubt = np.minimum(1, (3 + np.minimum.outer(edge, edge)) / 8).astype(np.float32)

    def masks(encoded: Any) -> Masks:
        changed = np.stack([(before != after).any(axis=0) for before, after in encoded])
        shares = changed * doubt
        return Masks(("none", "building_built"), np.stack([1 - shares, shares], axis=1))

    monkeypatch.setattr(model, "masks", masks)
    before = noise(3, 176, 176)
    after = before.copy()
    for row, col in np.random.default_rng(0).integers(0, 160, (14, 2)):
        after[:, row : row + 14, col : col + 14] = 255

    def share_that_differs(overlap: int) -> float:
        found = []
        for name, start in (("whole", 0), ("shifted", 16)):
            for date, picture in (("before", before), ("after", after)):
                write_raster(tmp_path / f"{date}.tif", picture[:, start : start + 160, start : start + 160])
            args = (tmp_path / "before.tif", tmp_path / "after.tif", "-o", f"{name}.gpkg", "--overwrite")
            result = run("analyze", *args, "--mask", f"{name}.tif", "--overlap", overlap, *SMALL)
            assert result.exit_code == 0, result.stderr
            found.append(pixels(f"{name}.tif")[0])
        inner = found[0][16:, 16:] != found[1][:-16, :-16]
        return float(inner[32:-32, 32:-32].mean())

    without, with_it = share_that_differs(0), share_that_differs(8)
    assert without > 0.005
    assert with_it < without / 3


@pytest.mark.parametrize("suffix", [".geojson", ".fgb", ".parquet", ".geojsonl"])
def test_formats_of_one_layer_get_a_file_beside(
    run: Run, scene: Scene, bright: ScriptedModel, suffix: str
) -> None:
    result = run("analyze", *scene.args, "-o", f"out{suffix}", "--polygons", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert f"1 polygon of change; polygons out.changes{suffix}" in result.stderr
    written = {f"out.changes{suffix}", f"out{suffix}", "out.changes.qml", "out.qml"}
    assert {path.name for path in Path().iterdir()} == written
    if suffix == ".geojson":
        assert [one["properties"]["class"] for one in features("out.changes.geojson")] == ["building"]
        assert len(features("out.geojson")) == 24
    refused = run("analyze", *scene.args, "-o", f"out{suffix}", "--overwrite", *SMALL)
    assert refused.exit_code == 0  # without polygons the file of them is nobody's business
    Path(f"out{suffix}").unlink()
    refused = run("analyze", *scene.args, "-o", f"out{suffix}", "--polygons", *SMALL)
    assert (refused.exit_code, f"out.changes{suffix}: exists already" in one_line(refused)) == (2, True)


def test_the_layer_changes_alone(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    args = ("analyze", *scene.args, "--layer", "changes", *SMALL)
    assert run(*args, "--polygons", "-o", "out.geojson").exit_code == 0
    assert {path.name for path in Path().iterdir()} == {"out.geojson", "out.qml"}
    assert [one["properties"]["class"] for one in features("out.geojson")] == ["building"]
    refused = run(*args, "-o", "other.geojson")
    assert refused.exit_code == 2
    assert "without --polygons" in one_line(refused)


def test_small_polygons_are_dropped_and_the_threshold_holds(
    run: Run, bright: ScriptedModel, tmp_path: Path
) -> None:
    before = noise(3, 32, 64)
    after = before.copy()
    after[:, 2:12, 2:12] = 255  # 25 m2
    after[:, 20:22, 20:22] = 255  # 1 m2
    after[:, 2:12, 40:50] ^= 1  # a road, to 0.6
    for name, picture in (("b.tif", before), ("a.tif", after)):
        write_raster(tmp_path / name, picture)

    def found(*more: object) -> list[tuple[str, float]]:
        args = (tmp_path / "b.tif", tmp_path / "a.tif", "-o", "out.gpkg", "--overwrite", "--overlap", 0)
        result = run("analyze", *args, "--polygons", "--simplify", 0, *more, *SMALL)
        assert result.exit_code == 0, result.stderr
        return [(row["class"], row["area_m2"]) for row in layer("out.gpkg", "changes")]

    assert found() == [("building", 25), ("road", 25), ("building", 1)]
    assert found("--min-area", 2) == [("building", 25), ("road", 25)]
    assert found("--min-area", 26) == []
    assert found("--mask-threshold", 0.7) == [("building", 25), ("building", 1)]


def test_pictures_without_a_crs(run: Run, bright: ScriptedModel, scene: Scene, tmp_path: Path) -> None:
    """Polygons lie in pixels, and what is counted in metres is null; rasters have no place either."""
    before = noise(3, 32, 64)
    after = before.copy()
    after[:, 2:12, 2:12] = 255
    for name, picture in (("b.tif", before), ("a.tif", after)):
        write_raster(tmp_path / name, picture, crs=None, transform=None)
    args = (tmp_path / "b.tif", tmp_path / "a.tif", "-o", "out.geojson", "--layer", "changes", "--polygons")
    result = run("analyze", *args, *RASTERS, "--allow-no-crs", *SMALL)
    assert result.exit_code == 0, result.stderr
    (found,) = features("out.geojson")
    assert shapely.geometry.shape(found["geometry"]).bounds == (2, 2, 12, 12)
    assert [found["properties"][name] for name in ("area_m2", "perimeter_m", "lon", "lat")] == [None] * 4
    assert pixels("m.tif")[0].sum() == 100


def test_dates_of_one_pair(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    args = ("analyze", *scene.args, "-o", "out.gpkg", "--polygons", *SMALL)
    dates = ("--before-date", "2015", "--after-date", "2024-05-31")
    assert run(*args, *dates).exit_code == 0
    (row,) = layer("out.gpkg", "changes")
    assert (row["before_date"], row["after_date"]) == ("2015", "2024-05-31")
    refused = run(*args, "--overwrite", "--before-date", "yesterday")
    assert (refused.exit_code, "is not a date in ISO 8601" in one_line(refused)) == (2, True)


def test_a_run_is_not_gone_on_with_masks_that_it_did_not_keep(
    run: Run, scene: Scene, model: ScriptedModel
) -> None:
    encode = model.encode

    def failing(*pictures: Any) -> Any:
        if len(model.batches) == 2:
            raise KeyboardInterrupt
        return encode(*pictures)

    model.encode = failing  # type: ignore[method-assign]
    args = ("analyze", *scene.args, "-o", "out.gpkg", "--overlap", 0, "--batch-size", 2, *SMALL)
    assert run(*args).exit_code == 130
    model.encode = encode  # type: ignore[method-assign]
    refused = run(*args, "--polygons")
    assert refused.exit_code == 2
    assert "other settings (options.masks)" in refused.stderr.splitlines()[-1]
    assert run(*args, "--polygons", "--no-resume").exit_code == 0


def test_a_journal_whose_masks_are_lost_asks_again(
    run: Run, scene: Scene, bright: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power cut: the lines were on the disk, the bytes that they point to were not."""
    args = ("analyze", *scene.args, "-o", "out.gpkg", "--batch-size", 2, "--polygons", *RASTERS, *SMALL)
    assert run(*args).exit_code == 0
    whole = [Path(name).read_bytes() for name in ("m.tif", "p.tif")]
    encode = bright.encode

    def failing(*pictures: Any) -> Any:
        if len(bright.batches) == 6:
            raise KeyboardInterrupt
        return encode(*pictures)

    for damage in (b"", b"\0" * 99):
        for name in ("out.gpkg", "m.tif", "p.tif"):
            Path(name).unlink()
        bright.batches.clear()
        monkeypatch.setattr(bright, "encode", failing)
        assert run(*args).exit_code == 130
        monkeypatch.setattr(bright, "encode", encode)
        masks = Path("out.gpkg.journal.masks")
        kept = masks.read_bytes()
        masks.write_bytes(kept[: len(kept) // 2] + damage)
        result = run(*args)
        assert result.exit_code == 0, result.stderr
        known = int(result.stderr.split(" of 24 chips done")[0].rpartition("resuming: ")[2])
        assert 0 < known < 12
        assert [Path(name).read_bytes() for name in ("m.tif", "p.tif")] == whole
        assert not masks.exists()


def test_failed_chips_are_no_data_until_they_are_tried_again(
    run: Run, scene: Scene, bright: ScriptedModel, tmp_path: Path
) -> None:
    after = noise(3, 32, 96)
    after[:, :, 32:64] = 77
    write_raster(tmp_path / "a.tif", after)
    write_raster(tmp_path / "b.tif", noise(3, 32, 96))
    bright.poison = 77
    args = ("analyze", tmp_path / "b.tif", tmp_path / "a.tif", "-o", "out.gpkg", "--overlap", 0, *SMALL)
    assert run(*args, "--mask", "m.tif").exit_code == 3
    expected = np.zeros((32, 96), np.uint8)
    expected[:, 32:64] = 255
    np.testing.assert_array_equal(pixels("m.tif")[0], expected)
    bright.poison = None
    result = run(*args, "--mask", "m.tif", "--retry-failed")
    assert result.exit_code == 0, result.stderr
    assert bright.batches[-1] == 1
    expected[:, 32:64] = 2  # another colour all over, which is a road to this head
    np.testing.assert_array_equal(pixels("m.tif")[0], expected)
    assert sorted(path.name for path in Path().iterdir()) == ["m.tif", "out.gpkg"]


def test_pictures_that_come_again_share_their_mask(
    run: Run, model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = np.full((3, 32, 32 * 6), 7, np.uint8)
    before[:, :, 160:] = noise(3, 32, 32)
    after = before.copy()
    after[:, :, :160] = 99
    for name, picture in (("b.tif", before), ("a.tif", after)):
        write_raster(tmp_path / name, picture)
    sizes = []
    monkeypatch.setattr(
        "deltavlm.pipeline.journal_file.JournalFile.unlink",
        lambda file: sizes.append(Path("out.gpkg.journal.masks").stat().st_size),
    )
    args = (tmp_path / "b.tif", tmp_path / "a.tif", "-o", "out.gpkg", "--overlap", 0, "--mask", "m.tif")
    assert run("analyze", *args, *SMALL).exit_code == 0
    assert model.batches == [2]
    assert 0 < sizes[0] < 120  # two masks, not six
    mask = pixels("m.tif")[0]
    assert all((mask[:, 32 * chip : 32 * chip + 32] == mask[:, :32]).all() for chip in range(5))
    assert mask[:, :160].any()
    assert not mask[:, 160:].any()


def test_many_pairs(run: Run, bright: ScriptedModel, tmp_path: Path) -> None:
    table = write_pairs(tmp_path / "in", 4, chips=2, broken=[1])
    result = run("analyze", "--pairs", table, "-o", "all.gpkg", "--polygons", *SMALL)
    assert result.exit_code == 3, result.stderr
    rows = layer("all.gpkg", "changes")
    assert [(row["pair_id"], row["before_date"], row["after_date"]) for row in rows] == [
        ("p0", "2020", "2024-05-01"),
        ("p3", "2020", "2024-05-04"),
    ]
    assert [row["area_m2"] for row in rows] == [pytest.approx(36)] * 2
    result = run("analyze", "--pairs", table, "-o", "each/", "--polygons", "--mask", "masks/", *SMALL)
    assert result.exit_code == 3, result.stderr
    assert sorted(path.name for path in Path("masks").iterdir()) == [
        "p0.mask.tif",
        "p2.mask.tif",
        "p3.mask.tif",
    ]
    (row,) = layer("each/p3.gpkg", "changes")
    assert row["geometry"].equals(rows[1]["geometry"])
    assert row["pair_id"] == "p3"
    assert (pixels("masks/p3.mask.tif") == 1).sum() == 144
    assert not list(Path("each").glob("*.journal.*"))


def test_the_limit_holds(run: Run, bright: ScriptedModel, tmp_path: Path) -> None:
    """What an earlier run had answered beyond it is left out of polygons as of chips."""
    table = write_pairs(tmp_path / "in", 4, chips=1)
    args = ("analyze", "--pairs", table, "-o", "all.geojson", "--polygons", *SMALL)
    assert run(*args, "--limit", 3).exit_code == 0
    assert [one["properties"]["pair_id"] for one in features("all.changes.geojson")] == ["p0"]


def test_pairs_that_are_killed_and_gone_on_with(
    run: Run, bright: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_pairs(tmp_path / "in", 7, chips=2)
    args = ("analyze", "--pairs", table, "--polygons", "--batch-size", 2, *SMALL)
    assert run(*args, "-o", "whole.geojson").exit_code == 0
    encode, stop = bright.encode, len(bright.batches) + 4

    def failing(*pictures: Any) -> Any:
        if len(bright.batches) == stop:
            raise KeyboardInterrupt
        return encode(*pictures)

    monkeypatch.setattr(bright, "encode", failing)
    assert run(*args, "-o", "out.geojson").exit_code == 130
    monkeypatch.setattr(bright, "encode", encode)
    result = run(*args, "-o", "out.geojson")
    assert result.exit_code == 0, result.stderr
    assert "resuming: 8 chips done" in result.stderr
    for name in ("out.geojson", "out.changes.geojson"):
        whole = Path(name.replace("out", "whole"))
        assert Path(name).read_bytes() == whole.read_bytes()


def test_the_plan_names_them(run: Run, scene: Scene, tmp_path: Path) -> None:
    args = ("analyze", *scene.args, "-o", "out.geojson", "--polygons", "--mask", "m.tif", "-n", *SMALL)
    said = run(*args).stdout.splitlines()
    assert "mask       m.tif" in said
    assert "polygons   out.changes.geojson" in said
    assert any("overlap 4 px" in line for line in said)
    assert json.loads(run(*args, "--json").stdout)["extras"] == {
        "mask": "m.tif",
        "polygons": "out.changes.geojson",
    }
    table = write_pairs(tmp_path / "in", 2)
    said = run("analyze", "--pairs", table, "-o", "each/", "--mask", "masks/", "-n", *SMALL).stdout
    assert "mask       masks" in said.splitlines()
    assert not list(Path().iterdir())


def test_a_config_file_and_the_metrics(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    Path("conf.toml").write_text('[analyze]\npolygons = true\nmask = "m.tif"\nmin-area = 2\n')
    result = run(
        "analyze", *scene.args, "-o", "out.gpkg", "--config", "conf.toml", "--metrics", "m.prom", *SMALL
    )
    assert result.exit_code == 0, result.stderr
    assert Path("m.tif").exists()
    told = Path("m.prom").read_text()
    assert any(
        line.startswith("deltavlm_polygons_total{") and line.endswith(" 1") for line in told.split("\n")
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--mask", "m.png"), "m.png: suffix '.png' is not one of .tif, .tiff"),
        (("--mask", "nowhere/m.tif"), "there is no folder"),
        (("--mask", "."), ".: is a folder; name a file in it"),
        (("-o", "."), ".: is a folder; name a file in it"),
        (("--mask", "one.tif", "--probability", "./one.tif"), "are one file; name two"),
        (("--min-area", 3), "is for --polygons"),
        (("--simplify", 3), "is for --polygons"),
        (("--polygons", "-o", "-"), "they need a file"),
        (("--polygons", "--mask-threshold", 0), "0.01"),
        (("--polygons", "--min-area", -1), "-1"),
        (("--polygons", "--min-area", "nan"), "not 'nan'"),
        (("--polygons", "--simplify", "inf"), "inf is not a finite number"),
        (("--mask", "/proc/m.tif"), "cannot write in /proc"),
        (("--mask", f"{'m' * 300}.tif"), "choose another name"),
        (("--mask", "there.tif"), "there.tif: exists already; add --overwrite"),
    ],
)
def test_what_cannot_be(run: Run, scene: Scene, args: tuple[object, ...], words: str) -> None:
    Path("there.tif").write_bytes(b"mine")
    named = () if "-o" in args else ("-o", "out.gpkg")
    result = run("analyze", *scene.args, *named, *args, *SMALL)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert [path.name for path in Path().iterdir()] == ["there.tif"]
    assert Path("there.tif").read_bytes() == b"mine"


def test_an_image_is_never_overwritten(run: Run, scene: Scene) -> None:
    content = scene.before.read_bytes()
    result = run("analyze", *scene.args, "-o", "out.gpkg", "--mask", scene.before, "--overwrite", *SMALL)
    assert (result.exit_code, "is one of the images" in one_line(result)) == (2, True)
    assert scene.before.read_bytes() == content


def test_two_runs_do_not_write_one_raster(run: Run, scene: Scene) -> None:
    with lock(Path("m.tif")):
        result = run("analyze", *scene.args, "-o", "out.gpkg", "--mask", "m.tif", *SMALL)
    assert result.exit_code == 2
    assert "m.tif: another run is writing it" in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-o", "all.gpkg", "--mask", "m.tif"), "many pairs cannot be one raster"),
        (("-o", "each/", "--probability", "p.tif"), "name a folder, such as --probability rasters/"),
        (("-o", "all.gpkg", "--polygons", "--after-date", "2024"), "a list has its own"),
    ],
)
def test_what_cannot_be_of_many_pairs(run: Run, tmp_path: Path, args: tuple[object, ...], words: str) -> None:
    result = run("analyze", "--pairs", write_pairs(tmp_path / "in", 2), *args, *SMALL)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert not list(Path().iterdir())


def test_a_model_without_a_mask_head(run: Run, scene: Scene, tmp_path: Path) -> None:
    folder = seven_checkpoint(tmp_path / "seven")
    args = ("analyze", *scene.args, "-o", "out.gpkg", "--model", folder, "--polygons", *SMALL)
    for more in ((), ("-n",)):
        result = run(*args, *more)
        assert result.exit_code == 2
        assert "model seven has no mask head" in one_line(result)
        assert "docs/polygons.md" in result.stderr
    seven_with_head(tmp_path / "head")
    assert run(*args[:-4], tmp_path / "head", "--polygons", "-n", *SMALL).exit_code == 0


def test_columns_say_what_they_mean(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    assert run("analyze", *scene.args, "-o", "out.gpkg", "--polygons", *SMALL).exit_code == 0
    with sqlite3.connect("out.gpkg") as database:
        told = dict(
            database.execute(
                "SELECT column_name, description FROM gpkg_data_columns WHERE table_name = 'changes'"
            ).fetchall()
        )
    columns = [column for column in layer("out.gpkg", "changes")[0] if column != "geometry"]
    assert columns == [
        *("class", "area_m2", "perimeter_m", "mean_score", "lon", "lat", "chip_ids", "caption"),
        *("before_date", "after_date"),
    ]
    assert set(told) == set(columns)
