"""What stands where, and when: a plan of land, roads, houses, trees and water for two dates. Geometry
only, no pixels.

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
Ground = Literal["soil", "construction", "parking", "lawn", "drive"]


@dataclass(slots=True)
class Road:
    line: Points
    width: float
    surface: Literal["asphalt", "concrete", "dirt"]
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


class Planner:
    """Fills one neighbourhood (a square of `reach` around `centre`) of a plan, then lets something happen
    to it."""

    def __init__(self, rng: Rng, plan: Plan, centre: tuple[float, float], reach: float) -> None:
        self.rng, self.plan, self.centre, self.reach = rng, plan, centre, reach
        self.grain = rng.uniform(0, np.pi)  # the way that streets run here
        self.house_px = rng.uniform(19, 38) * plan.scale
        self.style = rng.choice(["gable", "hip", "flat", "ell"], p=[0.45, 0.25, 0.2, 0.1])
        self.yards = rng.choice([0.0, 0.3, 0.9])  # how many houses have their own ground
        self.yard: Ground = rng.choice(["lawn", "soil"])

    # -- pieces
    # ------------------------------------------------------------------------------------------------------

    def somewhere(self, share: float = 1.0) -> tuple[float, float]:
        half = self.reach / 2 * share
        return self.centre[0] + self.rng.uniform(-half, half), self.centre[1] + self.rng.uniform(-half, half)

    def road(self, when: When = "both", *, short: bool = False) -> Road:
        rng, scale = self.rng, self.plan.scale
        heading = self.grain + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.15)
        length = self.reach * (rng.uniform(0.35, 0.9) if short else rng.uniform(1.3, 1.8))
        x, y = self.somewhere(0.8)
        start = (x - np.cos(heading) * length / 2, y - np.sin(heading) * length / 2)
        surface = rng.choice(["asphalt", "concrete", "dirt"], p=[0.6, 0.25, 0.15])
        width = float(np.clip(rng.lognormal(np.log(12), 0.35), 6, 34)) * scale
        return Road(
            curve(rng, start, heading, length, rng.choice([0.1, 0.6, 1.6])), max(width, 3.0), surface, when
        )

    def house(self, centre: tuple[float, float], angle: float, when: When, *, grow: float = 1.0) -> House:
        rng = self.rng
        length = self.house_px * rng.uniform(0.8, 1.25) * grow
        depth = length * rng.uniform(0.55, 0.95)
        roof = self.style if rng.random() < 0.7 else rng.choice(["gable", "hip", "flat", "ell"])
        height = (rng.uniform(5, 10) if grow < 1.6 else rng.uniform(8, 16)) * self.plan.scale
        return House(
            centre, length, depth, angle, height, "flat" if grow > 1.6 and rng.random() < 0.7 else roof, when
        )

    def fits(self, house: House) -> bool:
        """Clear of every other house and road, whatever their dates, and of water."""
        middle = np.asarray(house.centre)
        x, y = house.centre
        for other in self.plan.houses_near(house.centre):
            if np.hypot(x - other.centre[0], y - other.centre[1]) < 0.85 * (house.radius + other.radius):
                return False
        if any(road.reaches(house.centre, house.radius * 0.85 + road.width / 2) for road in self.plan.roads):
            return False
        for pond in self.plan.ponds:
            if np.min(np.hypot(*(pond.outline - middle).T)) < house.radius or inside(
                pond.outline, house.centre
            ):
                return False
        return True

    def try_house(self, house: House) -> bool:
        if not self.fits(house):
            return False
        self.plan.add_house(house)
        rng, (x, y) = self.rng, house.centre
        if rng.random() < self.yards:
            plot = rectangle(
                house.centre,
                house.length * rng.uniform(1.2, 1.9),
                house.depth * rng.uniform(1.3, 2.2),
                house.angle,
            )
            self.plan.patches.append(Patch(plot, self.yard if rng.random() < 0.8 else "drive", house.when))
        if rng.random() < 0.4:
            side, reach = rng.choice([-1, 1]), house.depth * rng.uniform(0.6, 1.1)
            door = (x - np.sin(house.angle) * side * reach, y + np.cos(house.angle) * side * reach)
            path = rectangle(door, house.length * rng.uniform(0.12, 0.35), house.depth, house.angle)
            self.plan.patches.append(Patch(path, "drive", house.when))
        return True

    def row(self, road: Road, when: When, *, share: float = 1.0, limit: int = 99) -> int:
        """Houses on both sides of a road; `share` of the lots are used. Returns how many stand."""
        rng, count = self.rng, 0
        steps = np.diff(road.line, axis=0)
        walked = np.concatenate([[0], np.cumsum(np.hypot(*steps.T))])
        gap = self.house_px * rng.uniform(1.25, 2.0)
        sides = [1, -1] if rng.random() < 0.7 else [int(rng.choice([1, -1]))]
        for side in sides:
            setback = road.width / 2 + self.house_px * rng.uniform(0.65, 1.1)
            at = rng.uniform(0, gap)
            while at < walked[-1] and count < limit:
                here = int(np.searchsorted(walked, at)) - 1
                here = min(max(here, 0), len(steps) - 1)
                angle = float(np.arctan2(steps[here][1], steps[here][0]))
                x = float(road.line[here][0] - np.sin(angle) * side * setback + rng.normal(0, 1.5))
                y = float(road.line[here][1] + np.cos(angle) * side * setback + rng.normal(0, 1.5))
                at += gap * rng.uniform(0.9, 1.15)
                near = (
                    abs(x - self.centre[0]) < self.reach * 0.62
                    and abs(y - self.centre[1]) < self.reach * 0.62
                )
                if near and rng.random() < share:
                    count += self.try_house(self.house((x, y), angle + rng.normal(0, 0.05), when))
        return count

    def scatter(self, number: int, when: When, *, grow: float = 1.0) -> int:
        angle, count = self.grain, 0
        for _ in range(number * 6):
            turn = angle + self.rng.choice([0, np.pi / 2]) + self.rng.normal(0, 0.12)
            count += self.try_house(self.house(self.somewhere(0.9), turn, when, grow=grow))
            if count >= number:
                break
        return count

    def wood(self, centre: tuple[float, float], radius: float, when: When, density: float = 1.0) -> Wood:
        rng = self.rng
        crown = rng.uniform(4.5, 9) * self.plan.scale
        number = int(min(260, density * (radius / crown) ** 2 * rng.uniform(0.5, 1.0)))
        reach = radius * np.sqrt(rng.random(number))
        turn = rng.uniform(0, 2 * np.pi, number)
        squash = rng.uniform(0.5, 1.0)
        x, y = reach * np.cos(turn), reach * np.sin(turn) * squash
        lean = rng.uniform(0, np.pi)
        xs, ys = x * np.cos(lean) - y * np.sin(lean), x * np.sin(lean) + y * np.cos(lean)
        size = crown * rng.uniform(0.6, 1.3, number)
        return Wood(np.stack([centre[0] + xs, centre[1] + ys, size], axis=1), when)

    def hedge(self) -> Wood:
        """A row of trees, as along a road or between fields."""
        rng = self.rng
        line = curve(
            rng,
            self.somewhere(),
            self.grain + rng.choice([0, np.pi / 2]),
            self.reach * rng.uniform(0.3, 1.2),
            0.3,
        )
        walk = np.interp(np.arange(0, len(line) - 1, rng.uniform(0.5, 1.4)), np.arange(len(line)), line[:, 0])
        down = np.interp(np.linspace(0, len(line) - 1, len(walk)), np.arange(len(line)), line[:, 1])
        size = rng.uniform(3.5, 8) * self.plan.scale * rng.uniform(0.7, 1.3, len(walk))
        return Wood(
            np.column_stack(
                [walk + rng.normal(0, 1.5, len(walk)), down + rng.normal(0, 1.5, len(walk)), size]
            )
        )

    # -- what was there already
    # --------------------------------------------------------------------------------------

    def settle(self) -> None:
        """The land as both dates know it."""
        rng, plan = self.rng, self.plan
        kind = rng.choice(
            ["open", "hamlet", "suburb", "village", "works", "wood"], p=[0.13, 0.17, 0.27, 0.23, 0.1, 0.1]
        )
        if rng.random() < 0.14:
            plan.ponds.append(Pond(blob(rng, self.somewhere(1.2), self.reach * rng.uniform(0.08, 0.35), 0.5)))
        for _ in range(rng.poisson({"open": 0.6, "wood": 0.5}.get(kind, 1.7))):
            plan.roads.append(self.road())
        if kind in ("suburb", "village"):
            if not plan.roads:
                plan.roads.append(self.road())
            for road in plan.roads[-3:]:
                self.row(road, "both", share=rng.uniform(0.5, 1.0))
        if kind == "village":
            self.scatter(int(rng.integers(6, 40)), "both")
        if kind == "hamlet":
            self.scatter(int(rng.integers(1, 6)), "both")
        if kind == "works":
            self.scatter(int(rng.integers(1, 5)), "both", grow=rng.uniform(1.6, 3.5))
            if rng.random() < 0.6:
                spot = rectangle(
                    self.somewhere(), self.reach * rng.uniform(0.1, 0.3), self.reach * 0.15, self.grain
                )
                plan.patches.append(Patch(spot, "parking"))
        if kind == "wood":
            for _ in range(int(rng.integers(2, 6))):
                plan.woods.append(self.wood(self.somewhere(1.2), self.reach * rng.uniform(0.2, 0.5), "both"))
        for _ in range(rng.poisson(1.5)):
            plan.woods.append(
                self.wood(self.somewhere(1.1), self.reach * rng.uniform(0.05, 0.25), "both", 0.7)
            )
        for _ in range(rng.poisson(1.0)):
            plan.woods.append(self.hedge())
        if rng.random() < 0.7:
            number = int(rng.integers(5, 50))
            spots = np.stack([self.somewhere(1.2) for _ in range(number)])
            plan.woods.append(
                Wood(np.column_stack([spots, rng.uniform(2.5, 9, number) * plan.scale]), "both")
            )
        for _ in range(rng.poisson(rng.choice([0.3, 2, 8]))):
            grounds: list[Ground] = ["soil", "lawn", "drive"]
            plan.patches.append(
                Patch(
                    blob(rng, self.somewhere(1.1), self.reach * rng.uniform(0.015, 0.15)),
                    grounds[int(rng.integers(3))],
                )
            )

    # -- what happens
    # ------------------------------------------------------------------------------------------------

    def clear(self, centre: tuple[float, float], radius: float) -> None:
        """Trees of standing woods within the circle are cut between the dates."""
        for wood in [w for w in self.plan.woods if w.when == "both"]:
            hit = np.hypot(wood.trees[:, 0] - centre[0], wood.trees[:, 1] - centre[1]) < radius
            if hit.sum() > 3:
                self.plan.woods.append(Wood(wood.trees[hit], "removed"))
                wood.trees = wood.trees[~hit]

    def happen(self, event: str) -> None:
        """Lets one named thing happen between the dates."""
        rng, plan = self.rng, self.plan
        if event == "estate":
            if rng.random() < 0.3:
                plan.woods.append(self.wood(self.centre, self.reach * rng.uniform(0.25, 0.5), "removed"))
            start = len(plan.houses)
            for _ in range(int(rng.integers(1, 3))):
                road = self.road("built", short=rng.random() < 0.6)
                plan.roads.append(road)
                self.drop_crossed(road)
                self.row(road, "built", share=rng.uniform(0.5, 1.0))
            if rng.random() < 0.5:
                for house in plan.houses[start:]:
                    plan.patches.append(
                        Patch(
                            blob(rng, house.centre, house.radius * 1.7), rng.choice(["lawn", "soil"]), "built"
                        )
                    )
        elif event == "row":
            roads = [r for r in plan.roads if r.when == "both"]
            if not roads:
                plan.roads.append(self.road())
                roads = [plan.roads[-1]]
                self.drop_crossed(roads[0])
            self.row(
                roads[int(rng.integers(len(roads)))],
                "built",
                share=rng.uniform(0.4, 1.0),
                limit=int(rng.integers(2, 12)),
            )
        elif event == "houses":
            self.scatter(int(rng.choice([1, 1, 2, 3, 4, 6])), "built")
        elif event == "works":
            self.scatter(int(rng.choice([1, 1, 2, 3])), "built", grow=rng.uniform(1.6, 3.5))
            if rng.random() < 0.5:
                spot = rectangle(
                    self.somewhere(), self.reach * rng.uniform(0.15, 0.35), self.reach * 0.18, self.grain
                )
                plan.patches.append(Patch(spot, "parking", "built"))
        elif event == "road":
            for _ in range(int(rng.choice([1, 1, 1, 2]))):
                road = self.road("built", short=rng.random() < 0.3)
                plan.roads.append(road)
                self.drop_crossed(road)
        elif event == "road_gone":
            road = self.road("removed", short=True)
            plan.roads.append(road)
            self.drop_crossed(road)
        elif event == "demolish":
            standing = [h for h in plan.houses if h.when == "both"]
            if len(standing) < 2:
                self.scatter(int(rng.integers(1, 5)), "removed")
            else:
                rng.shuffle(standing)
                for house in standing[: int(rng.integers(1, max(2, len(standing) // 2) + 1))]:
                    house.when = "removed"
        elif event == "clear":
            centre, radius = self.somewhere(0.8), self.reach * rng.uniform(0.15, 0.4)
            plan.woods.append(self.wood(centre, radius, "removed"))
        elif event == "plant":
            plan.woods.append(self.wood(self.somewhere(0.8), self.reach * rng.uniform(0.15, 0.4), "built"))
        elif event == "pond":
            plan.ponds.append(
                Pond(blob(rng, self.somewhere(0.8), self.reach * rng.uniform(0.07, 0.2)), "built")
            )
        elif event == "construction":
            centre, radius = self.somewhere(0.8), self.reach * rng.uniform(0.1, 0.3)
            self.clear(centre, radius)
            plan.patches.append(Patch(blob(rng, centre, radius), "construction", "built"))

    def drop_crossed(self, road: Road) -> None:
        """A road goes where houses stood: those are not in the plan then."""
        self.plan.drop_houses(
            [h for h in self.plan.houses if road.gap(h.centre) <= h.radius * 0.85 + road.width / 2]
        )


EVENTS = [
    "estate",
    "row",
    "houses",
    "works",
    "road",
    "road_gone",
    "demolish",
    "clear",
    "plant",
    "pond",
    "construction",
]
ODDS = [0.24, 0.15, 0.17, 0.09, 0.09, 0.02, 0.08, 0.06, 0.02, 0.03, 0.05]


def inside(outline: Points, point: tuple[float, float]) -> bool:
    """Even-odd rule."""
    x, y = point
    ax, ay = outline.T
    bx, by = np.roll(ax, -1), np.roll(ay, -1)
    crosses = (ay > y) != (by > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = ax + (y - ay) * (bx - ax) / (by - ay)
    return bool(np.sum(crosses & (x < reach)) % 2)


def make_plan(rng: Rng, size: tuple[int, int], *, change: float = 0.55, scale: float | None = None) -> Plan:
    """A plan of `size` (width, height) pixels; each neighbourhood of about 300 px changes with probability
    `change`."""
    width, height = size
    if scale is None:
        scale = float(np.clip(np.exp(rng.normal(-0.15, 0.4)), 0.33, 1.6))
    plan = Plan(size, scale)
    columns, rows = max(1, round(width / 300)), max(1, round(height / 300))
    reach = max(width / columns, height / rows)
    planners = [
        Planner(rng, plan, ((column + 0.5) * width / columns, (row + 0.5) * height / rows), reach)
        for row in range(rows)
        for column in range(columns)
    ]
    for planner in planners:
        planner.settle()
    for planner in planners:
        if rng.random() < change:
            for event in rng.choice(EVENTS, size=1 + (rng.random() < 0.3), p=ODDS, replace=False):
                planner.happen(str(event))
    return plan
