"""Masks of chips laid together as one: where chips overlap, each counts less towards its own edge.

A chip knows nothing of what lies beyond its edge, and says other things there than its neighbour does. So
each pixel is the mean of the chips that show it, weighted by a raised cosine over the chip: at a chip's edge
it counts nothing against a neighbour that sees the place from its middle, and what it says fades in.
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

BLOCK_PX = 1024  # side of what is blend_blocks at once
FULL, NODATA = 254, 255  # of a block's shares: the whole, and no data

Shares = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ChipMask:
    """What a model says of a chip, at its own resolution."""

    probabilities: Shares  # (classes, rows, cols) over the whole square of the chip; 255 is certain
    valid: NDArray[np.bool_] | None = None  # (size, size): where both dates have data; None is everywhere


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the grid, in its pixels."""

    window: Window
    probabilities: Shares  # (classes, height, width): 0 to FULL, or NODATA in all classes


def blend_blocks(
    grid: ChipGrid,
    classes: int,
    mask_of: Callable[[Chip], ChipMask | None],
    block_px: int = BLOCK_PX,
) -> Iterator[Block]:
    """All of the grid, block by block in rows, so that memory does not grow with it.

    `mask_of` gives None for a chip that was not looked at; a pixel that no chip shows is without data.
    """
    for top in range(0, grid.geobox.height, block_px):
        for left in range(0, grid.geobox.width, block_px):
            window = Window(
                left, top, min(block_px, grid.geobox.width - left), min(block_px, grid.geobox.height - top)
            )
            yield Block(window, _shares(grid, classes, mask_of, window))


def _shares(
    grid: ChipGrid, classes: int, mask_of: Callable[[Chip], ChipMask | None], block: Window
) -> Shares:
    total = np.zeros((block.height, block.width), np.float32)
    summed = np.zeros((classes, block.height, block.width), np.float32)
    for chip in grid.intersecting(block):
        mask = mask_of(chip)
        if mask is None:
            continue
        col, row, width, height = chip.window
        tops, lefts = max(row, block.row_off), max(col, block.col_off)
        ends = min(row + height, block.row_off + block.height), min(col + width, block.col_off + block.width)
        here = slice(tops - row, ends[0] - row), slice(lefts - col, ends[1] - col)
        there = (
            slice(tops - block.row_off, ends[0] - block.row_off),
            slice(lefts - block.col_off, ends[1] - block.col_off),
        )
        weight = taper_weights(chip.size)[here[0], None] * taper_weights(chip.size)[None, here[1]]
        if mask.valid is not None:
            weight = weight * mask.valid[here]
        total[there] += weight
        if mask.probabilities.any():
            down, across = (
                interpolation_matrix(chip.size, side)[part]
                for side, part in zip(mask.probabilities.shape[1:], here, strict=True)
            )
            summed[:, *there] += (down @ mask.probabilities.astype(np.float32) @ across.T) * weight
    seen = total > 0
    mean = np.divide(summed, total, out=np.zeros_like(summed), where=seen)
    shares: Shares = np.rint(mean * np.float32(FULL / 255)).astype(np.uint8)
    shares[:, ~seen] = NODATA
    return shares


@lru_cache(maxsize=8)
def taper_weights(size: int) -> NDArray[np.float32]:
    """(size,) how much the pixels along a chip's side count: most in the middle, and nowhere nothing."""
    places = (np.arange(size) + 0.5) / size
    return np.asarray(np.sin(math.pi * places) ** 2, np.float32)


@lru_cache(maxsize=8)
def interpolation_matrix(size: int, side: int) -> NDArray[np.float32]:
    """(size, side) linear interpolation of `side` values to `size` pixels over the same length; where there
    are fewer pixels than values, a mean of those around."""
    middles = (np.arange(size) + 0.5) * side / size - 0.5
    reach = max(1.0, side / size)
    near = np.maximum(0, 1 - np.abs(middles[:, None] - np.arange(side)) / reach)
    return np.asarray(near / near.sum(axis=1, keepdims=True), np.float32)
