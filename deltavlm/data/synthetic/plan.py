"""What stands where, and when: land, roads, houses, trees and water at two dates. Geometry only, no pixels.

Lengths are in pixels of the picture; `scale` turns the sizes of things at 0.5 m per pixel into the sizes
drawn. Points are (x, y), x to the right and y down, as drawing wants them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Rng = np.random.Generator
Points = npt.NDArray[np.float64]  # (n, 2) as x, y
When = Literal["both", "built", "removed"]
BLOCK_PX = 400  # no house is longer
Ground = Literal["soil", "construction", "parking", "lawn", "drive", "glass", "pool"]


@dataclass(slots=True)
class Road:
    line: Points
    width: float
    surface: Literal["asphalt", "concrete", "dirt", "rail"]
    when: When = "both"

    def gap(self, spot: tuple[float, float]) -> float:
        """From a point to the nearest corner of the middle line."""
        return float(np.min(np.hypot(*(self.line - np.asarray(spot)).T)))

    def reaches(self, spot: tuple[float, float], margin: float) -> bool:
        """Whether the point lies within `margin` of the line, checked cheaply first."""
        (left, top), (right, bottom) = self.line.min(axis=0) - margin, self.line.max(axis=0) + margin
        return bool(left < spot[0] < right and top < spot[1] < bottom) and self.gap(spot) < margin


@dataclass(slots=True)
class House:
    centre: tuple[float, float]
    length: float
    depth: float
    angle: float  # radians
    height: float
    roof: Literal["gable", "hip", "flat", "ell"]
    when: When = "both"

    @property
    def radius(self) -> float:
        return 0.5 * float(np.hypot(self.length, self.depth))


@dataclass(slots=True)
class Wood:
    """Trees as (x, y, radius) rows. `when` "removed" means cleared between the dates, "built" planted."""

    trees: npt.NDArray[np.float64]
    when: When = "both"


@dataclass(slots=True)
class Patch:
    """A stretch of special ground; `when` "built" means that it appears between the dates."""

    outline: Points
    ground: Ground
    when: When = "both"


@dataclass(slots=True)
class Pond:
    outline: Points
    when: When = "both"


@dataclass(slots=True)
class Plan:
    size: tuple[int, int]  # width, height
    scale: float
    rich: bool = False  # whether the two dates may differ in more than light and season
    roads: list[Road] = field(default_factory=list)
    houses: list[House] = field(default_factory=list)
    woods: list[Wood] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    ponds: list[Pond] = field(default_factory=list)
    _blocks: dict[tuple[int, int], list[House]] = field(default_factory=dict)

    def add_house(self, house: House) -> None:
        self.houses.append(house)
        self._blocks.setdefault(self._block(house.centre), []).append(house)

    def drop_houses(self, dropped: list[House]) -> None:
        for house in dropped:
            self.houses.remove(house)
            self._blocks[self._block(house.centre)].remove(house)

    def houses_near(self, spot: tuple[float, float]) -> list[House]:
        """Every house that could touch one at `spot`, and some others."""
        col, row = self._block(spot)
        blocks = [
            self._blocks.get((c, r), []) for c in (col - 1, col, col + 1) for r in (row - 1, row, row + 1)
        ]
        return [house for block in blocks for house in block]

    @staticmethod
    def _block(spot: tuple[float, float]) -> tuple[int, int]:
        return int(spot[0] // BLOCK_PX), int(spot[1] // BLOCK_PX)


def rectangle(centre: tuple[float, float], length: float, depth: float, angle: float) -> Points:
    """Four corners of a turned rectangle, in order."""
    along = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * depth / 2
    middle = np.asarray(centre)
    return np.stack(
        [middle - along - across, middle + along - across, middle + along + across, middle - along + across]
    )


def blob(rng: Rng, centre: tuple[float, float], radius: float, roughness: float = 0.3) -> Points:
    """A smooth closed outline of about `radius`."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    reach = np.ones_like(turn)
    for wave in range(2, 6):
        reach += roughness / wave * rng.normal() * np.cos(wave * turn + rng.uniform(0, 2 * np.pi))
    stretch = rng.uniform(0.6, 1.0)
    x, y = radius * reach * np.cos(turn), radius * reach * np.sin(turn) * stretch
    angle = rng.uniform(0, np.pi)
    return np.stack(
        [
            centre[0] + x * np.cos(angle) - y * np.sin(angle),
            centre[1] + x * np.sin(angle) + y * np.cos(angle),
        ],
        axis=1,
    )


def curve(rng: Rng, start: tuple[float, float], heading: float, length: float, bend: float) -> Points:
    """A road's middle line from `start`, turning by up to `bend` radians over its length."""
    steps = max(3, int(length / 10))
    turn = np.cumsum(np.full(steps, rng.uniform(-bend, bend) / steps)) + heading
    if rng.random() < 0.25:  # an S
        turn = heading + (turn - heading) * np.sin(np.linspace(0, 2 * np.pi, steps))
    hops = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (length / steps)
    line: Points = np.asarray(start) + np.concatenate([np.zeros((1, 2)), np.cumsum(hops, axis=0)])
    return line


def polygon(points: Points) -> list[tuple[float, float]]:
    """As Pillow wants it."""
    return [(float(x), float(y)) for x, y in points]


def inside(outline: Points, point: tuple[float, float]) -> bool:
    """Even-odd rule."""
    x, y = point
    ax, ay = outline.T
    bx, by = np.roll(ax, -1), np.roll(ay, -1)
    crosses = (ay > y) != (by > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = ax + (y - ay) * (bx - ax) / (by - ay)
    return bool(np.sum(crosses & (x < reach)) % 2)
