"""One picture of a pair, instead of a grid of chips: all of it, the surroundings of a point, or a box."""

from __future__ import annotations

import math

import numpy as np
import shapely

from deltavlm.errors import RasterError
from deltavlm.geo.alignment import LONLAT, covers, project
from deltavlm.geo.grid import Chip, Window
from deltavlm.geo.pair import PairReader

__all__ = ["around", "boxed", "whole", "window_chip"]


def window_chip(reader: PairReader, window: Window, least_px: int) -> Chip:
    """A window of the pair's grid as a square of at least `least_px`, the window in its upper left corner.

    Raises: RasterError when it is not inside the grid.
    """
    col, row, width, height = window
    inside = 0 <= col <= col + width <= reader.width and 0 <= row <= row + height <= reader.height
    if not inside or width < 1 or height < 1:
        raise RasterError(
            f"window {col},{row} of {width} x {height} px is not in the pair, which is {reader.width} x "
            f"{reader.height} px"
        )
    return Chip(0, 0, window, max(least_px, width, height), reader.transform)


def whole(reader: PairReader, least_px: int) -> Chip:
    """All that both dates cover."""
    return window_chip(reader, Window(0, 0, reader.width, reader.height), least_px)


def around(reader: PairReader, x: float, y: float, size_px: int) -> Chip:
    """A chip with the point in its middle, or as near to it as the edge of the pair allows.

    x, y: longitude and latitude; in a pair without a CRS, pixels.

    Raises: RasterError when the point is outside.
    """
    grid = reader.meeting.grid
    points = np.array([[x, y]], float)
    if grid.crs is not None:
        points = grid.to_pixels(project(points, LONLAT, grid.crs))
    col, row = points[0].tolist()
    if not (0 <= col <= grid.width and 0 <= row <= grid.height):  # also where it cannot be projected
        what = "lon/lat" if grid.crs is not None else "pixel"
        raise RasterError(f"{what} {x:g},{y:g} is outside of the pair, which covers {covers(grid)}")
    width, height = min(size_px, grid.width), min(size_px, grid.height)
    left, top = (
        max(0, min(math.floor(middle - length / 2 + 0.5), end - length))
        for middle, length, end in ((col, width, grid.width), (row, height, grid.height))
    )
    return window_chip(reader, Window(left, top, width, height), size_px)


def boxed(reader: PairReader, least_px: int) -> Chip:
    """The pixels under the bounds of the area that the pair was opened with.

    Raises: ValueError when it was opened with none.
    """
    if reader.area is None:
        raise ValueError("the pair was opened without a bbox or an area of interest")
    grid = reader.meeting.grid
    left, top, right, bottom = shapely.MultiPoint(grid.to_pixels(shapely.get_coordinates(reader.area))).bounds
    first = max(0, math.floor(left + 1e-6)), max(0, math.floor(top + 1e-6))
    last = min(grid.width, math.ceil(right - 1e-6)), min(grid.height, math.ceil(bottom - 1e-6))
    return window_chip(
        reader, Window(*first, max(1, last[0] - first[0]), max(1, last[1] - first[1])), least_px
    )
