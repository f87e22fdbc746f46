"""A small map without ground: polygons as SVG, the redder the more of them has changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

__all__ = ["MAX_SHAPES", "svg_map"]

MAX_SHAPES = 4000  # more would make the page heavy
WIDTH, HEIGHT = 900.0, 420.0  # at most
STEPS = ((0.0, "#ffffe0"), (0.05, "#fed976"), (0.25, "#fd8d3c"), (0.5, "#f03b20"), (0.75, "#bd0026"))
NO_VALUE_COLOUR = "#bbbbbb"
KEY = ((NO_VALUE_COLOUR, "not looked at"), *((colour, f"from {low:g}") for low, colour in STEPS))
KEY_STEP, KEY_LINE = 150.0, 40.0


def svg_map(shapes: Sequence[BaseGeometry | None], shares: Sequence[float | None]) -> str | None:
    """SVG of polygons in longitude and latitude; shares from 0 to 1, None is grey. None if there are none.

    North is up, and lengths are right in the middle of the map.
    """
    drawn = [(shape, share) for shape, share in zip(shapes, shares, strict=True) if shape is not None]
    if not drawn or len(drawn) > MAX_SHAPES:
        return None
    left, bottom, right, top = shapely.total_bounds([shape for shape, _ in drawn])
    squeeze = max(float(np.cos(np.radians((bottom + top) / 2))), 0.01)
    width, height = (right - left) * squeeze, top - bottom
    if not (width > 0 and height > 0 and right - left < 180):
        return None
    scale = min(WIDTH / width, HEIGHT / height)
    paths = "".join(
        f'<path d="{_path(shape, left, top, squeeze * scale, scale)}" fill="{_colour(share)}"/>'
        for shape, share in drawn
    )
    wide, high = width * scale, height * scale
    key = "".join(
        f'<rect x="{KEY_STEP * number:g}" y="{high + 14:.1f}" width="18" height="18" fill="{colour}"/>'
        f'<text x="{KEY_STEP * number + 24:g}" y="{high + 29:.1f}" stroke="none">{words}</text>'
        for number, (colour, words) in enumerate(KEY)
    )
    box = f"-1 -1 {max(wide, KEY_STEP * len(KEY)) + 2:.1f} {high + KEY_LINE:.1f}"
    return (
        f'<svg viewBox="{box}" role="img" xmlns="http://www.w3.org/2000/svg" font-size="17">'
        f'<g stroke="#555" stroke-width="0.6">{paths}{key}</g></svg>'
    )


def _path(shape: BaseGeometry, left: float, top: float, wide: float, high: float) -> str:
    simple = shape.simplify(0.3 / high)
    rings = [
        ring
        for part in shapely.get_parts(simple)
        if part.geom_type == "Polygon"
        for ring in (part.exterior, *part.interiors)
    ]
    return "".join(
        "M" + "L".join(f"{(x - left) * wide:.1f} {(top - y) * high:.1f}" for x, y in ring.coords[:-1]) + "Z"
        for ring in rings
    )


def _colour(share: float | None) -> str:
    if share is None:
        return NO_VALUE_COLOUR
    return next(colour for low, colour in reversed(STEPS) if share >= low)
