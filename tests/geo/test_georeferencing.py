"""What places a raster on the ground: longitudes, transforms, control points; and what is refused."""

from __future__ import annotations

import re
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC

from deltavlm.errors import RasterError
from deltavlm.geo import alignment
from deltavlm.geo.alignment import crop_window, locate
from deltavlm.geo.geobox import LONLAT, GeoBox, degrees_per_unit, project
from deltavlm.geo.source import ignore_missing_transforms
from tests.geo.reading import COLS, ROWS, mosaic, opened, read_all, read_pair
from tests.rasters import HALF_METRE, UTM, moved, noise, smooth, write_raster

STEP = 1e-5  # degrees: a metre
FIJI = "EPSG:32701"  # UTM zone 1 South, from 180 to 174 west


def degrees(west: float, north: float = -17.0) -> dict[str, Any]:
    """CRS and transform of a raster in longitude and latitude."""
    return {"crs": "EPSG:4326", "transform": Affine(STEP, 0, west, 0, -STEP, north)}


def utm_beside(lon: float) -> dict[str, Any]:
    """CRS and transform of a raster in UTM 1S, whose corner lies a little inside that of `degrees`."""
    ((x, y),) = project(np.array([[lon, -17.0]]), LONLAT, CRS.from_string(FIJI))
    return {"crs": FIJI, "transform": Affine(1, 0, x + 5, 0, -1, y - 5)}


@pytest.mark.parametrize("west", [-175.0, -180 - COLS / 2 * STEP], ids=["inside", "crossing"])
@pytest.mark.parametrize("turns", [(0, 0), (1, 0), (0, 1), (1, 1), (0, -1)])
@pytest.mark.parametrize("shift_px", [0.0, 0.3], ids=["window", "warp"])
def test_longitudes_may_be_counted_from_anywhere(
    tmp_path: Path, west: float, turns: tuple[int, int], shift_px: float
) -> None:
    """A pair whose dates count longitudes differently was announced as covered and read as empty."""
    pixels = smooth()
    expected = read_pair(
        write_raster(tmp_path / "b0.tif", pixels, **degrees(0)),
        write_raster(tmp_path / "a0.tif", pixels, **degrees(shift_px * STEP)),
    )
    before = write_raster(tmp_path / "b.tif", pixels, **degrees(west + 360 * turns[0]))
    after = write_raster(tmp_path / "a.tif", pixels, **degrees(west + 360 * turns[1] + shift_px * STEP))
    with opened(before, after) as reader:
        images = mosaic(reader, read_all(reader))
        assert reader.alignment.overlap_share > 0.99
    assert images[2][1:-1, 1:-1].all()
    for image, reference in zip(images[:2], expected[:2], strict=True):
        assert np.abs(image.astype(int) - reference)[:, images[2]].max() <= 1


@pytest.mark.parametrize("turn", [0, 360, -360])
@pytest.mark.parametrize("utm_first", [True, False])
def test_degrees_beyond_180_are_warped_to_and_from_utm(tmp_path: Path, turn: int, utm_first: bool) -> None:
    """Of an image that crosses 180 degrees, both sides are read."""
    west = -180 - 80 * STEP
    lonlat = write_raster(tmp_path / "degrees.tif", smooth(), **degrees(west + turn))
    utm = write_raster(tmp_path / "utm.tif", smooth()[:, 10:-10, 10:-10], **utm_beside(west))
    with opened(*((utm, lonlat) if utm_first else (lonlat, utm))) as reader:
        images = mosaic(reader, read_all(reader))
        share = reader.alignment.overlap_share
    assert images[2].mean() > 0.9
    assert share > (0.99 if utm_first else 0.5)


def box(west: float, north: float, east: float, south: float, step: float, crs: str = "EPSG:4326") -> GeoBox:
    width, height = round((east - west) / step), round((north - south) / step)
    return GeoBox(width, height, Affine(step, 0, west, 0, -step, north), CRS.from_string(crs))


