"""Outlines of masks and their polygons: equal to OpenCV's, and the labels that follow from them."""

from __future__ import annotations

import numpy as np
import pytest

from deltavlm.data import outlines as module
from deltavlm.data.masks import BUILDING, ROAD, MaskRules, find_polygons, measure_mask
from deltavlm.data.outlines import moments, outlines, polygon_of
from deltavlm.tasks.contours import Contours
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells

Y, X = np.mgrid[:64, :64]
DISTANCE = np.hypot(X - 32, Y - 32)
SHAPES = {
    "disc": (X - 30) ** 2 + (Y - 20) ** 2 <= 225,
    "ell": ((X >= 5) & (X < 12) & (Y >= 5) & (Y < 50)) | ((X >= 5) & (X < 50) & (Y >= 43) & (Y < 50)),
    "ring": ((DISTANCE <= 28) & (DISTANCE >= 20)) | ((abs(X - 32) < 4) & (abs(Y - 32) < 4)),
    "slope": (abs(X - Y) < 2) & (X > 3) & (X < 60),
    "star": 18 + 9 * np.cos(7 * np.arctan2(Y - 32, X - 32)) > DISTANCE,
    "corner": ((X < 8) & (Y < 8)) | ((X >= 8) & (X < 16) & (Y >= 8) & (Y < 16)),
    "waves": np.sin(X / 5) + np.cos(Y / 7 + X / 11) > 0.9,
}
# Of `findContours` (external, simple) and `approxPolyDP` of OpenCV 4.10, with 5 % of the length and at most 8
# corners; in its order.
POLYGONS = {
    "disc": [[[30, 5], [15, 20], [30, 35], [45, 20]]],
    "ell": [[[5, 5], [5, 49], [49, 49], [12, 43]]],
    "ring": [[[32, 4], [4, 32], [32, 60], [60, 32]]],
    "slope": [[[4, 3], [59, 60]]],
    "star": [[[26, 6], [8, 44], [27, 58], [58, 31]]],
    "corner": [[[0, 0], [0, 7], [7, 7], [8, 15], [15, 15], [15, 8], [8, 8], [7, 0]]],
    "waves": [
        [[46, 53], [40, 51], [32, 63], [46, 63]],
        [[63, 45], [63, 51]],
        [[12, 27], [1, 38], [4, 51], [15, 39]],
        [[43, 7], [32, 19], [36, 31], [47, 17]],
        [[63, 1], [63, 7]],
        [[0, 3], [7, 7], [12, 0], [0, 0]],
    ],
}


@pytest.mark.parametrize("name", SHAPES)
def test_polygons_are_those_of_opencv(name: str) -> None:
    assert [polygon_of(outline).tolist() for outline in outlines(SHAPES[name])] == POLYGONS[name]


def test_a_polygon_has_at_most_eight_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tolerance of 1 % a star has more, until the tolerance has grown."""
    (outline,) = outlines(SHAPES["star"])
    monkeypatch.setattr(module, "TOLERANCE", 0.01)
    monkeypatch.setattr(module, "MAX_CORNERS", 99)
    assert len(polygon_of(outline)) > 8
    monkeypatch.undo()
    monkeypatch.setattr(module, "TOLERANCE", 0.01)
    assert 3 <= len(polygon_of(outline)) <= 8


def test_corners_on_a_slanting_line_are_removed() -> None:
    """One that is nearly on it, of two neighbors at most one, and none of a horizontal line."""
    line = np.array([[0, 0], [10, 21], [20, 40], [40, 40], [60, 40], [60, 0]])
    assert module._without_flat_corners(line, 2.0).tolist() == [[0, 0], [20, 40], [40, 40], [60, 40], [60, 0]]
    assert module._without_flat_corners(line, 0.1).tolist() == line.tolist()


def strip(width: int, length: int) -> np.ndarray:
    mask = np.zeros((256, 256), np.uint8)
    mask[100 : 100 + width, 20 : 20 + length] = ROAD
    return mask


@pytest.mark.parametrize(("width", "length"), [(4, 28), (12, 100), (20, 171)])
def test_a_long_straight_strip_disappears_in_changeimti(width: int, length: int) -> None:
    imti, chat = MaskRules("changeimti"), MaskRules("changechat")
    assert measure_mask(strip(width, length - 1), imti)[0] == Counts(1, 0)
    assert measure_mask(strip(width, length), imti) == (Counts(0, 0), Cells())
    assert measure_mask(strip(width, length), chat)[0] == Counts(1, 0)
    assert measure_mask(strip(width, length))[0] == Counts(1, 0)


def test_counts_of_the_three_rules() -> None:
    """A ring around a block, two blocks that touch at a corner, and a single pixel."""
    mask = np.zeros((96, 96), np.uint8)
    mask[4:28, 4:28] = BUILDING
    mask[8:24, 8:24] = 0
    mask[14:18, 14:18] = BUILDING
    mask[60:68, 60:68] = mask[68:76, 68:76] = BUILDING
    mask[40, 4] = BUILDING
    counts = {
        rule: measure_mask(mask, MaskRules(rule))[0] for rule in ("components", "changechat", "changeimti")
    }
    assert counts == {"components": Counts(0, 4), "changechat": Counts(0, 3), "changeimti": Counts(0, 2)}


def test_cells_of_the_rules() -> None:
    """A road over two cells is in both as a polygon, and in that of its centroid in ChangeIMTI."""
    mask = np.zeros((256, 256), np.uint8)
    mask[10:30, 10:110] = ROAD
    assert measure_mask(mask, MaskRules("changechat"))[1] == Cells(("top-left", "top-center"), ())
    assert measure_mask(mask, MaskRules("changeimti"))[1] == Cells(("top-left",), ())
    mask[:] = 0
    mask[10:30, 76:96] = BUILDING  # its centroid is 85.5, which is truncated to 85 and left of 85.33
    assert measure_mask(mask, MaskRules("changeimti"))[1] == Cells((), ("top-left",))
    mask[:] = 0
    mask[10:30, 77:97] = BUILDING
    assert measure_mask(mask, MaskRules("changeimti"))[1] == Cells((), ("top-center",))


def test_polygons_are_in_pixels_of_256() -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[10:20, 30:50] = BUILDING
    assert find_polygons(mask) == Contours((), (((60, 20), (60, 38), (98, 38), (98, 20)),))


def test_a_line_and_a_pixel_have_no_area() -> None:
    line, pixel = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    line[4, 2:8] = pixel[0, 0] = True
    assert [polygon_of(each).tolist() for each in outlines(line)] == [[[2, 4], [7, 4]]]
    assert outlines(pixel)[0].tolist() == [[0, 0]]
    assert outlines(np.zeros((4, 4), bool)) == []
    for mask in (line, pixel):
        assert moments(polygon_of(outlines(mask)[0])).area == 0
    square = moments(np.array([[0, 0], [0, 4], [4, 4], [4, 0]]))
    assert (square.area, square.x, square.y) == (16, 2, 2)
