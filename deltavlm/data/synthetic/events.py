"""Change events: construction, demolition, clearing and planting in a neighborhood between the dates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from deltavlm.data.synthetic.layout import Neighborhood
from deltavlm.data.synthetic.plan import Patch, Plan, Pond, Road, Wood, blob, curve, rectangle

__all__ = ["EVENTS", "EVENT_PROBABILITIES", "clear_trees", "remove_crossed_houses", "subdivision"]


def estate(area: Neighborhood) -> None:
    """New roads with rows of houses, sometimes where trees stood."""
    rng, plan = area.rng, area.plan
    if rng.random() < 0.3:
        plan.woods.append(area.wood(area.center, area.reach * rng.uniform(0.25, 0.5), "removed"))
    start = len(plan.houses)
    for _ in range(int(rng.integers(1, 3))):
        road = area.road("built", short=rng.random() < 0.6)
        plan.roads.append(road)
        remove_crossed_houses(plan, road)
        area.add_row(road, "built", share=rng.uniform(0.5, 1.0))
    if rng.random() < 0.5:
        for house in plan.houses[start:]:
            yard = blob(rng, house.center, house.radius * 1.7)
            plan.patches.append(Patch(yard, rng.choice(["lawn", "soil"]), "built"))


def subdivision(area: Neighborhood) -> None:
    """A whole subdivision: parallel streets, new or there before, with new houses on both sides."""
    rng, plan = area.rng, area.plan
    if rng.random() < 0.7:  # of the whole image
        area.center = plan.size[0] / 2, plan.size[1] / 2
        area.reach = max(plan.size) * rng.uniform(0.8, 1.1)
    area.house_px = max(11.0, area.house_px * rng.uniform(0.6, 1.05))
    area.depths, area.gaps, area.clearance = (0.8, 1.35), (1.1, 1.45), 0.73
    area.yard_share, area.yard_ground = rng.choice([0.3, 0.9]), rng.choice(["lawn", "soil"], p=[0.7, 0.3])
    clear_trees(plan, area.center, area.reach * 0.6)
    if rng.random() < 0.5:
        site = rectangle(area.center, area.reach * 1.1, area.reach * rng.uniform(0.6, 1.1), area.street_angle)
        plan.patches.append(Patch(site, area.yard_ground, "built"))
    model, length = area.road("built" if rng.random() < 0.6 else "both"), area.reach * rng.uniform(1.0, 1.5)
    heading = area.street_angle + rng.normal(0, 0.05)
    start = np.asarray(area.center) - length / 2 * np.array([np.cos(heading), np.sin(heading)])
    line = curve(rng, (float(start[0]), float(start[1])), heading, length, rng.choice([0.05, 0.4]))
    across = np.array([-np.sin(heading), np.cos(heading)])
    width = model.width * rng.uniform(0.5, 1.0)
    spacing = width + area.house_px * rng.uniform(2.8, 3.8)  # two rows of lots back to back
    count = max(1, round(area.reach / spacing))
    offsets = spacing * (np.arange(count) - (count - 1) / 2 + rng.uniform(-0.3, 0.3))
    streets = [Road(line + offset * across, max(width, 3.0), model.surface, model.when) for offset in offsets]
    plan.roads.extend(streets)
    for street in streets:
        remove_crossed_houses(plan, street)
    for street in streets:
        area.add_row(street, "built", share=rng.uniform(0.7, 1.0))


def row(area: Neighborhood) -> None:
    """New houses along a road that exists at both dates."""
    rng, plan = area.rng, area.plan
    roads = [road for road in plan.roads if road.when == "both"]
    if not roads:
        roads = [area.road()]
        plan.roads.append(roads[0])
        remove_crossed_houses(plan, roads[0])
    road = roads[int(rng.integers(len(roads)))]
    share = rng.uniform(0.4, 1.0)
    area.add_row(road, "built", share=share, limit=int(rng.integers(2, 12)))


def houses(area: Neighborhood) -> None:
    """A few new houses at random points."""
    area.add_scattered(int(area.rng.choice([1, 1, 2, 3, 4, 6])), "built")


def works(area: Neighborhood) -> None:
    """New halls, sometimes with a parking lot."""
    rng = area.rng
    area.add_scattered(int(rng.choice([1, 1, 2, 3])), "built", grow=rng.uniform(1.6, 3.5))
    if rng.random() < 0.5:
        center, length = area.random_point(), area.reach * rng.uniform(0.15, 0.35)
        outline = rectangle(center, length, area.reach * 0.18, area.street_angle)
        area.plan.patches.append(Patch(outline, "parking", "built"))


def new_road(area: Neighborhood) -> None:
    """One or two new roads without houses."""
    rng = area.rng
    for _ in range(int(rng.choice([1, 1, 1, 2]))):
        road = area.road("built", short=rng.random() < 0.3)
        area.plan.roads.append(road)
        remove_crossed_houses(area.plan, road)


def remove_road(area: Neighborhood) -> None:
    """A short road that is removed."""
    road = area.road("removed", short=True)
    area.plan.roads.append(road)
    remove_crossed_houses(area.plan, road)


def demolish(area: Neighborhood) -> None:
    """Demolition of up to half of the houses."""
    rng = area.rng
    standing = [house for house in area.plan.houses if house.when == "both"]
    if len(standing) < 2:
        area.add_scattered(int(rng.integers(1, 5)), "removed")
        return
    rng.shuffle(standing)
    for house in standing[: int(rng.integers(1, max(2, len(standing) // 2) + 1))]:
        house.when = "removed"


def clear(area: Neighborhood) -> None:
    """Clearing of trees."""
    center, radius = area.random_point(0.8), area.reach * area.rng.uniform(0.15, 0.4)
    area.plan.woods.append(area.wood(center, radius, "removed"))


def plant(area: Neighborhood) -> None:
    """Planting of trees."""
    center, radius = area.random_point(0.8), area.reach * area.rng.uniform(0.15, 0.4)
    area.plan.woods.append(area.wood(center, radius, "built"))


def pond(area: Neighborhood) -> None:
    """A new pond."""
    center, radius = area.random_point(0.8), area.reach * area.rng.uniform(0.07, 0.2)
    area.plan.ponds.append(Pond(blob(area.rng, center, radius), "built"))


def construction(area: Neighborhood) -> None:
    """A construction site, cleared of trees."""
    center, radius = area.random_point(0.8), area.reach * area.rng.uniform(0.1, 0.3)
    clear_trees(area.plan, center, radius)
    area.plan.patches.append(Patch(blob(area.rng, center, radius), "construction", "built"))


EVENTS: Mapping[str, Callable[[Neighborhood], None]] = {
    "estate": estate,
    "row": row,
    "houses": houses,
    "works": works,
    "road": new_road,
    "road_gone": remove_road,
    "demolish": demolish,
    "clear": clear,
    "plant": plant,
    "pond": pond,
    "construction": construction,
}
"""Functions that add one event to the plan of a neighborhood; their order is part of a seed's scene. On real
ground there is `subdivision` too."""
EVENT_PROBABILITIES = [0.24, 0.15, 0.17, 0.09, 0.09, 0.02, 0.08, 0.06, 0.02, 0.03, 0.05]


def clear_trees(plan: Plan, center: tuple[float, float], radius: float) -> None:
    """Cut the trees within a circle between the dates."""
    for wood in [wood for wood in plan.woods if wood.when == "both"]:
        in_circle = np.hypot(wood.trees[:, 0] - center[0], wood.trees[:, 1] - center[1]) < radius
        if in_circle.sum() > 3:
            plan.woods.append(Wood(wood.trees[in_circle], "removed"))
            wood.trees = wood.trees[~in_circle]


def remove_crossed_houses(plan: Plan, road: Road) -> None:
    """Remove the houses that a road would cross, from both dates."""
    plan.remove_houses(
        [h for h in plan.houses if road.distance(h.center) <= h.radius * 0.85 + road.width / 2]
    )
