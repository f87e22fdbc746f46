"""Shifts between the dates: measured in windows and for pairs, on drawn scenes whose shift is known."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rasterio.warp import Resampling, calculate_default_transform, reproject

from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.geo.geobox import Window
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions, open_pair
from deltavlm.geo.registration import (
    Registration,
    Shift,
    consensus,
    lattice_windows,
    measure_shift,
    shift_caveat,
)
from deltavlm.scoring.synthetic import STANDARD_QUESTIONS
from tests.rasters import HALF_METRE, UTM, write_raster

Picture = NDArray[np.uint8]  # (3, rows, cols)
SIDE, MARGIN = 256, 24
YES_NO = STANDARD_QUESTIONS[1]
ALL = np.ones((SIDE, SIDE), bool)


@cache
def ground(seed: int = 7) -> Picture:
    """A drawn neighborhood of 576 x 576 px at one date."""
    return np.ascontiguousarray(_scene(seed).before.transpose(2, 0, 1))


@cache
def later(seed: int = 7) -> Picture:
    """The same at the other date: other light, other noise, and some houses built or gone."""
    return np.ascontiguousarray(_scene(seed).after.transpose(2, 0, 1))


@cache
def _scene(seed: int) -> Any:
    return make_scene(seed, 576, 576, SceneOptions(misregistration_px=0.0))


def moved(picture: Picture, dx: float, dy: float) -> Picture:
    """The picture with its content dx to the right and dy down, by the shift theorem."""
    rows, cols = (np.fft.fftfreq(side) for side in picture.shape[1:])
    phase = np.exp(-2j * np.pi * (cols * dx + rows[:, None] * dy))
    shifted = np.fft.ifft2(np.fft.fft2(picture) * phase).real
    return np.clip(shifted, 0, 255).round().astype(np.uint8)


def window(picture: Picture, row: int = MARGIN, col: int = MARGIN) -> Picture:
    return picture[:, row : row + SIDE, col : col + SIDE]


def error_px(shift: Shift | None, dx: float, dy: float) -> float:
    assert shift is not None
    return float(np.hypot(shift.dx - dx, shift.dy - dy))


def noisy(picture: Picture) -> Picture:
    grain = np.random.default_rng(1).normal(0, 12, picture.shape)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def blurred(picture: Picture) -> Picture:
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1.5))).transpose(2, 0, 1)


def compressed(picture: Picture) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream)).transpose(2, 0, 1)


def built_up(picture: Picture) -> Picture:
    """A fifth of the picture under new roofs."""
    picture = picture.copy()
    for row in range(10, SIDE, 50):
        for col in range(10, SIDE, 50):
            picture[:, row : row + 22, col : col + 22] = [[[190]], [[80]], [[60]]]
    return picture


DISTORTIONS: dict[str, Callable[[Picture], Picture]] = {
    "none": lambda picture: picture,
    "darker": lambda picture: (picture * 0.4 + 20).astype(np.uint8),
    "inverted": lambda picture: 255 - picture,
    "noise": noisy,
    "blur": blurred,
    "JPEG": compressed,
    "built up": built_up,
}


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize(("dx", "dy"), [(0.0, 0.0), (2.5, -1.25), (-7.3, 6.6), (20.4, 11.8)])
def test_a_known_shift_is_measured_within_0_3_px(name: str, dx: float, dy: float) -> None:
    after = DISTORTIONS[name](window(moved(ground(), dx, dy)))
    assert error_px(measure_shift(window(ground()), after, ALL), dx, dy) < 0.3


@pytest.mark.parametrize("seed", [7, 8])
def test_windows_of_another_date_agree_within_0_3_px(seed: int) -> None:
    """Light, noise and houses differ, and shadows lie elsewhere; a window may be off by half a pixel."""
    before, after = ground(seed), moved(later(seed), 3.4, -2.2)
    corners = [(row, col) for row in (MARGIN, 296) for col in (MARGIN, 296)]
    shifts = [measure_shift(window(before, *corner), window(after, *corner), ALL) for corner in corners]
    registration = Registration.of([shift for shift in shifts if shift is not None])
    assert registration.agreeing >= 3
    assert error_px(registration.shift, 3.4, -2.2) < 0.3


def test_signs_and_axes() -> None:
    """What `before` shows at (col, row), `after` shows 3 columns to the right and 2 rows down."""
    before = window(ground())
    after = window(ground(), MARGIN - 2, MARGIN - 3)
    assert (before[:, 100, 100] == after[:, 102, 103]).all()
    shift, back = measure_shift(before, after, ALL), measure_shift(after, before, ALL)
    assert shift == Shift(3.0, 2.0)
    assert back == Shift(-3.0, -2.0)
    assert shift.length == pytest.approx(13**0.5)


def test_nodata_is_no_texture() -> None:
    """The edge of a collar lies at the same pixels of both dates, and would be a peak at no shift."""
    valid = ALL.copy()
    valid[:, :70] = valid[:40] = False
    before, after = window(ground()).copy(), window(moved(later(), -4.5, 2.0)).copy()
    before[:, ~valid] = after[:, ~valid] = 255
    assert error_px(measure_shift(before, after, valid), -4.5, 2.0) < 0.3
    assert measure_shift(window(ground(8)), after, valid) is None


def test_what_has_no_clear_peak_is_not_measured() -> None:
    before, flat = window(ground()), np.full((3, SIDE, SIDE), 90, np.uint8)
    assert measure_shift(flat, flat, ALL) is None
    assert measure_shift(noisy(flat), flat, ALL) is None
    assert measure_shift(before, window(ground(8)), ALL) is None  # other ground
    assert measure_shift(before, window(moved(ground(), 45, 0)), ALL) is None  # beyond the search limit
    assert measure_shift(before[:, :31], before[:, :31], ALL[:31]) is None  # too small
    mostly_empty = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) > 0.51 * SIDE * SIDE
    assert measure_shift(before, before, mostly_empty) is None


def test_of_a_large_window_the_centre_counts_and_small_ones_are_measured() -> None:
    after = moved(ground(), 5.0, 1.0)
    large = np.ones(ground().shape[1:], bool)
    assert error_px(measure_shift(ground(), after, large), 5.0, 1.0) < 0.1
    small = (slice(None), slice(100, 148), slice(100, 164))
    assert error_px(measure_shift(ground()[small], after[small], large[100:148, 100:164]), 5.0, 1.0) < 0.3


def test_the_shift_of_a_pair_is_that_of_most_windows() -> None:
    right = [Shift(3.0, -1.0), Shift(3.2, -1.1), Shift(2.9, -0.8)]
    wrong = [Shift(-20.0, 5.0), Shift(0.0, 11.0)]
    assert consensus([*wrong, *right]) == (Shift(3.0, -1.0), 3)
    assert consensus([wrong[0], right[0]]) == (None, 1)  # which of them?
    assert consensus([right[0]]) == (right[0], 1)
    assert consensus([]) == (None, 0)
    clear = Shift(3.5, -1.0, peak=40.0)
    assert consensus([*right, clear]) == (Shift(3.5, -1.0), 4)  # it weighs more than the three others


@pytest.mark.parametrize(("width", "height", "count"), [(100, 80, 1), (300, 256, 2), (5000, 4000, 16)])
def test_windows_of_a_pair_lie_within_it(width: int, height: int, count: int) -> None:
    area = Window(11, 7, width, height)
    windows = [*lattice_windows(area)]
    assert len({*windows}) == len(windows) == count
    for col, row, cols, rows in windows:
        assert (cols, rows) == (min(width, 256), min(height, 256))
        assert 11 <= col <= col + cols <= 11 + width
        assert 7 <= row <= row + rows <= 7 + height


# pairs of files


def opened(before: Path, after: Path, **options: Any) -> Any:
    return open_pair(RasterPair(str(before), str(after)), ReadOptions(**options))


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "before.tif", ground(), photometric="RGB")


def write_after(tmp_path: Path, pixels: Picture, **profile: Any) -> Path:
    return write_raster(tmp_path / "after.tif", pixels, **({"photometric": "RGB"} | profile))


def test_a_pair_says_how_far_off_it_is(tmp_path: Path, before: Path) -> None:
    after = write_after(tmp_path, moved(ground(), 3.0, -4.0))
    with opened(before, after) as reader:
        assert error_px(reader.registration.shift, 3.0, -4.0) < 0.3
        assert [note for note in reader.notes if "off before" in note] == list(reader.warnings)
        (warning,) = reader.warnings
        record: Any = reader.provenance()["registration"]
    assert warning.startswith("after: lies 5.0 px (2.5 m) off before")
    assert record["shift_px"] == pytest.approx(5.0, abs=0.2)
    assert record["shift_m"] == pytest.approx(2.5, abs=0.1)
    assert (record["dx_m"], record["dy_m"]) == pytest.approx((1.5, -2.0), abs=0.1)
    assert 3 <= record["windows_agreeing"] <= record["windows"] <= 9


def test_a_small_shift_is_recorded_without_a_word(tmp_path: Path, before: Path) -> None:
    with opened(before, write_after(tmp_path, moved(later(), 0.5, 0.4))) as reader:
        assert reader.warnings == ()
        assert error_px(reader.registration.shift, 0.5, 0.4) < 0.3


def test_a_pair_in_another_crs_is_measured_on_the_grid_of_before(tmp_path: Path, before: Path) -> None:
    """`after` is in Web Mercator, with pixels of another size and direction; its ground lies 2 px east."""
    source = write_after(tmp_path, moved(later(), 2.0, 0.0))
    side = ground().shape[1]
    bounds = (500_000, 5_000_000 - side / 2, 500_000 + side / 2, 5_000_000)
    transform, width, height = calculate_default_transform(UTM, "EPSG:3857", side, side, *bounds)
    warped = np.zeros((3, height, width), np.uint8)
    reproject(
        moved(later(), 2.0, 0.0),
        warped,
        src_transform=HALF_METRE,
        src_crs=UTM,
        dst_transform=transform,
        dst_crs="EPSG:3857",
        resampling=Resampling.cubic,
    )
    after = write_raster(source, warped, transform=transform, crs="EPSG:3857", nodata=0, photometric="RGB")
    with opened(before, after) as reader:
        assert error_px(reader.registration.shift, 2.0, 0.0) < 0.3


def test_metres_are_unknown_without_a_crs(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / f"{name}.tif", pixels, crs=None, transform=None)
        for name, pixels in (("before", ground()), ("after", moved(ground(), 2.0, 0.0)))
    ]
    with opened(*paths, allow_no_crs=True) as reader:
        (warning,) = [text for text in reader.warnings if "off before" in text]
        record: Any = reader.provenance()["registration"]
    assert "lies 2.0 px off before" in warning
    assert (record["dx_px"], record["dx_m"], record["shift_m"]) == (2.0, None, None)


def test_the_shift_is_measured_where_the_area_of_interest_is(tmp_path: Path, before: Path) -> None:
    """The upper left quarter of `after` lies elsewhere than the rest, as after a bad mosaic."""
    pixels = ground().copy()
    pixels[:, :288, :288] = moved(ground(), 6.0, 0.0)[:, :288, :288]
    after = write_after(tmp_path, pixels)
    bbox = (500_005, 4_999_870, 500_130, 4_999_995)
    with opened(before, after) as whole, opened(before, after, bbox=bbox, bbox_crs=UTM) as part:
        assert error_px(whole.registration.shift, 0.0, 0.0) < 0.3
        assert error_px(part.registration.shift, 6.0, 0.0) < 0.3


def test_outlines_and_given_registrations_read_no_window(
    tmp_path: Path, before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PairReader, "read", lambda *_: pytest.fail("a window was read"))
    with opened(before, before, outlines_only=True) as reader:
        assert reader.registration == Registration()
    given = Registration(Shift(1.0, 0.5), 5, 4)
    with open_pair(RasterPair(str(before), str(before)), registration=given) as reader:
        assert reader.registration is given


@pytest.mark.parametrize(
    ("lengths", "says"), [([], "not known"), ([0.2, 0.9, 4.0], None), ([1.4, 2.0, 9.0], "2.0 px")]
)
def test_a_caveat_of_chips_is_about_their_median(lengths: list[float], says: str | None) -> None:
    caveat = shift_caveat(lengths)
    assert caveat is None if says is None else caveat is not None and says in caveat


# --register


def residual(reader: PairReader) -> Shift | None:
    """Shift of the centre of the pair as it is read."""
    window = Window(160, 160, SIDE, SIDE)
    return reader.read(Chip(0, 0, window, SIDE, reader.geobox.transform)).measure_shift()


@pytest.mark.parametrize("resampling", ["bilinear", "cubic"])
@pytest.mark.parametrize(("dx", "dy"), [(3.0, 0.0), (-2.6, 5.3), (5.5, 5.5)])
def test_a_shift_is_corrected(tmp_path: Path, before: Path, dx: float, dy: float, resampling: str) -> None:
    after = write_after(tmp_path, moved(later(), dx, dy))
    with opened(before, after, register=True, resampling=resampling) as reader:
        assert reader.registration.corrected
        assert error_px(residual(reader), 0, 0) < 0.3
        assert reader.warnings == ()
        assert any(note.startswith("after: moved by") for note in reader.notes)
        record: Any = reader.provenance()
    assert record["registration"]["corrected"]
    assert record["registration"]["shift_px"] == pytest.approx(np.hypot(dx, dy), abs=0.3)
    assert record["after"]["warped"]
    with opened(before, after) as reader:
        assert error_px(residual(reader), dx, dy) < 0.3


def test_whole_pixels_are_moved_unchanged_and_the_edge_is_nodata(tmp_path: Path, before: Path) -> None:
    pixels = np.zeros_like(ground())
    pixels[:, 4:, 2:] = ground()[:, :-4, :-2]
    after = write_after(tmp_path, pixels)
    registration = Registration(Shift(2.0, 4.0), 1, 1, corrected=True)
    with open_pair(RasterPair(str(before), str(after)), registration=registration) as reader:
        side = reader.geobox.width
        chip = reader.read(Chip(0, 0, Window(0, 0, side, side), side, reader.geobox.transform))
    assert not chip.valid[-4:].any()
    assert not chip.valid[:, -2:].any()
    assert chip.valid[:-4, :-2].all()
    assert (chip.after[:, :-4, :-2] == chip.before[:, :-4, :-2]).all()


def test_after_is_resampled_once(tmp_path: Path, before: Path) -> None:
    """A pair on two grids is warped as if the transform of `after` had been right from the start."""
    pixels, corner = moved(later(), 1.5, -2.25), HALF_METRE @ Affine.translation(0.3, 0.4)
    after = write_after(tmp_path, pixels, transform=corner)
    with opened(before, after, register=True) as reader:
        chip = Chip(0, 0, Window(64, 64, SIDE, SIDE), SIDE, reader.geobox.transform)
        shift, registered, geobox = reader.registration.shift, reader.read(chip), reader.geobox
    assert shift is not None
    right = write_raster(
        tmp_path / "right.tif",
        pixels,
        transform=HALF_METRE @ Affine.translation(0.3 - shift.dx, 0.4 - shift.dy),
        photometric="RGB",
    )
    with open_pair(RasterPair(str(before), str(right)), geobox=geobox) as reader:
        expected = reader.read(chip)
    difference = np.abs(registered.after.astype(int) - expected.after)
    assert difference.max() <= 1


@pytest.mark.parametrize(("dx", "says"), [(11.0, "up to 8 px"), (0.1, "too little"), (None, "cannot be")])
def test_what_cannot_be_corrected_is_told(tmp_path: Path, before: Path, dx: float | None, says: str) -> None:
    pixels = ground(8) if dx is None else moved(later(), dx, 0.0)
    with opened(before, write_after(tmp_path, pixels), register=True) as reader:
        assert not reader.registration.corrected
        (note,) = [note for note in reader.notes if says in note]
        assert (note in reader.warnings) == (dx != 0.1)
        assert reader.views[1].dataset is reader.views[1].source.dataset


def test_images_without_a_crs_are_registered(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / f"{name}.tif", pixels, crs=None, transform=None)
        for name, pixels in (("before", ground()), ("after", moved(later(), 2.5, -1.5)))
    ]
    with opened(*paths, allow_no_crs=True, register=True) as reader:
        assert error_px(residual(reader), 0, 0) < 0.3
        assert reader.geobox.crs is None


def test_codes_of_a_palette_are_moved_whole(tmp_path: Path) -> None:
    """Values of a palette are codes, of which there is no mean."""
    codes = ground()[0] // 32
    palette = {code: (code * 32, 250 - code * 32, (code * 90) % 256) for code in range(8)}
    after = write_raster(tmp_path / "after.tif", moved_codes(codes), palette=palette)
    same = write_raster(tmp_path / "same.tif", codes[None], palette=palette)
    with opened(same, after, register=True) as reader:
        assert reader.registration.corrected
        chip = reader.read(Chip(0, 0, Window(64, 64, SIDE, SIDE), SIDE, reader.geobox.transform))
    assert (chip.after == chip.before).all()


def moved_codes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(1, rows, cols) codes 3 px further right."""
    return np.roll(codes, 3, axis=1)[None]


