"""Blending of overlapping chip masks into one mosaic, weighted by a raised cosine over each chip.

A model sees nothing beyond the edge of its chip, and predicts other things there than for the neighboring
chip. So each pixel is the weighted mean of the chips that contain it: a chip hardly counts at its edge, where
a neighbor sees the same place near its center, and predictions fade from one chip to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltavlm.geo.geobox import Window
from deltavlm.geo.grid import Chip, ChipGrid

__all__ = ["FULL", "NODATA", "Block", "ChipMask", "blend_blocks", "interpolation_matrix", "taper_weights"]

BLOCK_PX = 1024  # side of a block, which is blended at once
FULL, NODATA = 254, 255  # in a block: probability 1, and no data

Probabilities = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ChipMask:
    """Prediction of a model for a chip, at the model's resolution."""

    probabilities: Probabilities  # (classes, rows, cols) over the chip's square; 255 is probability 1
    valid: NDArray[np.bool_] | None = None  # (size, size), True where both dates have data; None: everywhere


@dataclass(frozen=True, slots=True)
class Block:
    """Rectangle of the mosaic, in pixels of the grid."""

    window: Window
    probabilities: Probabilities  # (classes, height, width): 0 to FULL, or NODATA in all classes


def blend_blocks(
    grid: ChipGrid,
    classes: int,
    mask_of: Callable[[Chip], ChipMask | None],
    block_px: int = BLOCK_PX,
) -> Iterator[Block]:
    """Blend the masks of all chips, block by block in rows, so that memory does not grow with the grid.

    `mask_of` returns None for a chip without a prediction; a pixel in no other chip has no data.
    """
    width, height = grid.geobox.width, grid.geobox.height
    for top in range(0, height, block_px):
        for left in range(0, width, block_px):
            window = Window(left, top, min(block_px, width - left), min(block_px, height - top))
            yield Block(window, _blend(grid, classes, mask_of, window))


def _blend(
    grid: ChipGrid, classes: int, mask_of: Callable[[Chip], ChipMask | None], block: Window
) -> Probabilities:
    """Weighted mean of the chips that intersect a block: (classes, height, width)."""
    total_weight = np.zeros((block.height, block.width), np.float32)
    weighted_sum = np.zeros((classes, block.height, block.width), np.float32)
    for chip in grid.intersecting(block):
        mask = mask_of(chip)
        if mask is None:
            continue
        col, row, width, height = chip.window
        first_row, first_col = max(row, block.row_off), max(col, block.col_off)
        end_row = min(row + height, block.row_off + block.height)
        end_col = min(col + width, block.col_off + block.width)
        in_chip = slice(first_row - row, end_row - row), slice(first_col - col, end_col - col)
        in_block = (
            slice(first_row - block.row_off, end_row - block.row_off),
            slice(first_col - block.col_off, end_col - block.col_off),
        )
        taper = taper_weights(chip.size)
        weight = taper[in_chip[0], None] * taper[None, in_chip[1]]
        if mask.valid is not None:
            weight = weight * mask.valid[in_chip]
        total_weight[in_block] += weight
        rows, cols = (
            interpolation_matrix(chip.size, side)[span]
            for side, span in zip(mask.probabilities.shape[1:], in_chip, strict=True)
        )
        for plane in np.flatnonzero(mask.probabilities.any(axis=(1, 2))):
            upsampled = rows @ mask.probabilities[plane].astype(np.float32) @ cols.T
            weighted_sum[plane][in_block] += upsampled * weight
    has_data = total_weight > 0
    mean = np.divide(weighted_sum, total_weight, out=weighted_sum, where=has_data)
    mean *= np.float32(FULL / 255)
    blended: Probabilities = np.rint(mean, out=mean).astype(np.uint8)
    blended[:, ~has_data] = NODATA
    return blended


@lru_cache(maxsize=8)
def taper_weights(size: int) -> NDArray[np.float32]:
    """Raised-cosine weights (size,) of the pixels along a chip's side: highest in the middle, 0 nowhere."""
    positions = (np.arange(size) + 0.5) / size
    return np.asarray(np.sin(math.pi * positions) ** 2, np.float32)


@lru_cache(maxsize=8)
def interpolation_matrix(size: int, side: int) -> NDArray[np.float32]:
    """Matrix (size, side) of linear interpolation from `side` values to `size` pixels over the same length;
    with fewer pixels than values, a weighted mean of the values around."""
    centers = (np.arange(size) + 0.5) * side / size - 0.5
    radius = max(1.0, side / size)
    weights = np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(side)) / radius)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
