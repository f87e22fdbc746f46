"""Random layout of a neighborhood: roads, houses along them, trees, yards and water."""

from __future__ import annotations

import numpy as np

from deltavlm.data.synthetic.plan import (
    Ground,
    House,
    Patch,
    Plan,
    Pond,
    Rng,
    Road,
    When,
    Wood,
    blob,
    curve,
    inside,
    rectangle,
)


class Neighborhood:
    """Square of `reach` pixels around `center` of a plan, with its own street direction and kind of houses.

    Its methods add single objects to the plan; `lay_out` adds all that exists at both dates, and `events`
    adds the changes.
    """

    def __init__(self, rng: Rng, plan: Plan, center: tuple[float, float], reach: float) -> None:
        self.rng, self.plan, self.center, self.reach = rng, plan, center, reach
        self.street_angle = rng.uniform(0, np.pi)
        self.house_px = rng.uniform(19, 38) * plan.scale
        self.style = rng.choice(["gable", "hip", "flat", "ell"], p=[0.45, 0.25, 0.2, 0.1])
        self.yard_share = rng.choice([0.0, 0.3, 0.9])  # of houses with their own ground
        self.yard_ground: Ground = rng.choice(["lawn", "soil"])
        self.depths, self.gaps = (0.55, 0.95), (1.25, 2.0)  # of houses, and of lots along a road, in lengths
        self.clearance = 0.85  # least distance of two houses, as a share of the sum of their radii

    def random_point(self, share: float = 1.0) -> tuple[float, float]:
        """Point in the inner `share` of the square."""
        half = self.reach / 2 * share
        return self.center[0] + self.rng.uniform(-half, half), self.center[1] + self.rng.uniform(-half, half)

    def road(self, when: When = "both", *, short: bool = False) -> Road:
        """Random road, along the streets or across them."""
        rng, scale = self.rng, self.plan.scale
        heading = self.street_angle + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.15)
        length = self.reach * (rng.uniform(0.35, 0.9) if short else rng.uniform(1.3, 1.8))
        x, y = self.random_point(0.8)
        start = (x - np.cos(heading) * length / 2, y - np.sin(heading) * length / 2)
        surface = rng.choice(["asphalt", "concrete", "dirt"], p=[0.6, 0.25, 0.15])
        width = float(np.clip(rng.lognormal(np.log(12), 0.35), 6, 34)) * scale
        line = curve(rng, start, heading, length, rng.choice([0.1, 0.6, 1.6]))
        return Road(line, max(width, 3.0), surface, when)

    def house(self, center: tuple[float, float], angle: float, when: When, *, grow: float = 1.0) -> House:
        """Random house in the style of the neighborhood; `grow` makes it larger, as a hall."""
        rng = self.rng
        length = self.house_px * rng.uniform(0.8, 1.25) * grow
        depth = length * rng.uniform(*self.depths)
        roof = self.style if rng.random() < 0.7 else rng.choice(["gable", "hip", "flat", "ell"])
        height = (rng.uniform(5, 10) if grow < 1.6 else rng.uniform(8, 16)) * self.plan.scale
        if grow > 1.6 and rng.random() < 0.7:
            roof = "flat"
        return House(center, length, depth, angle, height, roof, when)

    def fits(self, house: House) -> bool:
        """True when the house is clear of all houses and roads of either date, and of water."""
        x, y = house.center
        for other in self.plan.houses_near(house.center):
            if np.hypot(x - other.center[0], y - other.center[1]) < self.clearance * (
                house.radius + other.radius
            ):
                return False
        if any(road.is_near(house.center, house.radius * 0.85 + road.width / 2) for road in self.plan.roads):
            return False
        for pond in self.plan.ponds:
            shore_distance = np.min(np.hypot(*(pond.outline - np.asarray(house.center)).T))
            if shore_distance < house.radius or inside(pond.outline, house.center):
                return False
        return True

    def add_house(self, house: House) -> bool:
        """Add a house with its yard and drive; returns False where it does not fit."""
        if not self.fits(house):
            return False
        self.plan.add_house(house)
        rng, (x, y) = self.rng, house.center
        if rng.random() < self.yard_share:
            plot = rectangle(
                house.center,
                house.length * rng.uniform(1.2, 1.9),
                house.depth * rng.uniform(1.3, 2.2),
                house.angle,
            )
            self.plan.patches.append(
                Patch(plot, self.yard_ground if rng.random() < 0.8 else "drive", house.when)
            )
        if rng.random() < 0.4:
            side, reach = rng.choice([-1, 1]), house.depth * rng.uniform(0.6, 1.1)
            door = (x - np.sin(house.angle) * side * reach, y + np.cos(house.angle) * side * reach)
            path = rectangle(door, house.length * rng.uniform(0.12, 0.35), house.depth, house.angle)
            self.plan.patches.append(Patch(path, "drive", house.when))
        return True

    def add_row(self, road: Road, when: When, *, share: float = 1.0, limit: int = 99) -> int:
        """Add houses along a road on a `share` of the lots; returns their number."""
        rng, count = self.rng, 0
        steps = np.diff(road.line, axis=0)
        distances = np.concatenate([[0], np.cumsum(np.hypot(*steps.T))])
        gap = self.house_px * rng.uniform(*self.gaps)
        sides = [1, -1] if rng.random() < 0.7 else [int(rng.choice([1, -1]))]
        for side in sides:
            setback = road.width / 2 + self.house_px * rng.uniform(0.65, 1.1)
            distance = rng.uniform(0, gap)
            while distance < distances[-1] and count < limit:
                segment = int(np.searchsorted(distances, distance)) - 1
                segment = min(max(segment, 0), len(steps) - 1)
                angle = float(np.arctan2(steps[segment][1], steps[segment][0]))
                x = float(road.line[segment][0] - np.sin(angle) * side * setback + rng.normal(0, 1.5))
                y = float(road.line[segment][1] + np.cos(angle) * side * setback + rng.normal(0, 1.5))
                distance += gap * rng.uniform(0.9, 1.15)
                is_inside = (
                    abs(x - self.center[0]) < self.reach * 0.62
                    and abs(y - self.center[1]) < self.reach * 0.62
                )
                if is_inside and rng.random() < share:
                    count += self.add_house(self.house((x, y), angle + rng.normal(0, 0.05), when))
        return count

    def add_scattered(self, number: int, when: When, *, grow: float = 1.0) -> int:
        """Add up to `number` houses at random points; returns their number."""
        count = 0
        for _ in range(number * 6):
            angle = self.street_angle + self.rng.choice([0, np.pi / 2]) + self.rng.normal(0, 0.12)
            count += self.add_house(self.house(self.random_point(0.9), angle, when, grow=grow))
            if count >= number:
                break
        return count

    def wood(self, center: tuple[float, float], radius: float, when: When, density: float = 1.0) -> Wood:
        """Random trees in an ellipse."""
        rng = self.rng
        crown = rng.uniform(4.5, 9) * self.plan.scale
        number = int(min(260, density * (radius / crown) ** 2 * rng.uniform(0.5, 1.0)))
        distance = radius * np.sqrt(rng.random(number))
        angle = rng.uniform(0, 2 * np.pi, number)
        aspect = rng.uniform(0.5, 1.0)
        x, y = distance * np.cos(angle), distance * np.sin(angle) * aspect
        axis = rng.uniform(0, np.pi)
        xs, ys = x * np.cos(axis) - y * np.sin(axis), x * np.sin(axis) + y * np.cos(axis)
        radii = crown * rng.uniform(0.6, 1.3, number)
        return Wood(np.stack([center[0] + xs, center[1] + ys, radii], axis=1), when)

    def hedge(self) -> Wood:
        """Random row of trees, as along a road or between fields."""
        rng = self.rng
        line = curve(
            rng,
            self.random_point(),
            self.street_angle + rng.choice([0, np.pi / 2]),
            self.reach * rng.uniform(0.3, 1.2),
            0.3,
        )
        xs = np.interp(np.arange(0, len(line) - 1, rng.uniform(0.5, 1.4)), np.arange(len(line)), line[:, 0])
        ys = np.interp(np.linspace(0, len(line) - 1, len(xs)), np.arange(len(line)), line[:, 1])
        radii = rng.uniform(3.5, 8) * self.plan.scale * rng.uniform(0.7, 1.3, len(xs))
        return Wood(
            np.column_stack([xs + rng.normal(0, 1.5, len(xs)), ys + rng.normal(0, 1.5, len(xs)), radii])
        )

    def lay_out(self) -> None:
        """Add all that exists at both dates."""
        rng, plan = self.rng, self.plan
        kind = rng.choice(
            ["open", "hamlet", "suburb", "village", "works", "wood"], p=[0.13, 0.17, 0.27, 0.23, 0.1, 0.1]
        )
        if rng.random() < 0.14:
            plan.ponds.append(
                Pond(blob(rng, self.random_point(1.2), self.reach * rng.uniform(0.08, 0.35), 0.5))
            )
        for _ in range(rng.poisson({"open": 0.6, "wood": 0.5}.get(kind, 1.7))):
            plan.roads.append(self.road())
        if kind in ("suburb", "village"):
            if not plan.roads:
                plan.roads.append(self.road())
            for road in plan.roads[-3:]:
                self.add_row(road, "both", share=rng.uniform(0.5, 1.0))
        if kind == "village":
            self.add_scattered(int(rng.integers(6, 40)), "both")
        if kind == "hamlet":
            self.add_scattered(int(rng.integers(1, 6)), "both")
        if kind == "works":
            self.add_scattered(int(rng.integers(1, 5)), "both", grow=rng.uniform(1.6, 3.5))
            if rng.random() < 0.6:
                outline = rectangle(
                    self.random_point(),
                    self.reach * rng.uniform(0.1, 0.3),
                    self.reach * 0.15,
                    self.street_angle,
                )
                plan.patches.append(Patch(outline, "parking"))
        if kind == "wood":
            for _ in range(int(rng.integers(2, 6))):
                plan.woods.append(
                    self.wood(self.random_point(1.2), self.reach * rng.uniform(0.2, 0.5), "both")
                )
        for _ in range(rng.poisson(1.5)):
            plan.woods.append(
                self.wood(self.random_point(1.1), self.reach * rng.uniform(0.05, 0.25), "both", 0.7)
            )
        for _ in range(rng.poisson(1.0)):
            plan.woods.append(self.hedge())
        if rng.random() < 0.7:
            number = int(rng.integers(5, 50))
            points = np.stack([self.random_point(1.2) for _ in range(number)])
            plan.woods.append(
                Wood(np.column_stack([points, rng.uniform(2.5, 9, number) * plan.scale]), "both")
            )
        for _ in range(rng.poisson(rng.choice([0.3, 2, 8]))):
            grounds: list[Ground] = ["soil", "lawn", "drive"]
            plan.patches.append(
                Patch(
                    blob(rng, self.random_point(1.1), self.reach * rng.uniform(0.015, 0.15)),
                    grounds[int(rng.integers(3))],
                )
            )
