"""The colours of scores, on the page and on pictures alike."""

from __future__ import annotations

import math

__all__ = ["RAMP", "ramp"]

Colour = tuple[int, int, int]  # red, green, blue

RAMP: tuple[Colour, ...] = ((44, 52, 128), (106, 58, 150), (178, 74, 130), (230, 122, 84), (252, 208, 74))
"""Scores from 0 to 1: dark blue to yellow, lighter and lighter, so that their order shows without hues."""


def ramp(score: float) -> Colour:
    """The colour of a score.

    >>> ramp(0), ramp(1)
    ((44, 52, 128), (252, 208, 74))
    """
    at = min(max(score, 0.0), 1.0) * (len(RAMP) - 1)
    low, high = RAMP[math.floor(at)], RAMP[math.ceil(at)]
    red, green, blue = (round(a + (b - a) * (at % 1)) for a, b in zip(low, high, strict=True))
    return red, green, blue
