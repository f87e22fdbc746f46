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
    labels = np.zeros(field.shape, np.uint8)
    labels[field > 0.02], labels[field > 0.06], labels[field < -0.06] = 1, 2, 3
    return labels


def regions(labels: NDArray[np.uint8], block: int) -> list[Region]:
    weights = np.arange(labels.size).reshape(labels.shape) % 7
    polygonizer = Polygonizer(labels.shape[1])
    for top in range(0, labels.shape[0], block):
        for left in range(0, labels.shape[1], block):
            cut = (slice(top, top + block), slice(left, left + block))
            height, width = labels[cut].shape
            window = Window(left, top, width, height)
            polygonizer.add(window, labels[cut], weights[cut].astype(float))
    return polygonizer.regions()


@pytest.mark.parametrize("block", [1, 7, 32, 100])
def test_cuts_do_not_show(labels: NDArray[np.uint8], block: int) -> None:
    if block == 1:
        labels = labels[:40, :50]  # a block costs the same, of whatever size
    single, cut = regions(labels, 1000), regions(labels, block)
    assert len(single) == len(cut) > (5 if block == 1 else 20)
    for first, second in zip(single, cut, strict=True):
        assert (first.value, first.pixels) == (second.value, second.pixels)
        assert first.mean == pytest.approx(second.mean)
        assert first.polygon.equals(second.polygon)
    simplified = [simplify_polygons([region.polygon for region in group], 2) for group in (single, cut)]
    for first, second in zip(*map(shapely.normalize, simplified), strict=True):
        assert first.equals_exact(second)


def test_polygons_hold_their_pixels(labels: NDArray[np.uint8]) -> None:
    every = regions(labels, 32)
    for value in (1, 2, 3):
        of_class = [region for region in every if region.value == value]
        assert len(of_class) == ndimage.label(labels == value)[1]
        assert sum(region.pixels for region in of_class) == (labels == value).sum()
    assert all(region.polygon.area == region.pixels and region.polygon.is_valid for region in every)


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
    """Valid, no hole lost, none over another: neighbors of other classes share their edge as before."""
    before = [region.polygon for region in regions(labels, 32)]
    after = simplify_polygons(before, tolerance)
    assert all(isinstance(polygon, Polygon) and polygon.is_valid and polygon.area > 0 for polygon in after)
    assert [len(polygon.interiors) for polygon in after] == [len(polygon.interiors) for polygon in before]
    assert shapely.union_all(after).area == pytest.approx(sum(polygon.area for polygon in after))
    corners = sum(len(shapely.get_coordinates(polygon)) for polygon in after)
    if tolerance == 0:
        assert all(polygon.equals(other) for polygon, other in zip(before, after, strict=True))
    else:
        assert corners < sum(len(shapely.get_coordinates(polygon)) for polygon in before)


def test_nothing_is_nothing() -> None:
    assert regions(np.zeros((5, 5), np.uint8), 2) == []
    assert simplify_polygons([], 4) == []
