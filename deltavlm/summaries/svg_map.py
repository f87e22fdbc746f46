"""Small choropleth map as SVG: polygons in colours from yellow to red by a share or score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

__all__ = ["MAX_SHAPES", "svg_map"]

MAX_SHAPES = 4000  # more would make the page heavy
MAX_WIDTH, MAX_HEIGHT = 900.0, 420.0
STEPS = ((0.0, "#ffffe0"), (0.05, "#fed976"), (0.25, "#fd8d3c"), (0.5, "#f03b20"), (0.75, "#bd0026"))
NO_VALUE_COLOUR = "#bbbbbb"
LEGEND = ((NO_VALUE_COLOUR, "not analyzed"), *((colour, f"from {low:g}") for low, colour in STEPS))
LEGEND_STEP, LEGEND_HEIGHT = 150.0, 40.0
SIMPLIFY_PX = 0.3


def svg_map(shapes: Sequence[BaseGeometry | None], values: Sequence[float | None]) -> str | None:
    """Draw polygons in longitude and latitude, north up, with distances true at the centre of the map.

    Args:
        shapes: polygons; None is left out.
        values: a number from 0 to 1 for each polygon; None is drawn in grey.

    Returns:
        An SVG element; None if there are no polygons, too many, or if they span half the globe.
    """
    drawn = [(shape, value) for shape, value in zip(shapes, values, strict=True) if shape is not None]
    if not drawn or len(drawn) > MAX_SHAPES:
        return None
    west, south, east, north = shapely.total_bounds([shape for shape, _ in drawn])
    aspect = max(float(np.cos(np.radians((south + north) / 2))), 0.01)
    width, height = (east - west) * aspect, north - south
    if not (width > 0 and height > 0 and east - west < 180):
        return None
    scale = min(MAX_WIDTH / width, MAX_HEIGHT / height)
    origin, scales = (west, north), (aspect * scale, scale)
    paths = "".join(
        f'<path d="{_path(shape, origin, scales)}" fill="{_colour(value)}"/>' for shape, value in drawn
    )
    width_px, height_px = width * scale, height * scale
    legend = "".join(
        f'<rect x="{LEGEND_STEP * number:g}" y="{height_px + 14:.1f}" width="18" height="18" '
        f'fill="{colour}"/>'
        f'<text x="{LEGEND_STEP * number + 24:g}" y="{height_px + 29:.1f}" stroke="none">{label}</text>'
        for number, (colour, label) in enumerate(LEGEND)
    )
    box = f"-1 -1 {max(width_px, LEGEND_STEP * len(LEGEND)) + 2:.1f} {height_px + LEGEND_HEIGHT:.1f}"
    return (
        f'<svg viewBox="{box}" role="img" xmlns="http://www.w3.org/2000/svg" font-size="17">'
        f'<g stroke="#555" stroke-width="0.6">{paths}{legend}</g></svg>'
    )


def _path(shape: BaseGeometry, origin: tuple[float, float], scales: tuple[float, float]) -> str:
    """Path data of a polygon. `origin`: (west, north) of the map; `scales`: px per degree of (lon, lat)."""
    (west, north), (x_scale, y_scale) = origin, scales
    rings = [
        ring
        for polygon in shapely.get_parts(shape.simplify(SIMPLIFY_PX / y_scale))
        if polygon.geom_type == "Polygon"
        for ring in (polygon.exterior, *polygon.interiors)
    ]
    return "".join(
        "M"
        + "L".join(f"{(x - west) * x_scale:.1f} {(north - y) * y_scale:.1f}" for x, y in ring.coords[:-1])
        + "Z"
        for ring in rings
    )


def _colour(value: float | None) -> str:
    if value is None:
        return NO_VALUE_COLOUR
    return next(colour for low, colour in reversed(STEPS) if value >= low)
