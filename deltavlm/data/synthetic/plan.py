"""Plan of a scene: geometry of roads, houses, trees, water and special ground at two dates; no pixels.

Lengths are in pixels of the image; `scale` is the size of objects relative to 0.5 m per pixel. Points are
(x, y), x to the right and y down, as Pillow draws them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Rng = np.random.Generator
Points = npt.NDArray[np.float64]  # (n, 2) as x, y
When = Literal["both", "built", "removed"]
BLOCK_PX = 400  # side of a cell of the spatial index; no house is longer
Ground = Literal["soil", "construction", "parking", "lawn", "drive", "glass", "pool"]


@dataclass(slots=True)
class Road:
    """Road or railway along a center line."""

    line: Points
    width: float
    surface: Literal["asphalt", "concrete", "dirt", "rail"]
    when: When = "both"

    def distance(self, point: tuple[float, float]) -> float:
        """Distance of a point from the nearest vertex of the center line."""
        return float(np.min(np.hypot(*(self.line - np.asarray(point)).T)))

    def is_near(self, point: tuple[float, float], margin: float) -> bool:
        """True when the point is within `margin` of the line; the bounding box is tested first."""
        (xmin, ymin), (xmax, ymax) = self.line.min(axis=0) - margin, self.line.max(axis=0) + margin
        in_box = bool(xmin < point[0] < xmax and ymin < point[1] < ymax)
        return in_box and self.distance(point) < margin


@dataclass(slots=True)
class House:
    """Building with a rectangular footprint."""

    center: tuple[float, float]
    length: float
    depth: float
    angle: float  # radians
    height: float
    roof: Literal["gable", "hip", "flat", "ell"]
    when: When = "both"

    @property
    def radius(self) -> float:
        """Radius of the circle around the footprint."""
        return 0.5 * float(np.hypot(self.length, self.depth))

    @property
    def footprint(self) -> Points:
        """Outline on the ground, (n, 2)."""
        return rectangle(self.center, self.length, self.depth, self.angle)


@dataclass(slots=True)
class Wood:
    """Trees as rows (x, y, radius); `when` is "removed" if cut between the dates, "built" if planted."""

    trees: npt.NDArray[np.float64]
    when: When = "both"


@dataclass(slots=True)
class Patch:
    """Patch of special ground; `when` is "built" if it appears between the dates."""

    outline: Points
    ground: Ground
    when: When = "both"


@dataclass(slots=True)
class Pond:
    """Pond, lake or river."""

    outline: Points
    when: When = "both"


@dataclass(slots=True)
class Plan:
    """Objects of a scene, with an index of the houses."""

    size: tuple[int, int]  # width, height
    scale: float
    rich: bool = False  # the dates may differ in more than light and season
    roads: list[Road] = field(default_factory=list)
    houses: list[House] = field(default_factory=list)
    woods: list[Wood] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    ponds: list[Pond] = field(default_factory=list)
    _index: dict[tuple[int, int], list[House]] = field(default_factory=dict)

    def add_house(self, house: House) -> None:
        """Add a house to the plan and its index."""
        self.houses.append(house)
        self._index.setdefault(self._block(house.center), []).append(house)

    def remove_houses(self, houses: list[House]) -> None:
        """Remove houses from the plan and its index."""
        for house in houses:
            self.houses.remove(house)
            self._index[self._block(house.center)].remove(house)

    def houses_near(self, point: tuple[float, float]) -> list[House]:
        """Every house that could touch one at `point`, and some others."""
        col, row = self._block(point)
        blocks = [
            self._index.get((c, r), []) for c in (col - 1, col, col + 1) for r in (row - 1, row, row + 1)
        ]
        return [house for block in blocks for house in block]

    @staticmethod
    def _block(point: tuple[float, float]) -> tuple[int, int]:
        return int(point[0] // BLOCK_PX), int(point[1] // BLOCK_PX)


def rectangle(center: tuple[float, float], length: float, depth: float, angle: float) -> Points:
    """Corners of a rotated rectangle, in order, (4, 2)."""
    along = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * depth / 2
    middle = np.asarray(center)
    return np.stack(
        [middle - along - across, middle + along - across, middle + along + across, middle - along + across]
    )


def blob(rng: Rng, center: tuple[float, float], radius: float, roughness: float = 0.3) -> Points:
    """Random smooth closed outline of about `radius`."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    reach = np.ones_like(turn)
    for wave in range(2, 6):
        reach += roughness / wave * rng.normal() * np.cos(wave * turn + rng.uniform(0, 2 * np.pi))
    stretch = rng.uniform(0.6, 1.0)
    x, y = radius * reach * np.cos(turn), radius * reach * np.sin(turn) * stretch
    angle = rng.uniform(0, np.pi)
    return np.stack(
        [
            center[0] + x * np.cos(angle) - y * np.sin(angle),
            center[1] + x * np.sin(angle) + y * np.cos(angle),
        ],
        axis=1,
    )


def curve(rng: Rng, start: tuple[float, float], heading: float, length: float, bend: float) -> Points:
    """Random center line of a road from `start`, turning by up to `bend` radians over its length."""
    steps = max(3, int(length / 10))
    turn = np.cumsum(np.full(steps, rng.uniform(-bend, bend) / steps)) + heading
    if rng.random() < 0.25:  # an S
        turn = heading + (turn - heading) * np.sin(np.linspace(0, 2 * np.pi, steps))
    hops = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (length / steps)
    line: Points = np.asarray(start) + np.concatenate([np.zeros((1, 2)), np.cumsum(hops, axis=0)])
    return line


def polygon(points: Points) -> list[tuple[float, float]]:
    """Points as Pillow takes them."""
    return [(float(x), float(y)) for x, y in points]


def inside(outline: Points, point: tuple[float, float]) -> bool:
    """True when the point is in the outline, by the even-odd rule."""
    x, y = point
    ax, ay = outline.T
    bx, by = np.roll(ax, -1), np.roll(ay, -1)
    crosses = (ay > y) != (by > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = ax + (y - ay) * (bx - ax) / (by - ay)
    return bool(np.sum(crosses & (x < reach)) % 2)
