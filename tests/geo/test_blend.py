"""Blending of chip masks: no seams, no influence of blocks, and no data stays no data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray

from deltavlm.geo.blend import FULL, NODATA, ChipMask, blend_blocks, interpolation_matrix, taper_weights
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.grid import Chip, ChipGrid

IDENTITY = Affine.identity()


def blend(grid: ChipGrid, mask_of: object, block_px: int = 1024) -> NDArray[np.uint8]:
    mosaic = np.full((2, grid.geobox.height, grid.geobox.width), 99, np.uint8)
    for block in blend_blocks(grid, 2, mask_of, block_px):  # type: ignore[arg-type]
        col, row, width, height = block.window
        mosaic[:, row : row + height, col : col + width] = block.probabilities
    return mosaic


def probabilities(value: int) -> NDArray[np.uint8]:
    return np.stack([np.full((8, 8), value, np.uint8), np.zeros((8, 8), np.uint8)])


@pytest.mark.parametrize(("overlap", "block"), [*itertools.product((0, 4, 16, 31), (17, 40, 1024))])
def test_chips_that_agree_make_an_even_mosaic(overlap: int, block: int) -> None:
    grid = ChipGrid(GeoBox(75, 49, IDENTITY), 32, overlap)
    blended = blend(grid, lambda chip: ChipMask(probabilities(255)), block)
    assert (blended[0] == FULL).all()
    assert (blended[1] == 0).all()


@pytest.mark.parametrize("overlap", [0, 8, 20])
def test_blocks_do_not_show(overlap: int) -> None:
    rng = np.random.default_rng(0)
    grid = ChipGrid(GeoBox(150, 90, IDENTITY), 32, overlap)
    masks = {(chip.row, chip.col): rng.integers(0, 256, (2, 8, 8), np.uint8) for chip in grid}
    blended = [
        blend(grid, lambda chip: ChipMask(masks[chip.row, chip.col]), block) for block in (1024, 32, 50)
    ]
    for other in blended[1:]:
        difference = np.abs(blended[0].astype(int) - other)
        assert difference.max() <= 1  # the last digit of a sum, rounded the other way
        assert (difference > 0).mean() < 1e-3


def test_chips_that_disagree_fade_into_each_other() -> None:
    """Without an overlap there is a cliff between them; with one the largest step is that of a slope."""

    def steps(overlap: int) -> NDArray[np.int_]:
        grid = ChipGrid(GeoBox(2 * 64 - overlap, 64, IDENTITY), 64, overlap)
        blended = blend(grid, lambda chip: ChipMask(probabilities(255 * chip.col)))
        return np.diff(blended[0, 20].astype(int))

    assert steps(0).max() == FULL
    faded = steps(16)
    assert faded.min() >= 0
    assert faded.max() < FULL / 6
    assert faded.sum() == FULL


def test_a_chip_alone_is_its_mask_enlarged() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 256, (2, 8, 8), np.uint8)
    blended = blend(ChipGrid(GeoBox(64, 64, IDENTITY), 64), lambda chip: ChipMask(mask))
    expected = interpolation_matrix(64, 8) @ mask @ interpolation_matrix(64, 8).T
    np.testing.assert_allclose(blended, expected * FULL / 255, atol=0.51)
    assert blended[0, 0, 0] == pytest.approx(mask[0, 0, 0], abs=1)  # a corner is that of the mask


def test_a_raster_smaller_than_a_chip_gets_its_share_of_the_mask() -> None:
    mask = probabilities(0)
    mask[0, :4, :4] = 255  # the upper left quarter of the square that the model saw
    blended = blend(ChipGrid(GeoBox(40, 20, IDENTITY), 64), lambda chip: ChipMask(mask))
    assert blended.shape[1:] == (20, 40)
    assert (blended[0, :, :28] == FULL).all()
    assert (blended[0, :, 36:] == 0).all()


def test_chips_without_a_mask_are_no_data() -> None:
    grid = ChipGrid(GeoBox(96, 32, IDENTITY), 32)
    holes = np.ones((32, 32), bool)
    holes[5:9, 3:7] = False

    def mask_of(chip: Chip) -> ChipMask | None:
        return None if chip.col == 1 else ChipMask(probabilities(100), holes if chip.col == 2 else None)

    blended = blend(grid, mask_of)
    expected = np.zeros((32, 96), bool)
    expected[:, 32:64] = True
    expected[5:9, 67:71] = True
    np.testing.assert_array_equal(blended[0] == NODATA, expected)
    np.testing.assert_array_equal(blended[1] == NODATA, expected)


@pytest.mark.parametrize(("size", "side"), [(32, 8), (256, 64), (30, 64), (7, 7)])
def test_interpolation_keeps_constants(size: int, side: int) -> None:
    np.testing.assert_allclose(interpolation_matrix(size, side).sum(axis=1), 1, rtol=1e-6)
    assert (interpolation_matrix(size, side) >= 0).all()


def test_weights_are_positive_and_highest_in_the_middle() -> None:
    weights = taper_weights(64)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-6)
    assert (np.diff(weights[:32]) > 0).all()


@pytest.mark.parametrize(("length", "overlap"), [(100, 0), (100, 10), (97, 31), (20, 0), (32, 8)])
def test_chips_that_touch_a_window_are_those_that_share_pixels(length: int, overlap: int) -> None:
    grid = ChipGrid(GeoBox(length, length // 2, IDENTITY), 32, overlap)
    for left, top, width, height in itertools.product((0, 13, 40), (0, 9), (1, 20, 60), (1, 25)):
        window = Window(left, top, width, height)
        expected = [
            (chip.row, chip.col)
            for chip in grid
            if chip.window.col_off < left + width
            and chip.window.col_off + chip.window.width > left
            and chip.window.row_off < top + height
            and chip.window.row_off + chip.window.height > top
        ]
        assert [(chip.row, chip.col) for chip in grid.intersecting(window)] == expected
