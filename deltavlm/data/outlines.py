"""Outlines of objects in a mask, as polygons, by the rules of ChangeChat-87k and ChangeIMTI.

The labels of both sets were made with OpenCV's `findContours` and `approxPolyDP`; this gives the same
polygons without it. Points are (x, y) of pixels, x to the right and y down.

    outline      the outer border of an object, 8-connected: holes do not count, pixels that touch at a corner
                 are one object, and an object inside the hole of another has none
    polygon      the outline by the Douglas-Peucker algorithm, with a tolerance of 5 % of its length, which is
                 raised by 0.1 px until at most 8 corners are left
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Moments", "moments", "outlines", "polygon_of", "simplify"]

Points = npt.NDArray[np.int64]  # (N, 2): x, y

TOLERANCE = 0.05  # of the length of an outline
MAX_CORNERS = 8
STEP_PX = 0.1
# Neighbors of a pixel as (x, y), from the right one, against the clock as seen on a screen.
NEIGHBORS = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
WEST = 4


@dataclass(frozen=True, slots=True)
class Moments:
    """Area of a polygon in square pixels, without a sign, and its centroid; (nan, nan) without an area."""

    area: float
    x: float
    y: float


def outlines(mask: npt.NDArray[np.bool_]) -> list[Points]:
    """Outlines of the objects of a mask (rows, cols), the lowest first.

    Each begins at the first pixel of its object in reading order and goes down its left side; points between
    two others on a horizontal, vertical or diagonal line are left out.
    """
    from scipy import ndimage

    padded = np.pad(mask, 1)
    components, count = ndimage.label(padded, structure=np.ones((3, 3)))
    background, _ = ndimage.label(~padded)  # 4-connected; the frame is in its first component
    outside = background[0, 0]
    _, firsts = np.unique(components, return_index=True)
    starts = []
    for first in firsts[1:] if count else ():
        row, col = divmod(int(first), padded.shape[1])
        if background[row, col - 1] == outside:
            starts.append((row, col))
    return [_trace(padded, row, col) - 1 for row, col in sorted(starts, reverse=True)]


def _trace(padded: npt.NDArray[np.bool_], row: int, col: int) -> Points:
    """Outer border of the object whose first pixel is at (row, col), followed against the clock."""

    def first_set(x: int, y: int, directions: Iterator[int]) -> int | None:
        for direction in directions:
            dx, dy = NEIGHBORS[direction]
            if padded[y + dy, x + dx]:
                return direction
        return None

    start = (col, row)
    last = first_set(*start, ((WEST - turn) % 8 for turn in range(1, 8)))
    if last is None:
        return np.array([start])
    before_start = (col + NEIGHBORS[last][0], row + NEIGHBORS[last][1])
    points = []
    (x, y), towards, previous = start, last, (last + 4) % 8
    while True:
        direction = first_set(x, y, ((towards + turn) % 8 for turn in range(1, 9)))
        assert direction is not None  # there is at least the pixel from which it came
        if direction != previous:
            points.append((x, y))
        following = (x + NEIGHBORS[direction][0], y + NEIGHBORS[direction][1])
        if following == start and (x, y) == before_start:
            return np.array(points)
        (x, y), towards, previous = following, (direction + 4) % 8, direction


def length_of(points: Points) -> float:
    """Length of a closed line through the points."""
    return float(np.hypot(*(points - np.roll(points, 1, axis=0)).T).sum())


def polygon_of(outline: Points) -> Points:
    """Corners of the polygon of an outline, at most MAX_CORNERS of them."""
    length = length_of(outline)
    tolerance = TOLERANCE * length
    polygon = simplify(outline, tolerance)
    while len(polygon) > MAX_CORNERS and tolerance < length:
        tolerance += STEP_PX
        polygon = simplify(outline, tolerance)
    return polygon


def simplify(points: Points, tolerance: float) -> Points:
    """Corners that the Douglas-Peucker algorithm keeps of a closed line.

    The line is cut at two points that are far from each other, found in three steps from the first one. Of
    the result, corners that are nearly on a line with their neighbors are removed.
    """
    count = len(points)
    start = far = 0
    farthest = 0
    for _ in range(3):
        start = (start + far) % count
        squares = ((np.roll(points, -start, axis=0) - points[start]) ** 2).sum(axis=1)
        far, farthest = int(squares.argmax()), int(squares.max())
    if farthest <= tolerance**2:
        return points[[start]]
    turned = np.roll(points, -start, axis=0)
    closed = np.concatenate([turned, turned[:1]])
    indices = [*_corner_indices(closed, 0, far, tolerance), *_corner_indices(closed, far, count, tolerance)]
    return _without_flat_corners(closed[indices], tolerance)


def _corner_indices(line: Points, begin: int, end: int, tolerance: float) -> list[int]:
    """Indices of the corners of a section of a line, without its last point."""
    inner = line[begin + 1 : end]
    if not len(inner):
        return [begin]
    chord = line[end] - line[begin]
    distances = np.abs((inner[:, 1] - line[begin, 1]) * chord[0] - (inner[:, 0] - line[begin, 0]) * chord[1])
    split = begin + 1 + int(distances.argmax())
    if float(distances.max()) ** 2 <= tolerance**2 * float((chord**2).sum()):
        return [begin]
    return [*_corner_indices(line, begin, split, tolerance), *_corner_indices(line, split, end, tolerance)]


def _without_flat_corners(corners: Points, tolerance: float) -> Points:
    """Corners without those that are nearly on a slanting line between their neighbors; two are left.

    Of two neighbors at most one is removed, and the last corner is compared with the first one that was kept.
    """
    line, total = corners.tolist(), len(corners)
    count, read, written = total, 1 % total, 0
    (start_x, start_y), (x, y) = line[-1], line[0]
    while read <= total and count > 2:
        end_x, end_y = line[read % total]
        dx, dy = end_x - start_x, end_y - start_y
        distance = abs((x - start_x) * dy - (y - start_y) * dx)
        onward = (x - start_x) * (end_x - x) + (y - start_y) * (end_y - y)
        is_flat = distance**2 <= 0.5 * tolerance**2 * (dx * dx + dy * dy)
        if is_flat and dx and dy and onward >= 0:
            count -= 1
            start_x, start_y = line[written] = [end_x, end_y]
            x, y = line[(read + 1) % total]
            read += 2
        else:
            start_x, start_y = line[written] = [x, y]
            x, y = end_x, end_y
            read += 1
        written += 1
    return np.array(line[:count])


def moments(polygon: Points) -> Moments:
    """Area and centroid of a polygon."""
    x, y = polygon.T.astype(float)
    before_x, before_y = np.roll(x, 1), np.roll(y, 1)
    crosses = before_x * y - x * before_y
    doubled = float(crosses.sum())
    if abs(doubled) < 1e-6:
        return Moments(0.0, float("nan"), float("nan"))
    return Moments(
        abs(doubled) / 2,
        float((crosses * (before_x + x)).sum()) / (3 * doubled),
        float((crosses * (before_y + y)).sum()) / (3 * doubled),
    )