MERCATOR = box(-20_037_508, 20_037_508, 20_037_508, -20_037_508, 78_271.5, "EPSG:3857")
ARCTIC = box(-1_280_000, 1_280_000, 1_280_000, -1_280_000, 10_000, "EPSG:3413")
WORLD, WORLD_FROM_0 = box(-180, 90, 180, -90, 1), box(0, 90, 360, -90, 1)


@pytest.mark.parametrize(
    ("raster", "grid", "share"),
    [
        (WORLD, WORLD_FROM_0, 1.0),
        (WORLD_FROM_0, WORLD, 1.0),
        (box(180, 90, 540, -90, 1), WORLD, 1.0),
        (box(170, 10, 190, -10, 0.1), WORLD, 400 / 64800),
        (box(170, 10, 190, -10, 0.1), WORLD_FROM_0, 400 / 64800),
        (box(170, 10, 190, -10, 0.1), MERCATOR, 0.0031),
        (WORLD_FROM_0, MERCATOR, 1.0),
        (WORLD, ARCTIC, 1.0),
        (WORLD_FROM_0, ARCTIC, 1.0),
        (box(200, 10, 202, 8, 0.01, "EPSG:4979"), box(-160, 10, -158, 8, 0.01), 1.0),
        (box(200, 10, 202, 8, 0.01, "EPSG:4326+5773"), box(-160, 10, -158, 8, 0.01), 1.0),
        (box(222.5, 11, 224.5, 9, 0.01, "EPSG:4807"), box(-157.3, 9.85, -156.0, 8.2, 0.01), 1.0),
    ],
)
def test_what_is_located_is_what_gdal_warps(
    raster: GeoBox, grid: GeoBox, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share that is announced is that of GDAL's warp; cells of a lattice may exceed it at the edge."""
    placement = locate(raster, grid)
    assert placement.covered.area / (grid.width * grid.height) == pytest.approx(share, rel=0.4, abs=1e-3)
    window = crop_window(placement.covered, grid)
    assert window is not None
    warped = alignment.warped_share(raster, grid.crop(window))
    announced = placement.covered.area / (window.width * window.height)
    assert warped == pytest.approx(announced, rel=0.15)


def test_scale_is_not_measured_where_a_raster_ends() -> None:
    """At the seam of a raster of the world, neighboring points are 360 pixels apart."""
    assert locate(WORLD, WORLD_FROM_0).scale == pytest.approx(1)


def test_what_gdal_does_not_warp_is_refused(
    tmp_path: Path, before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Had the coverage been reckoned wrongly, all chips would be empty, with exit code 0."""
    after = write_raster(tmp_path / "after.tif", smooth(), transform=moved(0.5, 0))
    monkeypatch.setattr(alignment, "warped_share", lambda *_: 0.1)
    with pytest.raises(RasterError, match=r"after\.tif: only 10\.0% of .*before\.tif can be read.*99\.7%"):
        opened(before, after).__enter__()


def test_grads_are_converted() -> None:
    assert degrees_per_unit(CRS.from_epsg(4807)) == pytest.approx(0.9)
    assert degrees_per_unit(CRS.from_epsg(4326)) == 1
    paris = box(-200, 100, 200, -100, 1, "EPSG:4807")
    assert not paris.is_off_globe()
    assert paris.to_pixels(np.array([[250.0, 0.0]])) == pytest.approx(np.array([[50.0, 100.0]]))


def add_rpcs(path: Path) -> None:
    line, sample, one = [0.0, 0, -1] + [0.0] * 17, [0.0, 1] + [0.0] * 18, [1.0] + [0.0] * 19
    rpcs = RPC(
        *(0.0, 100.0, 48.75, 0.01, one, line, 48.0, 48.0, 15.005, 0.01, one, sample, 80.0, 80.0),
        err_bias=None,
        err_rand=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as raster:
            raster.rpcs = rpcs


def test_a_crs_alone_places_nothing(tmp_path: Path, before: Path) -> None:
    """Rasters with a CRS and no transform were placed at 0, 0 without a word."""
    bare = [write_raster(tmp_path / f"{name}.tif", smooth(), transform=None) for name in "ba"]
    message = (
        r"b\.tif and .*a\.tif: no transform beside its CRS \(EPSG:32631\).*-a_ullr .*`allow_no_crs=True`"
    )
    with pytest.raises(RasterError, match=message):
        opened(*bare).__enter__()
    for pair in ((before, bare[1]), (bare[1], before)):
        with pytest.raises(
            RasterError, match=r"a\.tif: no transform.*, but the other date is placed; assign"
        ):
            opened(*pair, allow_no_crs=True).__enter__()
    with opened(*bare, allow_no_crs=True) as reader:
        assert reader.geobox == GeoBox(COLS, ROWS, Affine.identity())
        assert reader.provenance()["before"]["crs"] is None  # type: ignore[index]


@pytest.mark.parametrize("crs", [None, "EPSG:4326"])
def test_rpcs_are_no_transform(tmp_path: Path, before: Path, crs: str | None) -> None:
    """The advice to assign a CRS led to an image at 0, 0."""
    path = write_raster(tmp_path / "rpc.tif", smooth(), crs=crs, transform=None)
    add_rpcs(path)
    for pair in ((path, path), (before, path)):
        with pytest.raises(
            RasterError, match=r"rpc\.tif: placed only by .*RPCs.*; orthorectify it"
        ) as caught:
            opened(*pair).__enter__()
        assert "a_srs" not in str(caught.value)
    ortho = write_raster(tmp_path / "ortho.tif", smooth())
    add_rpcs(ortho)  # as a product keeps them that is orthorectified
    with opened(before, ortho) as reader:
        assert reader.alignment.overlap_share == 1


def test_geolocation_arrays_are_named(tmp_path: Path) -> None:
    """The advice to make a GeoTIFF of it kept the tags that were refused."""
    path = write_raster(tmp_path / "swath.tif", smooth(), crs=None, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as raster:
            raster.update_tags(ns="GEOLOCATION", X_DATASET="lon.tif", Y_DATASET="lat.tif")
    with pytest.raises(RasterError, match=r"swath\.tif: .*geolocation arrays.*gdalwarp -geoloc"):
        opened(path, path).__enter__()


WORLD_FILE = "0.5\n0\n0\n-0.5\n500000.25\n4999999.75\n"


@pytest.mark.parametrize("suffix", [".tfw", ".TFW", ".wld"])
def test_world_files_place_an_image_that_has_a_crs(tmp_path: Path, before: Path, suffix: str) -> None:
    path = write_raster(tmp_path / "after.tif", smooth(), transform=None)
    path.with_suffix(suffix).write_text(WORLD_FILE)
    with opened(before, path) as reader:
        assert reader.alignment.after_offset == (0, 0)
        assert reader.alignment.overlap_share == 1


@pytest.mark.parametrize(
    ("sidecar", "profile", "message"),
    [
        (
            "after.Tfw",
            {"transform": None},
            r"no transform .*; after\.Tfw .*; rename it to after\.tfw",
        ),
        ("after.tffw", {"transform": None}, r"GDAL does not read after\.tffw with such an image"),
        ("after.prj", {"crs": None}, r"no CRS.*; .*gdal_translate -a_srs after\.prj"),
        ("other.prj", {"crs": None}, r"no CRS.*; .*gdal_translate -a_srs EPSG"),
    ],
)
def test_files_beside_an_image_that_are_not_read_are_named(
    tmp_path: Path, sidecar: str, profile: dict[str, Any], message: str
) -> None:
    path = write_raster(tmp_path / "after.tif", smooth(), **profile)
    (tmp_path / sidecar).write_text(WORLD_FILE)
    with pytest.raises(RasterError, match=message):
        opened(path, path).__enter__()


CORNERS = ((0, 0), (0, COLS), (ROWS, 0), (ROWS, COLS))


def with_points(
    path: Path, pixels: np.ndarray, points: tuple[tuple[int, int], ...] = CORNERS, **profile: Any
) -> Path:
    """Raster with ground control points at (row, column)."""
    gcps = [GroundControlPoint(row, col, *(HALF_METRE * (col, row))) for row, col in points]
    return write_raster(path, pixels, gcps=gcps, **{"transform": None, "crs": UTM, **profile})


def test_codes_are_not_averaged_by_control_points(tmp_path: Path) -> None:
    """The values of a palette were blended to others, which are other colors."""
    codes = np.where(noise(1) > 128, 200, 10).astype(np.uint8)
    colors = {10: (255, 0, 0), 200: (0, 0, 255)} | dict.fromkeys(range(11, 200), (0, 255, 0))
    turned = HALF_METRE * Affine.rotation(20)
    gcps = [GroundControlPoint(row, col, *(turned * (col, row))) for row, col in CORNERS]
    path = write_raster(tmp_path / "codes.tif", codes, transform=None, gcps=gcps, palette=colors)
    before, _, valid = read_pair(path, path)
    assert {*map(tuple, before[:, valid].T.tolist())} == {(255, 0, 0), (0, 0, 255)}
    photo = with_points(tmp_path / "photo.tif", np.repeat(codes, 3, axis=0))
    values = read_pair(photo, photo, resampling="nearest")[0]
    assert {*np.unique(values).tolist()} <= {0, 10, 200}


@pytest.mark.parametrize(
    "points", [CORNERS[:1], CORNERS[:2], ((0, 0), (10, 10), (50, 50))], ids=["one", "two", "line"]
)
def test_control_points_that_place_nothing(tmp_path: Path, points: tuple[tuple[int, int], ...]) -> None:
    path = with_points(tmp_path / "after.tif", smooth(), points)
    with pytest.raises(RasterError, match=rf"its {len(points)} ground control point.*three"):
        opened(path, path).__enter__()


@pytest.mark.parametrize("error_px", [0, 40])
def test_control_points_that_do_not_fit_are_warned_about(tmp_path: Path, error_px: int) -> None:
    """One wrong point of 16 bends the whole image, without a word."""
    steps = [(row, col) for row in (0, 32, 64, ROWS) for col in (0, 50, 100, COLS)]
    gcps = [
        GroundControlPoint(row, col, *(HALF_METRE * (col + error_px * (index == 5), row)))
        for index, (row, col) in enumerate(steps)
    ]
    path = write_raster(tmp_path / "a.tif", smooth(), transform=None, gcps=gcps)
    with opened(path, path) as reader:
        warned = [warning for warning in reader.warnings if "root mean square" in warning]
    assert len(warned) == (error_px > 0)
    if warned:
        assert re.search(r"its 16 ground control points are \d\.\d px", warned[0])


def test_control_points_without_a_crs(tmp_path: Path) -> None:
    path = with_points(tmp_path / "after.tif", smooth(), crs=CRS())
    with pytest.raises(RasterError, match=r"no CRS of its 4 ground control points; .*gdalwarp -s_srs"):
        opened(path, path).__enter__()


def test_a_south_up_raster_is_read_as_it_lies(tmp_path: Path, before: Path) -> None:
    flipped = HALF_METRE * Affine.translation(0, ROWS) * Affine.scale(1, -1)
    after = write_raster(tmp_path / "after.tif", smooth()[:, ::-1], transform=flipped)
    for first, second in ((before, after), (after, before), (after, after)):
        with opened(first, second) as reader:
            images = mosaic(reader, read_all(reader))
            assert shapely.union_all([chip.footprint for chip in reader.chips(32)]).area == pytest.approx(
                COLS * ROWS / 4
            )
        assert images[2].all()
        assert (images[0] == images[1]).all()


@pytest.mark.parametrize(
    ("crs", "transform", "words"),
    [
        (UTM, Affine(1, 0, 0, 0, -1, 0), r"counts pixels from 0, 0 of its CRS \(EPSG:32631\)"),
        (UTM, Affine(1, 0, 0, 0, -1, ROWS), "counts pixels"),
        (UTM, Affine(0.5, 0, 5_000_000, 0, -0.5, 500_000), r"lon/lat \(.* is that its CRS"),
        ("EPSG:2193", Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), "New Zealand"),
        (UTM, HALF_METRE, None),
        ("EPSG:32601", Affine(10, 0, 165_000, 0, -10, 4_000), None),
        ("EPSG:3857", Affine(1, 0, 20_037_000, 0, -1, 0.5), None),
    ],
)
def test_a_place_that_is_hardly_right_is_warned_about(
    tmp_path: Path, crs: str, transform: Affine, words: str | None
) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(), crs=crs, transform=transform)
    with opened(path, path) as reader:
        doubts = [warning for warning in reader.warnings if "its CRS" in warning]
    assert len(doubts) == (words is not None)
    if words is not None:
        assert re.search(words, doubts[0])


def test_datums_that_are_metres_apart_are_told(tmp_path: Path) -> None:
    """Two dates in NAD83 and WGS 84 are one grid to PROJ, though they are known to 4 m only."""
    nad83, wgs84 = (
        write_raster(tmp_path / f"{epsg}.tif", smooth(), crs=f"EPSG:{epsg}") for epsg in (26914, 32614)
    )
    for pair in ((nad83, wgs84), (wgs84, nad83)):
        with opened(*pair) as reader:
            (note,) = [note for note in reader.notes if "datums" in note]
            assert re.search(r"North American Datum 1983.*known to 4 m, 8 px", note)
            assert note not in reader.warnings
    coarse = HALF_METRE * Affine.scale(20)
    wide = [
        write_raster(tmp_path / f"wide{epsg}.tif", smooth(), crs=f"EPSG:{epsg}", transform=coarse)
        for epsg in (26914, 32614)
    ]
    with opened(*wide) as reader:
        assert not any("datums" in note for note in reader.notes)


def test_datums_of_which_nothing_is_known_are_warned_about(tmp_path: Path) -> None:
    ellipsoid = "+proj=utm +zone=31 +ellps=GRS67 +units=m"
    path = write_raster(tmp_path / "a.tif", smooth(), crs=ellipsoid)
    other = write_raster(tmp_path / "b.tif", smooth(), crs=UTM)
    with opened(path, other) as reader:
        assert any("may be hundreds of metres apart" in warning for warning in reader.warnings)


@pytest.mark.parametrize("cols", [COLS - 0.5, COLS - 3])
def test_an_overlap_of_a_few_pixels_is_refused(tmp_path: Path, before: Path, cols: float) -> None:
    """Of neighboring tiles, one column of pixels was called a chip."""
    after = write_raster(tmp_path / "after.tif", smooth(), transform=moved(cols, 0))
    with pytest.raises(RasterError, match=r"have only [13] x 96 px in common, too little"):
        opened(before, after).__enter__()
    strip = write_raster(tmp_path / "strip.tif", smooth(3, 4, COLS))
    with opened(before, strip) as reader:
        assert reader.geobox.height == 4  # it is no higher itself


def test_the_warning_of_a_missing_transform_is_off_in_all_threads_and_on_again_after_them() -> None:
    filters, told = list(warnings.filters), list[str]()

    def enter(number: int) -> None:
        with ignore_missing_transforms():
            time.sleep(0.001 * (number % 3))
            try:
                warnings.warn("no transform", NotGeoreferencedWarning, stacklevel=1)
            except NotGeoreferencedWarning as warning:  # the tests turn warnings into errors
                told.append(str(warning))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(200)))
    assert told == []
    assert list(warnings.filters) == filters
