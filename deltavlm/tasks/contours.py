"""Contours: polygons of changed roads and buildings, as ChangeChat-87k asks for them in place of cells.

A polygon is a list of corners [x, y] in pixels of an image of SIZE_PX, x to the right and y down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltavlm.errors import AnswerParseError
from deltavlm.tasks.locate import LABELS, Cells
from deltavlm.tasks.text import says_no_change

__all__ = ["MAX_NEW_TOKENS", "PROMPT", "SIZE_PX", "Contours", "cells_of", "fill", "format_answer", "parse"]

PROMPT = "Please draw the contours of the changed buildings and roads, approximating them with polygons."
SIZE_PX = 256
MAX_NEW_TOKENS = 1000

Polygon = tuple[tuple[float, float], ...]

_LIST = r"contours of the changed {noun} are:\s*(?P<polygons>\[.*?\])\s*[.,]?\s*(?=$|the contours|contours)"


@dataclass(frozen=True, slots=True)
class Contours:
    """Polygons of the changed roads and of the changed buildings."""

    roads: tuple[Polygon, ...] = ()
    buildings: tuple[Polygon, ...] = ()


def format_answer(value: Contours) -> str:
    """Write both lists in the form of ChangeChat-87k.

    >>> format_answer(Contours(roads=(((0, 8), (9, 9)),)))
    'The contours of the changed roads are:[[[0,8],[9,9]]], The contours of the changed buildings are:[].'
    """
    lists = {"roads": value.roads, "buildings": value.buildings}
    sentences = (
        f"The contours of the changed {noun} are:{json.dumps(polygons, separators=(',', ':'))}"
        for noun, polygons in lists.items()
    )
    return f"{', '.join(sentences)}."


def parse(text: str) -> Contours:
    """Read both lists.

    >>> parse("Contours of the changed roads are:[], contours of the changed buildings are: [[[0, 1]]]")
    Contours(roads=(), buildings=(((0, 1),),))

    Raises: AnswerParseError when a list is missing, cut off, or has a corner outside of the image.
    """
    if "[" not in text and says_no_change(text):
        return Contours()
    return Contours(_polygons(text, "roads"), _polygons(text, "buildings"))


def fill(polygons: Sequence[Polygon]) -> npt.NDArray[np.bool_]:
    """Mask (SIZE_PX, SIZE_PX), rows from the top, of the pixels inside of polygons (even-odd rule), with the
    pixels of their corners."""
    centers = np.arange(SIZE_PX)  # corners are pixels, so that their centers are whole numbers
    mask = np.zeros((SIZE_PX, SIZE_PX), bool)
    for polygon in polygons:
        inside = np.zeros_like(mask)
        for (x0, y0), (x1, y1) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
            if y0 == y1:
                continue
            rows = (centers >= min(y0, y1)) & (centers < max(y0, y1))
            crossings = x0 + (centers - y0) * (x1 - x0) / (y1 - y0)
            inside ^= rows[:, None] & (centers[None] >= crossings[:, None])
        mask |= inside
        for x, y in polygon:
            mask[min(int(y), SIZE_PX - 1), min(int(x), SIZE_PX - 1)] = True
    return mask


def cells_of(contours: Contours) -> Cells:
    """Cells of the 3x3 grid that polygons reach into.

    >>> cells_of(Contours(buildings=(((10, 10), (40, 10), (40, 100), (10, 100)),)))
    Cells(roads=(), buildings=('top-left', 'center-left'))
    """
    return Cells(_cells(contours.roads), _cells(contours.buildings))


def _cells(polygons: Sequence[Polygon]) -> tuple[str, ...]:
    rows, cols = np.nonzero(fill(polygons))
    reached = {*(3 * (3 * rows // SIZE_PX) + 3 * cols // SIZE_PX).tolist()}
    return tuple(label for index, label in enumerate(LABELS) if index in reached)


def _polygons(text: str, noun: str) -> tuple[Polygon, ...]:
    match = re.search(_LIST.format(noun=noun), text.strip(), re.IGNORECASE | re.DOTALL)
    try:
        polygons = json.loads(match["polygons"]) if match else None
        if not isinstance(polygons, list):
            raise ValueError("it is missing")
        return tuple(tuple(_corner(corner) for corner in polygon) for polygon in polygons if polygon)
    except (ValueError, TypeError, RecursionError) as error:
        raise AnswerParseError(f"no list of contours of {noun} in {text!r}: {error}") from error


def _corner(corner: object) -> tuple[float, float]:
    """(x, y). Raises: ValueError for anything that is no corner inside of the image."""
    if not isinstance(corner, list) or len(corner) != 2:
        raise ValueError(f"{corner!r} is no corner [x, y]")
    x, y = corner
    if not all(type(value) in (int, float) and 0 <= value <= SIZE_PX for value in (x, y)):
        raise ValueError(f"{corner!r} is not inside of {SIZE_PX} px")
    return x, y