@pytest.mark.slow
def test_false_changes_of_a_shifted_pair_fall_to_those_of_the_unshifted(tmp_path: Path) -> None:
    """Nothing was built; nano bears 3 px in most places, and 5 px in few (benchmarks/registration.py).

    Chips at the right edge, whose last columns are nodata once they are moved, are left out: of one of them
    nano says yes with such a border, also if the images have no shift.
    """
    from deltavlm.model.kinds import load_model

    scene = make_scene(91_000, 576, 576, SceneOptions(misregistration_px=0.0, change=0.0))
    first, second = (image.transpose(2, 0, 1) for image in (scene.before, scene.after))
    before = write_raster(tmp_path / "before.tif", first, photometric="RGB")
    model, scores = load_model("nano", device="cpu"), []
    for dx, register in ((0.0, False), (5.0, False), (5.0, True)):
        after = write_after(tmp_path, moved(second, dx, 0.0))
        with opened(before, after, register=register) as reader:
            chips = [reader.read(chip) for chip in reader.chips(SIDE) if chip.col < 2]
        images = (np.stack([getattr(chip, date) for chip in chips]) for date in ("before", "after"))
        replies = model.answer(model.encode(*images), [YES_NO])
        scores.append(np.array([reply[0].score for reply in replies]))
    unshifted, shifted, registered = scores
    assert shifted.mean() > unshifted.mean() + 0.02
    assert registered.mean() < unshifted.mean() + 0.01
    assert (registered >= 0.5).sum() <= (unshifted >= 0.5).sum()
