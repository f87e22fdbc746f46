"""Two rasters as one: the same pixels by windows, other grids by a warp, everything where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.geobox import LONLAT, GeoBox, Window, project
from deltavlm.geo.pair import RasterPair, open_pair
from deltavlm.geo.radiometry import Stretch
from tests.geo.reading import COLS, ROWS, SIZE, mosaic, opened, read_all
from tests.rasters import HALF_METRE, UTM, moved, noise, smooth, spoil, write_raster


def test_same_grid_gives_the_pixels_of_the_files(tmp_path: Path) -> None:
    first, second = noise(), noise()[::-1]
    write_raster(tmp_path / "b.tif", first, photometric="RGB")
    write_raster(tmp_path / "a.tif", second, photometric="RGB", tiled=True, blockxsize=64, blockysize=64)
    with opened(tmp_path / "b.tif", tmp_path / "a.tif") as reader:
        images = mosaic(reader, read_all(reader))
        assert reader.notes == ()
        assert reader.alignment.overlap_share == 1
        assert reader.gsd_m == pytest.approx(0.5, rel=0.001)
        assert reader.provenance()["alignment"]["same_grid"]  # type: ignore[index]
    assert (images[0] == first).all()
    assert (images[1] == second).all()
    assert images[2].all()


def test_an_offset_of_full_pixels_is_read_by_windows(tmp_path: Path, before: Path) -> None:
    after = write_raster(tmp_path / "after.tif", smooth()[:, 7:, 11:], transform=moved(11, 7))
    with opened(before, after) as reader:
        assert (reader.geobox.width, reader.geobox.height) == (COLS - 11, ROWS - 7)
        assert reader.geobox.transform == moved(11, 7)
        assert reader.alignment.overlap_share == pytest.approx((COLS - 11) * (ROWS - 7) / (COLS * ROWS))
        assert reader.notes[-1].startswith("after: covers")
        chips = read_all(reader)
    for pixels in chips:
        assert pixels.valid.all()
        assert (pixels.before == pixels.after).all()


def test_a_pair_opened_on_a_window_of_its_grid_has_the_same_pixels(tmp_path: Path, before: Path) -> None:
    """As the report opens it: with the grid that an output records."""
    after = write_raster(tmp_path / "after.tif", smooth()[:, 7:, 11:], transform=moved(11, 7))
    pair = RasterPair(str(before), str(after))
    window = Window(9, 5, 64, 40)
    rows, cols = slice(5, 45), slice(9, 73)
    with open_pair(pair) as reader:
        geobox = reader.geobox
        common = mosaic(reader, read_all(reader))
    with open_pair(pair, geobox=geobox.crop(window)) as reader:
        assert reader.geobox == geobox.crop(window)
        assert not any(view.dataset is not view.source.dataset for view in reader.views)  # none is warped
        cropped = mosaic(reader, read_all(reader))
    for images, expected in zip(cropped, common, strict=True):
        assert (images == expected[..., rows, cols]).all()


@pytest.mark.parametrize("window", [Window(-3, 0, 64, 64), Window(COLS - 20, 0, 64, 64)])
def test_outside_of_a_raster_an_explicit_grid_has_no_data(before: Path, window: Window) -> None:
    pair = RasterPair(str(before), str(before))
    with open_pair(pair) as reader:
        geobox = reader.geobox.crop(window)
    with open_pair(pair, geobox=geobox) as reader:
        valid = mosaic(reader, read_all(reader))[2]
    inside = [0 <= window.col_off + col < COLS for col in range(64)]
    assert (valid == inside).all()


def test_explicit_stretches_replace_the_scale(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(dtype="uint16", high=1000))
    pair = RasterPair(str(path), str(path))
    stretches = (Stretch((0.0,) * 3, (1000.0,) * 3), Stretch((0.0,) * 3, (2000.0,) * 3))
    with open_pair(pair, stretches=stretches) as reader:
        assert reader.stretches == stretches
        before, after, _ = mosaic(reader, read_all(reader))
    assert np.abs(before / 2.0 - after).max() <= 1
    with pytest.raises(ConfigError, match="values of uint16, which need a stretch"):
        open_pair(pair, stretches=(None, None)).__enter__()


def test_chip_footprints_lie_in_those_of_the_rasters(tmp_path: Path, before: Path) -> None:
    after = write_raster(tmp_path / "after.tif", smooth(), transform=moved(-30.4, 20.3))
    with opened(before, after) as reader:
        grounds = []
        for path in (before, after):
            with rasterio.open(path) as raster:
                grounds.append(shapely.box(*raster.bounds).buffer(0.5))  # a pixel
        for chip in reader.chips(SIZE):
            assert grounds[0].contains(chip.footprint)
            assert grounds[1].contains(chip.footprint)


def test_an_offset_of_half_a_pixel_is_warped_with_a_note(tmp_path: Path, before: Path) -> None:
    after = write_raster(tmp_path / "after.tif", smooth(), transform=moved(0.5, 0))
    with opened(before, after) as reader:
        assert any("warped" in note and "0.50 px off" in note for note in reader.notes)
    with pytest.raises(RasterError, match=r"after\.tif: not on the grid.*0\.50 px off.*`align='auto'`"):
        opened(before, after, align="strict").__enter__()


def test_a_warp_puts_ground_on_ground(tmp_path: Path, before: Path) -> None:
    """The same picture in another CRS and resolution shows the same colors at the same place."""
    after = tmp_path / "after.tif"
    with rasterio.open(before) as source:
        transform, width, height = rasterio.warp.calculate_default_transform(
            source.crs, "EPSG:3857", source.width, source.height, *source.bounds, resolution=0.3
        )
        pixels = np.zeros((3, height, width), np.uint8)
        rasterio.warp.reproject(
            rasterio.band(source, (1, 2, 3)), pixels, dst_transform=transform, dst_crs="EPSG:3857",
            resampling=rasterio.enums.Resampling.bilinear,
        )  # fmt: skip
    write_raster(after, pixels, crs="EPSG:3857", transform=transform, nodata=0)
    with opened(before, after) as reader:
        images = mosaic(reader, read_all(reader))
        assert any("EPSG:3857 -> EPSG:32631" in note for note in reader.notes)
    assert images[2].mean() > 0.95
    assert np.abs(images[0].astype(int) - images[1])[:, images[2]].max() <= 12


def test_pixels_of_very_different_size_are_noted(tmp_path: Path, before: Path) -> None:
    after = write_raster(tmp_path / "after.tif", smooth(3, 32, 32), transform=HALF_METRE * Affine.scale(5))
    with opened(before, after) as reader:
        assert any("5 times as long" in note for note in reader.notes)


def test_no_overlap_names_the_bounds(tmp_path: Path, before: Path) -> None:
    after = write_raster(tmp_path / "after.tif", smooth(), transform=moved(5000, 0))
    with pytest.raises(
        RasterError, match=r"do not overlap: before covers lon/lat \(3\.0000, .*\) to \(.*; give"
    ):
        opened(before, after).__enter__()


def test_rotated_rasters_are_read_and_placed_by_their_corners(tmp_path: Path) -> None:
    rotated = HALF_METRE * Affine.rotation(30)
    paths = [write_raster(tmp_path / f"{name}.tif", smooth(), transform=rotated) for name in "ab"]
    with opened(*paths) as reader:
        images = mosaic(reader, read_all(reader))
        corners = np.array(reader.geobox.footprint.exterior.coords)[:4]
    assert (images[0] == smooth()).all()
    expected = [rotated * corner for corner in ((0, 0), (0, ROWS), (COLS, ROWS), (COLS, 0))]
    assert corners == pytest.approx(np.array(expected))


def test_ground_control_points_georeference_a_raster(tmp_path: Path, before: Path) -> None:
    points = [
        GroundControlPoint(row, col, *(HALF_METRE * (col, row)))
        for row, col in ((0, 0), (0, COLS), (ROWS, 0), (ROWS, COLS))
    ]
    placed = write_raster(tmp_path / "gcps.tif", smooth(), transform=None, crs=UTM, gcps=points)
    with rasterio.open(placed) as raster:
        assert raster.crs is None
    for first, second in ((before, placed), (placed, before)):
        with opened(first, second) as reader:
            images = mosaic(reader, read_all(reader))
            assert any("4 ground control points" in note for note in reader.notes)
            assert (
                shapely.box(*HALF_METRE * (0, ROWS), *HALF_METRE * (COLS, 0))
                .buffer(1)
                .contains(reader.geobox.footprint)
            )
        assert images[2].mean() > 0.9
        assert np.abs(images[0].astype(int) - images[1])[:, images[2]].max() <= 12


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_lie_pixel_on_pixel(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}.{suffix}" for name in "ba"]
    for path in paths:
        Image.fromarray(smooth().transpose(1, 2, 0)).save(path)
    with opened(*paths, allow_no_crs=True) as reader:
        assert (reader.geobox.crs, reader.gsd_m) == (None, None)
        assert reader.chips(SIZE)[1, 2].footprint.bounds == (64, 32, 96, 64)
        images = mosaic(reader, read_all(reader))
        assert json.dumps(reader.provenance())
    assert np.abs(images[0].astype(int) - smooth()).max() <= (0 if suffix == "png" else 30)
    with pytest.raises(RasterError, match=r"b\.\w+ and .*a\.\w+: no CRS.*`allow_no_crs=True`"):
        opened(*paths).__enter__()
    for wish in ({"gsd_m": 1.0}, {"bbox": (0.0, 0.0, 1.0, 1.0)}):
        with pytest.raises(ConfigError, match="CRS"):
            opened(*paths, allow_no_crs=True, **wish).__enter__()


def test_pictures_of_different_size_are_refused(tmp_path: Path) -> None:
    first = write_raster(tmp_path / "b.tif", smooth(), crs=None, transform=None)
    second = write_raster(tmp_path / "a.tif", smooth(3, 50, 60), crs=None, transform=None)
    with pytest.raises(RasterError, match=r"160 x 96 px.*60 x 50 px.*resize"):
        opened(first, second, allow_no_crs=True).__enter__()


def test_a_single_crs(tmp_path: Path, before: Path) -> None:
    bare = write_raster(tmp_path / "bare.tif", smooth(), crs=None, transform=None)
    with pytest.raises(RasterError, match=r"bare\.tif: no CRS and no transform.*, but the other date"):
        opened(before, bare, allow_no_crs=True).__enter__()


def test_world_files_without_crs_compare_by_their_grids(tmp_path: Path) -> None:
    """Outputs are in pixels all the same; they were in the unknown units of the world file."""
    first = write_raster(tmp_path / "b.tif", smooth(), crs=None)
    inside = write_raster(tmp_path / "a.tif", smooth()[:, 10:, 10:], crs=None, transform=moved(10, 10))
    with opened(first, inside, allow_no_crs=True) as reader:
        assert (reader.geobox.width, reader.geobox.height) == (COLS - 10, ROWS - 10)
        assert reader.chips(SIZE)[0, 1].footprint.bounds == (10 + SIZE, 10, 10 + 2 * SIZE, 10 + SIZE)
    off = write_raster(tmp_path / "c.tif", smooth(), crs=None, transform=moved(0.5, 0))
    with pytest.raises(RasterError, match="no CRS to warp by"):
        opened(first, off, allow_no_crs=True).__enter__()


LOCAL = 'LOCAL_CS["a building site",UNIT["metre",1]]'


def test_bounds_in_a_local_crs_are_described_in_its_units(tmp_path: Path, before: Path) -> None:
    """Messages gave `lon/lat (inf, inf) to (inf, inf)`."""
    local = write_raster(tmp_path / "local.tif", smooth(), crs=LOCAL)
    bounds = r"x/y \(500000\.0000, 4999952\.0000\) to \("
    with pytest.raises(RasterError, match=rf"before covers lon/lat \(3\..*, after {bounds}"):
        opened(before, local).__enter__()
    with pytest.raises(RasterError, match=f"bbox 0,0,1,1: .*covers {bounds}"):
        opened(local, local, bbox=(0, 0, 1, 1)).__enter__()
    with opened(local, local) as reader:
        assert reader.gsd_m is None
        assert np.isinf(project(np.array([[500_000, 4_999_952.0]]), reader.geobox.crs, LONLAT)).all()
    assert GeoBox(1, 1, Affine.identity()).describe_bounds().startswith("x/y (0.0000, 0.0000)")
    assert project(np.array([[500_000, 0.0]]), CRS.from_string(UTM), LONLAT) == pytest.approx(
        np.array([[3, 0]])
    )
    assert project(np.empty((0, 2)), CRS.from_string(UTM), LONLAT).shape == (0, 2)


def test_a_wrong_crs(tmp_path: Path, before: Path) -> None:
    """Metres that were labelled degrees led to `no overlap` and infinite boxes, or to nonsense on the map."""
    wrong = write_raster(tmp_path / "wrong.tif", smooth(), crs="EPSG:4326")
    for pair in ((before, wrong), (wrong, wrong)):
        with pytest.raises(RasterError, match=r"wrong\.tif: its CRS EPSG:4326 looks wrong.*; assign"):
            opened(*pair).__enter__()
    world = write_raster(
        tmp_path / "world.tif",
        smooth(3, 73, 144),
        crs="EPSG:4326",
        transform=Affine(2.5, 0, 0, 0, -2.5, 91.25),
    )
    opened(world, world).__enter__()  # 0 to 360 degrees, and half a pixel over each pole


def test_outlines_need_no_pixels(tmp_path: Path) -> None:
    """A file whose pixels cannot be decoded still has a place; nothing is said of bands or brightness."""
    for dtype in ("uint8", "uint16"):
        path = write_undecodable(tmp_path / f"{dtype}.tif", dtype)
        with opened(path, path, outlines_only=True, gsd_m=1.0) as reader:
            chips = list(reader.chips(SIZE))
            assert len(chips) == 6
            assert [note.partition(" ")[0] for note in reader.notes] == ["resampled"]
            assert json.dumps(reader.provenance())
            with pytest.raises(ValueError, match="outlines"):
                reader.read(chips[0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("scale", ["auto", "0,100", "pct:2,98"])
def test_an_unreadable_raster_is_refused_on_opening(
    tmp_path: Path, dtype: str, scale: str, before: Path
) -> None:
    """With 16 bit the sample for the stretch failed; with 8 bit each chip, one by one."""
    path = write_undecodable(tmp_path / "after.tif", dtype)
    with pytest.raises(RasterError, match=r"after\.tif: a part of it cannot be read .*; copy or download"):
        opened(before, path, scale=scale).__enter__()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_partially_readable_raster_is_read(tmp_path: Path, dtype: str) -> None:
    """One bad block spoilt the sample of a small 16-bit raster, and with it the whole run."""
    path = write_undecodable(tmp_path / "after.tif", dtype, but_first=True)
    with opened(path, path) as reader:
        first, *others = reader.chips(SIZE)
        assert reader.read(first).valid.all()
        for chip in others:
            with pytest.raises(RasterError, match=chip.chip_id):
                reader.read(chip)


def write_undecodable(path: Path, dtype: str, *, but_first: bool = False) -> Path:
    """In blocks of a chip that hold zeros instead of deflated pixels."""
    layout = {"tiled": True, "blockxsize": SIZE, "blockysize": SIZE, "compress": "deflate"}
    write_raster(path, noise(dtype=dtype), interleave="pixel", photometric="RGB", **layout)
    blocks = [(row, col) for row in range(ROWS // SIZE) for col in range(COLS // SIZE)]
    spoil(path, blocks[but_first:])
    return path


@pytest.mark.parametrize("pixel", [0.0, 1e-300, 1e-12, float("nan"), float("inf")])
def test_a_degenerate_transform(tmp_path: Path, before: Path, pixel: float) -> None:
    """A broken header was an unexpected TransformNotInvertibleError or ZeroDivisionError."""
    after = write_raster(tmp_path / "after.tif", smooth())
    with rasterio.open(after, "r+") as raster:
        raster.transform = Affine(pixel, 0, 500_000, 0, -0.5, 5_000_000)
    for pair in ((before, after), (after, before), (after, after)):
        with pytest.raises(RasterError, match=r"after\.tif: .*(transform|CRS|is no|covers)"):
            opened(*pair).__enter__()
