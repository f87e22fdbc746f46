"""Roofs of several parts with four slopes each, as houses of a subdivision have them."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from deltavlm.data.synthetic.plan import Points, Rng, polygon
from deltavlm.data.synthetic.render import Light
from deltavlm.data.synthetic.texture import Floats, to_rgb

SHINGLES = [
    (74, 70, 68), (92, 88, 86), (108, 102, 96), (84, 76, 70), (124, 114, 104), (100, 86, 76),
    (140, 132, 124), (150, 104, 84), (66, 66, 72),
]  # fmt: skip
"""Base colors (R, G, B) of the roofs of a subdivision, which are mostly alike."""
Wing = tuple[float, float, float, float]


def random_wings(rng: Rng) -> tuple[Wing, ...]:
    """Parts of a roof, each with four slopes, as (x, y, length, depth) in shares of the house: a main one and
    one to three that stand out of it at the street and at the yard."""
    low, high = rng.uniform(-0.5, -0.28), rng.uniform(0.28, 0.5)  # where the main part begins and ends
    wings = [(0.0, (low + high) / 2, 1.0, high - low)]
    for _ in range(int(rng.integers(1, 4))):
        length, side = rng.uniform(0.3, 0.6), rng.choice([-1, 1])
        reach = rng.uniform(0.1, 0.3)  # beyond the ridge of the main part
        start, end = -reach, 0.5
        x = rng.uniform(-0.5, 0.5) * (1 - length)
        wings.append((x, side * (start + end) / 2, length, end - start))
    return tuple(wings)


def draw_hip(draw: ImageDraw.ImageDraw, corners: Points, color: Floats, light: Light) -> None:
    """Draw a roof with four slopes, each as bright as it faces the sun, and its ridge."""
    center, sun = corners.mean(axis=0), np.array([light.dx, light.dy])
    edges = np.roll(corners, -1, axis=0) - corners
    sides = np.hypot(*edges.T)
    long = int(sides[1] > sides[0])  # the ridge is along this edge
    inset = edges[long] / max(sides[long], 1e-6) * max(0.0, (sides[long] - sides[1 - long]) / 2)
    ridge = center - inset, center + inset
    for index in range(4):
        a, b = corners[index], corners[(index + 1) % 4]
        outwards = (a + b) / 2 - center
        facing = float(-(outwards @ sun) / (np.hypot(*outwards) * np.hypot(*sun) + 1e-6))
        near = sorted(ridge, key=lambda point: float(np.hypot(*(point - a))))
        far = sorted(ridge, key=lambda point: float(np.hypot(*(point - b))))
        slope = np.stack([a, b, far[0], near[0]])
        draw.polygon(polygon(slope), fill=to_rgb(color * np.float32(1 + 0.22 * facing)))
    draw.line(polygon(np.stack(ridge)), fill=to_rgb(color * 1.12), width=1)
