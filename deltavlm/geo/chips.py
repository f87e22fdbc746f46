"""Single chips of a pair: of the whole pair, around a point, under the bounding box, or of a window."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.geobox import LONLAT, GeoBox, Window, crs_name, project
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair_reader import PairReader

__all__ = ["chip_at", "chip_of_bbox", "chip_of_pair", "chip_of_window", "select_chip"]

logger = logging.getLogger(__name__)

MAX_CHIPS_ACROSS = 2  # a pair no wider and no higher than this many chips is one image
MIN_BOX_PX = 64  # a smaller box is warned about
MAX_BOX_PX = 4096  # a larger one is refused


def chip_of_window(reader: PairReader, window: Window, min_px: int) -> Chip:
    """Square chip of at least `min_px` with a window of the pair's grid in its upper left corner.

    Raises: RasterError when the window is not inside the grid.
    """
    geobox = reader.geobox
    col, row, width, height = window
    if not geobox.contains(window) or width < 1 or height < 1:
        raise RasterError(
            f"window {col},{row} of {width} x {height} px is not in the pair, which is {geobox.width} x "
            f"{geobox.height} px"
        )
    return Chip(0, 0, window, max(min_px, width, height), geobox.transform)


def chip_of_pair(reader: PairReader, min_px: int) -> Chip:
    """Chip of all that both dates cover."""
    return chip_of_window(reader, Window(0, 0, reader.geobox.width, reader.geobox.height), min_px)


def chip_at(reader: PairReader, x: float, y: float, size: int) -> Chip:
    """Chip of `size` px centered on a point, or as near to that as the edge of the pair allows.

    x, y: longitude and latitude; in a pair without a CRS, pixels.

    Raises: RasterError when the point is outside.
    """
    geobox = reader.geobox
    points = np.array([[x, y]], float)
    if geobox.crs is not None:
        points = geobox.to_pixels(project(points, LONLAT, geobox.crs))
    if not _is_inside(geobox, points[0]):  # also where it cannot be projected
        axes = "lon/lat" if geobox.crs is not None else "pixel"
        raise RasterError(
            f"{axes} {x:g},{y:g} is outside of the pair, which covers {geobox.describe_bounds()}"
            f"{_order_hint(geobox, x, y)}"
        )
    col, row = points[0].tolist()
    width, height = min(size, geobox.width), min(size, geobox.height)
    col_off, row_off = (
        max(0, min(math.floor(center - length / 2 + 0.5), end - length))
        for center, length, end in ((col, width, geobox.width), (row, height, geobox.height))
    )
    return chip_of_window(reader, Window(col_off, row_off, width, height), size)


def _order_hint(geobox: GeoBox, x: float, y: float) -> str:
    """End of a message about a point outside of a grid that lies in it if its numbers mean something else."""
    if geobox.crs is None:
        return ""
    swapped, ground = (
        geobox.to_pixels(points)[0]
        for points in (project(np.array([[y, x]], float), LONLAT, geobox.crs), np.array([[x, y]], float))
    )
    if _is_inside(geobox, swapped):
        return f"; {y:g},{x:g} is inside: the order is longitude, latitude"
    if _is_inside(geobox, ground):
        return f"; the numbers are coordinates in {crs_name(geobox.crs)}: give longitude, latitude"
    return ""


def _is_inside(geobox: GeoBox, pixel: NDArray[np.float64]) -> bool:
    col, row = pixel.tolist()
    return bool(0 <= col <= geobox.width and 0 <= row <= geobox.height)


def chip_of_bbox(reader: PairReader, min_px: int) -> Chip:
    """Chip of the pixels under the bounds of the bbox or area of interest that the pair was opened with.

    Raises: ValueError when it was opened with none.
    """
    if reader.aoi is None:
        raise ValueError("the pair was opened without a bbox or an area of interest")
    return chip_of_window(reader, reader.aoi_window, min_px)


def select_chip(reader: PairReader, size: int, point: tuple[float, float] | None = None) -> Chip:
    """Chip to show as one image: around `point`, else under the pair's bbox, else the whole pair.

    point: longitude and latitude; in a pair without a CRS, pixels. size: side of a chip in pixels, at least.

    Raises: ConfigError where the box, or a pair without a point or box, is too large for one image.
    """
    if point is not None:
        return chip_at(reader, *point, size)
    if reader.aoi is not None:
        chip = chip_of_bbox(reader, size)
        width, height = chip.window.width, chip.window.height
        if min(width, height) < MIN_BOX_PX:
            logger.warning(
                "the box is %d x %d px, too small to show much; `at` takes the chip around a point",
                width,
                height,
            )
        if chip.size > MAX_BOX_PX:
            raise ConfigError(
                f"`bbox` is {width} x {height} px, and one image has at most {MAX_BOX_PX}; make it smaller"
            )
        return chip
    width, height, max_px = reader.geobox.width, reader.geobox.height, MAX_CHIPS_ACROSS * size
    if max(width, height) > max_px:
        raise ConfigError(
            f"the pair is {width} x {height} px, too large for one image ({max_px} px): name a place with "
            "`at` or `bbox`; deltavlm ask --all-chips asks everywhere"
        )
    return chip_of_pair(reader, size)
