"""Colors of `after` matched to `before`: the fit, its stretch, and pairs that are read with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deltavlm.errors import ConfigError
from deltavlm.geo.geobox import Window
from deltavlm.geo.grid import Chip
from deltavlm.geo.matching import ColorMatch, block_means, fit_colors
from deltavlm.geo.pair import ChipPixels, PairReader, RasterPair, ReadOptions, open_pair
from deltavlm.geo.radiometry import Stretch, to_uint8
from tests.rasters import write_raster

SIDE = 192
GAIN, OFFSET = (0.6, 0.8, 1.25), (30.0, -10.0, 5.0)  # of the light of `after`


def ground(seed: int = 0) -> NDArray[np.float64]:
    """(3, SIDE, SIDE) patches of 8 px from 60 to 180, which differ between the bands."""
    coarse = np.random.default_rng(seed).uniform(60, 180, (3, SIDE // 8, SIDE // 8))
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def in_other_light(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.array(GAIN)[:, None, None] + np.array(OFFSET)[:, None, None]


def with_changes(values: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """The values with new bright ground in the upper `rows`."""
    changed = values.copy()
    changed[:, :rows] = 250 - changed[:, :rows] / 4
    return changed


def write_pair(folder: Path, changed_rows: int, factor: int = 1, dtype: str = "uint8") -> tuple[Path, Path]:
    noise = np.random.default_rng(1).normal(0, 2, (2, 3, SIDE, SIDE))
    images = ground() + noise[0], in_other_light(with_changes(ground(), changed_rows)) + noise[1]
    paths = folder / "before.tif", folder / "after.tif"
    for path, image in zip(paths, images, strict=True):
        write_raster(path, (np.clip(image, 0, 255) * factor).astype(dtype), photometric="RGB")
    return paths


def read_whole(reader: PairReader) -> ChipPixels:
    return reader.read(Chip(0, 0, Window(0, 0, SIDE, SIDE), SIDE, reader.geobox.transform))


def opened(paths: tuple[Path, Path], **options: Any) -> Any:
    return open_pair(RasterPair(*map(str, paths)), ReadOptions(**options))


@pytest.mark.parametrize("changed_rows", [0, SIDE // 4])
def test_the_fit_is_that_of_unchanged_ground(changed_rows: int) -> None:
    """A quarter of new bright roofs does not turn the rest dark."""
    rng = np.random.default_rng(2)
    before, after = (
        (image + rng.normal(0, 2, image.shape))[:, ::8, ::8].reshape(3, -1)
        for image in (ground(), in_other_light(with_changes(ground(), changed_rows)))
    )
    match = fit_colors(before, after)
    assert match is not None
    assert match.gain == pytest.approx([1 / gain for gain in GAIN], rel=0.04)
    unchanged = np.full(3, 120.0)
    matched = (unchanged * GAIN + OFFSET) * match.gain + match.offset
    assert matched == pytest.approx(unchanged, abs=2)


def test_what_cannot_be_matched() -> None:
    samples = ground()[:, ::8, ::8].reshape(3, -1)
    assert fit_colors(samples[:, :99], samples[:, :99]) is None  # too few
    assert fit_colors(samples, np.full_like(samples, 90)) is None  # one color
    assert fit_colors(samples, samples / 4) is None  # four times the contrast
    assert fit_colors(samples, samples) == ColorMatch((1.0,) * 3, (0.0,) * 3)


@pytest.mark.parametrize("stretch", [None, Stretch((0, 100, 200), (3000, 4100, 5200))])
def test_a_stretch_with_a_match_is_both_in_turn(stretch: Stretch | None) -> None:
    dtype = np.uint8 if stretch is None else np.uint16
    values = np.random.default_rng(0).integers(0, 255 if stretch is None else 6000, (3, 40, 40)).astype(dtype)
    match = ColorMatch((1.3, 0.7, 1.0), (-20.0, 12.5, 0.0))
    factors = (np.array(each)[:, None, None] for each in (match.gain, match.offset))
    gain, offset = factors
    in_turn = np.clip(to_uint8(values, stretch) * gain + offset, 0, 255)
    at_once = match.of_stretch(stretch).apply(values)
    inside = (to_uint8(values, stretch) > 0) & (to_uint8(values, stretch) < 255)  # else it was clipped before
    assert np.abs(at_once - in_turn)[inside].max() <= 1.2


def test_blocks_with_nodata_are_left_out() -> None:
    image = np.arange(3 * 24 * 17, dtype=np.uint8).reshape(3, 24, 17)
    valid = np.ones((24, 17), bool)
    valid[9, 3] = False
    means = block_means((image, image), valid)
    assert means.shape == (2, 3, 5)  # of 3 x 2 whole blocks
    assert means[0, :, 0] == pytest.approx(image[:, :8, :8].mean(axis=(1, 2)))


@pytest.mark.parametrize(("factor", "dtype"), [(1, "uint8"), (20, "uint16")])
def test_unchanged_ground_has_the_colors_of_before(tmp_path: Path, factor: int, dtype: str) -> None:
    paths = write_pair(tmp_path, SIDE // 4, factor, dtype)
    with opened(paths, match="histogram") as reader:
        pixels, record = read_whole(reader), reader.provenance()
        assert any(note.startswith("after: red, green, blue are matched") for note in reader.notes)
    means = [image[:, SIDE // 4 :].mean(axis=(1, 2)) for image in (pixels.before, pixels.after)]
    assert means[1] == pytest.approx(means[0], abs=4)
    assert record["match"]["method"] == "histogram"
    assert record["match"]["gain"] == pytest.approx([1 / gain for gain in GAIN], rel=0.1)
    assert record["after"]["stretch"] is not None
    with opened(paths) as reader:
        plain = read_whole(reader)
        assert reader.provenance()["match"] is None
    assert (plain.before == pixels.before).all()
    gap = [
        np.abs(image.mean(axis=(1, 2)) - pixels.before.mean(axis=(1, 2))).max() for image in (plain.after,)
    ]
    assert gap[0] > 10


def test_a_given_match_is_not_measured_again(tmp_path: Path) -> None:
    """A worker of a cluster reads the pixels that the driver decided on."""
    paths = write_pair(tmp_path, 0)
    with opened(paths, match="histogram") as reader:
        registration, color_match, expected = reader.registration, reader.color_match, read_whole(reader)
        record = reader.provenance()
    pair, options = RasterPair(*map(str, paths)), ReadOptions(match="histogram")
    with open_pair(pair, options, registration=registration, color_match=color_match) as reader:
        assert (read_whole(reader).after == expected.after).all()
        assert reader.provenance() == record
    with open_pair(pair, options, registration=registration) as reader:
        assert reader.color_match is None


def test_an_image_of_one_color_is_left_as_it_is(tmp_path: Path) -> None:
    paths = write_pair(tmp_path, 0)
    write_raster(paths[1], np.full((3, SIDE, SIDE), 90, np.uint8), photometric="RGB")
    with opened(paths, match="histogram") as reader:
        assert reader.color_match is None
        assert any(warning.startswith("`match`") for warning in reader.warnings)
        assert (read_whole(reader).after == 90).all()


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    paths = write_pair(tmp_path, 0)
    message = "match 'linear' is not one of none, histogram"
    with pytest.raises(ConfigError, match=message), opened(paths, match="linear"):
        pass
