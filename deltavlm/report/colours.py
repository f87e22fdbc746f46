"""Colours of change scores and of classes of change, shared by the page and the quicklook."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["CLASS_COLOURS", "RAMP", "ramp"]

Colour = tuple[int, int, int]  # red, green, blue

RAMP: tuple[Colour, ...] = ((44, 52, 128), (106, 58, 150), (178, 74, 130), (230, 122, 84), (252, 208, 74))
"""Stops for scores from 0 to 1, dark blue to yellow, of rising lightness: readable without hue."""

CLASS_COLOURS: Mapping[str, Colour] = {
    "building": (80, 240, 255),
    "road": (255, 255, 255),
    "other": (60, 150, 255),
}
"""Cyan, white and azure: far from all colours of RAMP, also with a color vision deficiency."""


def ramp(score: float) -> Colour:
    """Colour of a score, linear between the stops; scores beyond 0 and 1 are clipped.

    >>> ramp(0), ramp(1)
    ((44, 52, 128), (252, 208, 74))
    """
    position = min(max(score, 0.0), 1.0) * (len(RAMP) - 1)
    low, high = RAMP[math.floor(position)], RAMP[math.ceil(position)]
    red, green, blue = (round(a + (b - a) * (position % 1)) for a, b in zip(low, high, strict=True))
    return red, green, blue
