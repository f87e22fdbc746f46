"""Change events: construction, demolition, clearing and planting in a neighborhood between the dates."""

from __future__ import annotations

import numpy as np

from deltavlm.data.synthetic.layout import Neighborhood
from deltavlm.data.synthetic.plan import Patch, Plan, Pond, Road, Wood, blob, rectangle

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
EVENT_PROBABILITIES = [0.24, 0.15, 0.17, 0.09, 0.09, 0.02, 0.08, 0.06, 0.02, 0.03, 0.05]


def clear_trees(plan: Plan, center: tuple[float, float], radius: float) -> None:
    """Cut the trees within a circle between the dates."""
    for wood in [wood for wood in plan.woods if wood.when == "both"]:
        in_circle = np.hypot(wood.trees[:, 0] - center[0], wood.trees[:, 1] - center[1]) < radius
        if in_circle.sum() > 3:
            plan.woods.append(Wood(wood.trees[in_circle], "removed"))
            wood.trees = wood.trees[~in_circle]


def apply_event(area: Neighborhood, event: str) -> None:
    """Add one event of `EVENTS` to the plan of a neighborhood."""
    rng, plan = area.rng, area.plan
    if event == "estate":
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
                plan.patches.append(
                    Patch(blob(rng, house.center, house.radius * 1.7), rng.choice(["lawn", "soil"]), "built")
                )
    elif event == "row":
        roads = [r for r in plan.roads if r.when == "both"]
        if not roads:
            plan.roads.append(area.road())
            roads = [plan.roads[-1]]
            remove_crossed_houses(plan, roads[0])
        area.add_row(
            roads[int(rng.integers(len(roads)))],
            "built",
            share=rng.uniform(0.4, 1.0),
            limit=int(rng.integers(2, 12)),
        )
    elif event == "houses":
        area.add_scattered(int(rng.choice([1, 1, 2, 3, 4, 6])), "built")
    elif event == "works":
        area.add_scattered(int(rng.choice([1, 1, 2, 3])), "built", grow=rng.uniform(1.6, 3.5))
        if rng.random() < 0.5:
            outline = rectangle(
                area.random_point(),
                area.reach * rng.uniform(0.15, 0.35),
                area.reach * 0.18,
                area.street_angle,
            )
            plan.patches.append(Patch(outline, "parking", "built"))
    elif event == "road":
        for _ in range(int(rng.choice([1, 1, 1, 2]))):
            road = area.road("built", short=rng.random() < 0.3)
            plan.roads.append(road)
            remove_crossed_houses(plan, road)
    elif event == "road_gone":
        road = area.road("removed", short=True)
        plan.roads.append(road)
        remove_crossed_houses(plan, road)
    elif event == "demolish":
        standing = [h for h in plan.houses if h.when == "both"]
        if len(standing) < 2:
            area.add_scattered(int(rng.integers(1, 5)), "removed")
        else:
            rng.shuffle(standing)
            for house in standing[: int(rng.integers(1, max(2, len(standing) // 2) + 1))]:
                house.when = "removed"
    elif event == "clear":
        center, radius = area.random_point(0.8), area.reach * rng.uniform(0.15, 0.4)
        plan.woods.append(area.wood(center, radius, "removed"))
    elif event == "plant":
        plan.woods.append(area.wood(area.random_point(0.8), area.reach * rng.uniform(0.15, 0.4), "built"))
    elif event == "pond":
        plan.ponds.append(
            Pond(blob(rng, area.random_point(0.8), area.reach * rng.uniform(0.07, 0.2)), "built")
        )
    elif event == "construction":
        center, radius = area.random_point(0.8), area.reach * rng.uniform(0.1, 0.3)
        clear_trees(plan, center, radius)
        plan.patches.append(Patch(blob(rng, center, radius), "construction", "built"))


def remove_crossed_houses(plan: Plan, road: Road) -> None:
    """Remove the houses that a new road would cross, from both dates."""
    plan.remove_houses(
        [h for h in plan.houses if road.distance(h.center) <= h.radius * 0.85 + road.width / 2]
    )
