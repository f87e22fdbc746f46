"""Masks as polygons: connected parts whole however they are cut, and simple ones that still fit together."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import Polygon

from deltavlm.geo.geobox import Window
from deltavlm.geo.polygonize import Polygonizer, Region, simplify_polygons


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    """Three classes in smooth shapes that touch, hold each other and reach over each other."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(120, 150)), 4)
    found = np.zeros(field.shape, np.uint8)
    found[field > 0.02], found[field > 0.06], found[field < -0.06] = 1, 2, 3
    return found


def regions(labels: NDArray[np.uint8], block: int) -> list[Region]:
    weights = np.arange(labels.size).reshape(labels.shape) % 7
    found = Polygonizer(labels.shape[1])
    for top in range(0, labels.shape[0], block):
        for left in range(0, labels.shape[1], block):
            cut = (slice(top, top + block), slice(left, left + block))
            part = labels[cut]
            found.add(Window(left, top, part.shape[1], part.shape[0]), part, weights[cut].astype(float))
    return found.regions()


@pytest.mark.parametrize("block", [pytest.param(1, marks=pytest.mark.slow), 7, 32, 100])
def test_cuts_do_not_show(labels: NDArray[np.uint8], block: int) -> None:
    whole, cut = regions(labels, 1000), regions(labels, block)
    assert len(whole) == len(cut) > 20
    for one, other in zip(whole, cut, strict=True):
        assert (one.value, one.pixels) == (other.value, other.pixels)
        assert one.mean == pytest.approx(other.mean)
        assert one.polygon.equals(other.polygon)
    for one, other in zip(
        *(simplify_polygons([r.polygon for r in some], 2) for some in (whole, cut)), strict=True
    ):
        assert shapely.normalize(one).equals_exact(shapely.normalize(other))


def test_polygons_hold_their_pixels(labels: NDArray[np.uint8]) -> None:
    found = regions(labels, 32)
    for value in (1, 2, 3):
        of_class = [region for region in found if region.value == value]
        assert len(of_class) == ndimage.label(labels == value)[1]
        assert sum(region.pixels for region in of_class) == (labels == value).sum()
    assert all(region.polygon.area == region.pixels and region.polygon.is_valid for region in found)


def test_a_corner_does_not_connect() -> None:
    diagonal = np.array([[1, 0], [0, 1]], np.uint8)
    assert [region.pixels for region in regions(diagonal, 2)] == [1, 1]
    assert [region.pixels for region in regions(diagonal, 1)] == [1, 1]


def test_a_ring_keeps_its_hole_over_four_blocks() -> None:
    ring = np.zeros((12, 12), np.uint8)
    ring[2:10, 2:10], ring[5:7, 5:7] = 1, 0
    (region,) = regions(ring, 6)
    assert len(region.polygon.interiors) == 1
    assert region.polygon.area == 64 - 4


@pytest.mark.parametrize("tolerance", [0, 1, 2, 4, 9])
def test_simple_polygons_still_fit_together(labels: NDArray[np.uint8], tolerance: float) -> None:
    """Valid, no hole lost, none over another: neighbours of other classes share their edge as before."""
    before = [region.polygon for region in regions(labels, 32)]
    after = simplify_polygons(before, tolerance)
    assert all(isinstance(one, Polygon) and one.is_valid and one.area > 0 for one in after)
    assert [len(one.interiors) for one in after] == [len(one.interiors) for one in before]
    assert shapely.union_all(after).area == pytest.approx(sum(one.area for one in after))
    corners = sum(len(shapely.get_coordinates(one)) for one in after)
    if tolerance == 0:
        assert all(one.equals(other) for one, other in zip(before, after, strict=True))
    else:
        assert corners < sum(len(shapely.get_coordinates(one)) for one in before)


def test_nothing_is_nothing() -> None:
    assert regions(np.zeros((5, 5), np.uint8), 2) == []
    assert simplify_polygons([], 4) == []
