"""What happens to a neighbourhood between the two dates."""

from __future__ import annotations

import numpy as np

from deltavlm.data.synthetic.layout import Neighbourhood
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
ODDS = [0.24, 0.15, 0.17, 0.09, 0.09, 0.02, 0.08, 0.06, 0.02, 0.03, 0.05]


def clear(plan: Plan, centre: tuple[float, float], radius: float) -> None:
    """Trees of standing woods within the circle are cut between the dates."""
    for wood in [w for w in plan.woods if w.when == "both"]:
        hit = np.hypot(wood.trees[:, 0] - centre[0], wood.trees[:, 1] - centre[1]) < radius
        if hit.sum() > 3:
            plan.woods.append(Wood(wood.trees[hit], "removed"))
            wood.trees = wood.trees[~hit]


def happen(place: Neighbourhood, event: str) -> None:
    """Lets one named thing happen between the dates."""
    rng, plan = place.rng, place.plan
    if event == "estate":
        if rng.random() < 0.3:
            plan.woods.append(place.wood(place.centre, place.reach * rng.uniform(0.25, 0.5), "removed"))
        start = len(plan.houses)
        for _ in range(int(rng.integers(1, 3))):
            road = place.road("built", short=rng.random() < 0.6)
            plan.roads.append(road)
            drop_crossed(plan, road)
            place.row(road, "built", share=rng.uniform(0.5, 1.0))
        if rng.random() < 0.5:
            for house in plan.houses[start:]:
                plan.patches.append(
                    Patch(blob(rng, house.centre, house.radius * 1.7), rng.choice(["lawn", "soil"]), "built")
                )
    elif event == "row":
        roads = [r for r in plan.roads if r.when == "both"]
        if not roads:
            plan.roads.append(place.road())
            roads = [plan.roads[-1]]
            drop_crossed(plan, roads[0])
        place.row(
            roads[int(rng.integers(len(roads)))],
            "built",
            share=rng.uniform(0.4, 1.0),
            limit=int(rng.integers(2, 12)),
        )
    elif event == "houses":
        place.scatter(int(rng.choice([1, 1, 2, 3, 4, 6])), "built")
    elif event == "works":
        place.scatter(int(rng.choice([1, 1, 2, 3])), "built", grow=rng.uniform(1.6, 3.5))
        if rng.random() < 0.5:
            spot = rectangle(
                place.somewhere(), place.reach * rng.uniform(0.15, 0.35), place.reach * 0.18, place.grain
            )
            plan.patches.append(Patch(spot, "parking", "built"))
    elif event == "road":
        for _ in range(int(rng.choice([1, 1, 1, 2]))):
            road = place.road("built", short=rng.random() < 0.3)
            plan.roads.append(road)
            drop_crossed(plan, road)
    elif event == "road_gone":
        road = place.road("removed", short=True)
        plan.roads.append(road)
        drop_crossed(plan, road)
    elif event == "demolish":
        standing = [h for h in plan.houses if h.when == "both"]
        if len(standing) < 2:
            place.scatter(int(rng.integers(1, 5)), "removed")
        else:
            rng.shuffle(standing)
            for house in standing[: int(rng.integers(1, max(2, len(standing) // 2) + 1))]:
                house.when = "removed"
    elif event == "clear":
        centre, radius = place.somewhere(0.8), place.reach * rng.uniform(0.15, 0.4)
        plan.woods.append(place.wood(centre, radius, "removed"))
    elif event == "plant":
        plan.woods.append(place.wood(place.somewhere(0.8), place.reach * rng.uniform(0.15, 0.4), "built"))
    elif event == "pond":
        plan.ponds.append(
            Pond(blob(rng, place.somewhere(0.8), place.reach * rng.uniform(0.07, 0.2)), "built")
        )
    elif event == "construction":
        centre, radius = place.somewhere(0.8), place.reach * rng.uniform(0.1, 0.3)
        clear(plan, centre, radius)
        plan.patches.append(Patch(blob(rng, centre, radius), "construction", "built"))


def drop_crossed(plan: Plan, road: Road) -> None:
    """A road goes where houses stood: those are not in the plan then."""
    plan.drop_houses([h for h in plan.houses if road.gap(h.centre) <= h.radius * 0.85 + road.width / 2])
