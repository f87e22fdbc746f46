"""Masks of chips laid together: no seam, nothing hangs on how the work is cut, and no data stays no data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray

from deltavlm.geo.blend import FULL, NODATA, ChipMask, blend_blocks, interpolation_matrix, taper_weights
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.grid import Chip, ChipGrid

HERE = Affine.identity()


def laid(grid: ChipGrid, mask_of: object, block_px: int = 1024) -> NDArray[np.uint8]:
    whole = np.full((2, grid.geobox.height, grid.geobox.width), 99, np.uint8)
    for block in blend_blocks(grid, 2, mask_of, block_px):  # type: ignore[arg-type]
        col, row, width, height = block.window
        whole[:, row : row + height, col : col + width] = block.probabilities
    return whole


def shares(value: int) -> NDArray[np.uint8]:
    return np.stack([np.full((8, 8), value, np.uint8), np.zeros((8, 8), np.uint8)])


@pytest.mark.parametrize(("overlap", "block"), [*itertools.product((0, 4, 16, 31), (17, 40, 1024))])
def test_where_all_chips_agree_so_does_the_whole(overlap: int, block: int) -> None:
    grid = ChipGrid(GeoBox(75, 49, HERE), 32, overlap)
    found = laid(grid, lambda chip: ChipMask(shares(255)), block)
    assert (found[0] == FULL).all()
    assert (found[1] == 0).all()


@pytest.mark.parametrize("overlap", [0, 8, 20])
def test_blocks_do_not_show(overlap: int) -> None:
    rng = np.random.default_rng(0)
    grid = ChipGrid(GeoBox(150, 90, HERE), 32, overlap)
    said = {(chip.row, chip.col): rng.integers(0, 256, (2, 8, 8), np.uint8) for chip in grid}
    found = [laid(grid, lambda chip: ChipMask(said[chip.row, chip.col]), block) for block in (1024, 32, 50)]
    for other in found[1:]:
        difference = np.abs(found[0].astype(int) - other)
        assert difference.max() <= 1  # the last digit of a sum, rounded the other way
        assert (difference > 0).mean() < 1e-3


def test_chips_that_disagree_fade_into_each_other() -> None:
    """Without an overlap there is a cliff between them; with one the largest step is that of a slope."""

    def steps(overlap: int) -> NDArray[np.int_]:
        grid = ChipGrid(GeoBox(2 * 64 - overlap, 64, HERE), 64, overlap)
        found = laid(grid, lambda chip: ChipMask(shares(255 * chip.col)))
        return np.diff(found[0, 20].astype(int))

    assert steps(0).max() == FULL
    faded = steps(16)
    assert faded.min() >= 0
    assert faded.max() < FULL / 6
    assert faded.sum() == FULL


def test_a_chip_alone_is_its_mask_enlarged() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 256, (2, 8, 8), np.uint8)
    found = laid(ChipGrid(GeoBox(64, 64, HERE), 64), lambda chip: ChipMask(mask))
    expected = interpolation_matrix(64, 8) @ mask @ interpolation_matrix(64, 8).T
    np.testing.assert_allclose(found, expected * FULL / 255, atol=0.51)
    assert found[0, 0, 0] == pytest.approx(mask[0, 0, 0], abs=1)  # a corner is that of the mask


def test_a_raster_smaller_than_a_chip_gets_its_part_of_the_mask() -> None:
    mask = shares(0)
    mask[0, :4, :4] = 255  # the upper left quarter of the square that the model saw
    found = laid(ChipGrid(GeoBox(40, 20, HERE), 64), lambda chip: ChipMask(mask))
    assert found.shape[1:] == (20, 40)
    assert (found[0, :, :28] == FULL).all()
    assert (found[0, :, 36:] == 0).all()


def test_what_was_not_looked_at_is_no_data() -> None:
    grid = ChipGrid(GeoBox(96, 32, HERE), 32)
    holes = np.ones((32, 32), bool)
    holes[5:9, 3:7] = False

    def mask_of(chip: Chip) -> ChipMask | None:
        return None if chip.col == 1 else ChipMask(shares(100), holes if chip.col == 2 else None)

    found = laid(grid, mask_of)
    expected = np.zeros((32, 96), bool)
    expected[:, 32:64] = True
    expected[5:9, 67:71] = True
    np.testing.assert_array_equal(found[0] == NODATA, expected)
    np.testing.assert_array_equal(found[1] == NODATA, expected)


@pytest.mark.parametrize(("size", "side"), [(32, 8), (256, 64), (30, 64), (7, 7)])
def test_enlarging_keeps_what_is_even(size: int, side: int) -> None:
    np.testing.assert_allclose(interpolation_matrix(size, side).sum(axis=1), 1, rtol=1e-6)
    assert (interpolation_matrix(size, side) >= 0).all()


def test_a_chip_counts_everywhere_and_most_in_its_middle() -> None:
    weights = taper_weights(64)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-6)
    assert (np.diff(weights[:32]) > 0).all()


@pytest.mark.parametrize(("length", "overlap"), [(100, 0), (100, 10), (97, 31), (20, 0), (32, 8)])
def test_chips_that_touch_a_window_are_those_that_share_pixels(length: int, overlap: int) -> None:
    grid = ChipGrid(GeoBox(length, length // 2, HERE), 32, overlap)
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
