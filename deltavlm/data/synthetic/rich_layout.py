"""Rare kinds of land for rich scenes: old towns, apartment blocks, halls, orchards, railways and more.

Each function adds one kind to the plan of a neighborhood, at both dates or at one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from deltavlm.data.synthetic.events import EVENTS, clear_trees, remove_crossed_houses
from deltavlm.data.synthetic.layout import Neighborhood
from deltavlm.data.synthetic.plan import House, Patch, Pond, Road, When, Wood, blob, rectangle

Point = tuple[float, float]


def _add_block(
    area: Neighborhood, point: Point, length: float, depth: float, height: float, when: When
) -> bool:
    """Add a building with a flat or gable roof along the streets; returns False where it does not fit."""
    roof: Literal["flat", "gable"] = "flat" if area.rng.random() < 0.75 else "gable"
    house = House(point, length, depth, area.street_angle, height * area.plan.scale, roof, when)
    if not area.fits(house):
        return False
    area.plan.add_house(house)
    return True


def _lot_centers(area: Neighborhood, reach: float, along: float, across: float) -> list[Point]:
    """Centers of a grid of lots of `along` x `across` pixels, aligned with the streets, at a random point."""
    rng = area.rng
    center = np.asarray(area.random_point(0.7))
    axis_along = np.array([np.cos(area.street_angle), np.sin(area.street_angle)])
    axis_across = np.array([-np.sin(area.street_angle), np.cos(area.street_angle)])
    cols, rows = max(1, int(reach / along)), max(1, int(reach * rng.uniform(0.4, 1.0) / across))
    points = [
        center + axis_along * (col - cols / 2) * along + axis_across * (row - rows / 2) * across
        for row in range(rows)
        for col in range(cols)
    ]
    return [(float(x), float(y)) for x, y in points]


def apartment_blocks(area: Neighborhood, when: When) -> None:
    """Apartment blocks: long and high, in parallel rows, with long shadows."""
    rng, scale = area.rng, area.plan.scale
    length, depth = rng.uniform(60, 150) * scale, rng.uniform(22, 36) * scale
    for point in _lot_centers(
        area, area.reach * rng.uniform(0.3, 0.8), length * 1.25, depth * rng.uniform(2.2, 4)
    ):
        if rng.random() < 0.8:
            _add_block(area, point, length * rng.uniform(0.7, 1.0), depth, rng.uniform(14, 34), when)


def old_town(area: Neighborhood, when: When) -> None:
    """Old town: small houses wall to wall, with courts and hardly a street."""
    rng, scale = area.rng, area.plan.scale
    side = rng.uniform(16, 30) * scale
    for point in _lot_centers(area, area.reach * rng.uniform(0.3, 0.9), side * 1.25, side * 1.25):
        if rng.random() < 0.85:
            length, depth = side * rng.uniform(0.7, 1.15), side * rng.uniform(0.6, 1.0)
            angle = area.street_angle + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.06)
            x, y = point[0] + rng.normal(0, 0.08) * side, point[1] + rng.normal(0, 0.08) * side
            roof = rng.choice(["gable", "flat", "hip"], p=[0.45, 0.4, 0.15])
            area.plan.add_house(House((x, y), length, depth, angle, rng.uniform(4, 9) * scale, roof, when))


def terraces(area: Neighborhood, when: When) -> None:
    """Terraces: rows of equal houses under one roof line."""
    rng, scale = area.rng, area.plan.scale
    length, depth = rng.uniform(70, 170) * scale, rng.uniform(16, 22) * scale
    for point in _lot_centers(
        area, area.reach * rng.uniform(0.3, 0.8), length * 1.15, depth * rng.uniform(2.4, 3.6)
    ):
        _add_block(area, point, length, depth, rng.uniform(6, 9), when)


def halls(area: Neighborhood, when: When) -> None:
    """Industrial halls with flat roofs, some on paved ground."""
    rng, scale = area.rng, area.plan.scale
    length = rng.uniform(60, 240) * scale
    depth = length * rng.uniform(0.35, 0.9)
    for point in _lot_centers(area, area.reach * rng.uniform(0.2, 0.7), length * 1.2, depth * 1.35):
        is_built = rng.random() < 0.75 and _add_block(area, point, length, depth, rng.uniform(8, 14), when)
        if is_built and rng.random() < 0.5:
            yard = rectangle(point, length * 1.18, depth * 1.3, area.street_angle)
            area.plan.patches.append(Patch(yard, "parking" if rng.random() < 0.3 else "drive", when))


def greenhouses(area: Neighborhood, when: When) -> None:
    """Greenhouses: long bright tunnels, side by side."""
    rng, scale = area.rng, area.plan.scale
    length, depth = rng.uniform(50, 130) * scale, rng.uniform(12, 18) * scale
    for point in _lot_centers(area, area.reach * rng.uniform(0.2, 0.5), length * 1.1, depth * 1.25):
        area.plan.patches.append(Patch(rectangle(point, length, depth, area.street_angle), "glass", when))


def orchard(area: Neighborhood, when: When) -> None:
    """Orchard: trees in a grid."""
    rng, scale = area.rng, area.plan.scale
    gap = rng.uniform(7, 14) * scale
    points = _lot_centers(area, area.reach * rng.uniform(0.2, 0.6), gap, gap * rng.uniform(1.0, 1.6))[:400]
    radii = gap * rng.uniform(0.25, 0.48) * rng.uniform(0.8, 1.2, len(points))
    area.plan.woods.append(Wood(np.column_stack([np.asarray(points), radii]), when))


def railway(area: Neighborhood, when: When) -> None:
    """Railway line."""
    road = area.road(when)
    area.plan.roads.append(Road(road.line, max(4.0, 9 * area.plan.scale), "rail", when))
    remove_crossed_houses(area.plan, area.plan.roads[-1])


def pools(area: Neighborhood) -> None:
    """Garden pools beside some houses, at both dates."""
    rng, scale = area.rng, area.plan.scale
    for house in area.plan.houses:
        if house.when == "both" and rng.random() < 0.25:
            x, y = house.center
            angle, distance = rng.uniform(0, 2 * np.pi), house.radius * rng.uniform(1.1, 1.4)
            point = (x + distance * np.cos(angle), y + distance * np.sin(angle))
            shape = rectangle(point, rng.uniform(9, 16) * scale, rng.uniform(5, 8) * scale, house.angle)
            area.plan.patches.append(Patch(shape, "pool"))


def construction_site(area: Neighborhood) -> None:
    """Construction site that exists at both dates."""
    outline = blob(area.rng, area.random_point(), area.reach * area.rng.uniform(0.1, 0.35))
    area.plan.patches.append(Patch(outline, "construction"))


BUILDERS: dict[str, Callable[[Neighborhood, When], None]] = {
    "apartment_blocks": apartment_blocks,
    "old_town": old_town,
    "terraces": terraces,
    "halls": halls,
    "orchard": orchard,
}
NEW_PROBABILITIES = {
    "apartment_blocks": 0.28,
    "old_town": 0.12,
    "terraces": 0.22,
    "halls": 0.3,
    "orchard": 0.08,
}


def lay_out(area: Neighborhood) -> None:
    """Add all that exists at both dates: the plain layout, and one or two of the rare kinds."""
    rng = area.rng
    if rng.random() < 0.25:  # water first, so that roads bridge it
        area.plan.ponds.append(
            Pond(blob(rng, area.random_point(1.3), area.reach * rng.uniform(0.1, 0.5), 0.6))
        )
    if rng.random() < 0.5:
        kinds = list(BUILDERS)
        for kind in rng.choice(kinds, int(rng.integers(1, 3)), replace=False, p=[0.2, 0.3, 0.2, 0.2, 0.1]):
            BUILDERS[str(kind)](area, "both")
    area.lay_out()
    for probability, add in ((0.12, greenhouses), (0.1, railway), (0.15, orchard)):
        if rng.random() < probability:
            add(area, "both")
    if rng.random() < 0.2:
        pools(area)
    if rng.random() < 0.15:
        construction_site(area)


def add_changes(area: Neighborhood) -> None:
    """Add one or two changes between the dates."""
    rng = area.rng
    for _ in range(1 + (rng.random() < 0.3)):
        if rng.random() < 0.45:
            kind = str(rng.choice(list(NEW_PROBABILITIES), p=list(NEW_PROBABILITIES.values())))
            if rng.random() < 0.3:
                clear_trees(area.plan, area.center, area.reach * 0.5)
            BUILDERS[kind](area, "built" if rng.random() < 0.88 else "removed")
        else:
            EVENTS[str(rng.choice(list(EVENTS)))](area)
