"""Reading of pairs in tests: chips assembled to images of the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deltavlm.geo.pair import ChipPixels, PairReader, RasterPair, ReadOptions, open_pair

ROWS, COLS, SIZE = 96, 160, 32
SAME_IMAGE = "before and after are the same image, so nothing can have changed"  # of one path given twice


def opened(before: Path | str, after: Path | str, **options: Any) -> Any:
    return open_pair(RasterPair(str(before), str(after)), ReadOptions(**options))


def read_all(reader: PairReader, size: int = SIZE) -> list[ChipPixels]:
    return [reader.read(chip) for chip in reader.chips(size)]


def mosaic(reader: PairReader, chips: list[ChipPixels]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Before, after (3, height, width) and validity (height, width) of the whole grid."""
    images = np.zeros((2, 3, reader.geobox.height, reader.geobox.width), np.uint8)
    valid = np.zeros((reader.geobox.height, reader.geobox.width), bool)
    for pixels in chips:
        col, row, width, height = pixels.chip.window
        at = (slice(row, row + height), slice(col, col + width))
        images[(0, slice(None), *at)] = pixels.before[:, :height, :width]
        images[(1, slice(None), *at)] = pixels.after[:, :height, :width]
        valid[at] = pixels.valid[:height, :width]
    return images[0], images[1], valid


def read_pair(
    before: Path | str, after: Path | str, **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with opened(before, after, **options) as reader:
        return mosaic(reader, read_all(reader))
