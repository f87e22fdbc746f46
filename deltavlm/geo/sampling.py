"""Samples of a raster: one decimated read of its overviews, or a lattice of small windows without any."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import TypeVar

import numpy as np
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from deltavlm.errors import RasterError
from deltavlm.geo.geobox import Window

__all__ = ["FEW_WINDOWS", "SAMPLE_WINDOWS", "iter_samples"]

Sample = TypeVar("Sample")

SAMPLE_PX = 512  # side of a sample
SAMPLE_WINDOWS, FEW_WINDOWS = 16, 4  # along a side, where there are no overviews to sample from


def iter_samples(
    size: tuple[int, int],
    dataset: DatasetReader | WarpedVRT,
    read: Callable[[Window, tuple[int, int]], Sample],
    *,
    overviews: bool = True,
    windows: int = SAMPLE_WINDOWS,
    strict: bool = False,
) -> Iterator[Sample]:
    """Samples of a raster of `size` (width, height): one decimated read of its overviews, or a lattice of
    small windows without any.

    `read` takes a window and the (rows, cols) to return for it. Windows that cannot be read are left out;
    they also replace a decimated read that fails. `overviews=False` uses windows only; there are `windows` of
    them along a side.

    Raises:
        RasterError: nothing can be read; with `strict`, a part cannot be read.
    """
    width, height = size
    if overviews and (dataset.overviews(1) or max(width, height) <= 2 * SAMPLE_PX):
        with nullcontext() if strict else suppress(RasterError):
            yield read(Window(0, 0, width, height), (min(height, SAMPLE_PX), min(width, SAMPLE_PX)))
            return
    side = SAMPLE_PX // SAMPLE_WINDOWS
    cols, rows = min(side, width), min(side, height)
    col_offs, row_offs = (
        np.unique(np.linspace(0, length - size, windows, dtype=int)).tolist()
        for length, size in ((width, cols), (height, rows))
    )
    failures: list[RasterError] = []
    readable = False
    for col_off, row_off in itertools.product(col_offs, row_offs):
        try:
            sample = read(Window(col_off, row_off, cols, rows), (rows, cols))
        except RasterError as error:
            if strict:
                raise
            failures.append(error)
        else:
            readable = True
            yield sample
    if not readable:
        raise failures[0]
