"""A neighbourhood laid out: roads first, houses along them, then trees, yards and water."""

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


class Neighbourhood:
    """A square of `reach` around `centre` of a plan, with its own grain of streets and kind of houses.

    Puts single things into the plan, and `settle` all that both dates know; `events` does the rest.
    """

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
