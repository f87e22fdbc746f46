"""Land beyond the plain neighbourhood: old towns, estates of slabs, terraces, halls, greenhouses, orchards,
railways, pools, building ground. Each piece puts itself into the plan, at both dates or at one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from deltavlm.data.synthetic.events import EVENTS, clear, drop_crossed, happen
from deltavlm.data.synthetic.layout import Neighbourhood
from deltavlm.data.synthetic.plan import House, Patch, Pond, Road, When, Wood, blob, rectangle

Spot = tuple[float, float]


def _stand(place: Neighbourhood, spot: Spot, length: float, depth: float, height: float, when: When) -> bool:
    """One flat or ridged block along the grain, where there is room for it."""
    roof: Literal["flat", "gable"] = "flat" if place.rng.random() < 0.75 else "gable"
    house = House(spot, length, depth, place.grain, height * place.plan.scale, roof, when)
    if not place.fits(house):
        return False
    place.plan.add_house(house)
    return True


def _lattice(place: Neighbourhood, reach: float, along: float, across: float) -> list[Spot]:
    """Middles of the lots of a grid along the grain, around a place in the neighbourhood."""
    rng = place.rng
    middle = np.asarray(place.somewhere(0.7))
    e, n = (
        np.array([np.cos(place.grain), np.sin(place.grain)]),
        np.array([-np.sin(place.grain), np.cos(place.grain)]),
    )
    cols, rows = max(1, int(reach / along)), max(1, int(reach * rng.uniform(0.4, 1.0) / across))
    spots = [
        middle + e * (col - cols / 2) * along + n * (row - rows / 2) * across
        for row in range(rows)
        for col in range(cols)
    ]
    return [(float(x), float(y)) for x, y in spots]


def slabs(place: Neighbourhood, when: When) -> None:
    """Blocks of flats: long, high, in parallel rows, with long shadows."""
    rng, scale = place.rng, place.plan.scale
    length, depth = rng.uniform(60, 150) * scale, rng.uniform(22, 36) * scale
    for spot in _lattice(
        place, place.reach * rng.uniform(0.3, 0.8), length * 1.25, depth * rng.uniform(2.2, 4)
    ):
        if rng.random() < 0.8:
            _stand(place, spot, length * rng.uniform(0.7, 1.0), depth, rng.uniform(14, 34), when)


def old_town(place: Neighbourhood, when: When) -> None:
    """Small houses wall to wall with courts between them, hardly a street to be seen."""
    rng, scale = place.rng, place.plan.scale
    side = rng.uniform(16, 30) * scale
    for spot in _lattice(place, place.reach * rng.uniform(0.3, 0.9), side * 1.25, side * 1.25):
        if rng.random() < 0.85:
            length, depth = side * rng.uniform(0.7, 1.15), side * rng.uniform(0.6, 1.0)
            turn = place.grain + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.06)
            x, y = spot[0] + rng.normal(0, 0.08) * side, spot[1] + rng.normal(0, 0.08) * side
            roof = rng.choice(["gable", "flat", "hip"], p=[0.45, 0.4, 0.15])
            place.plan.add_house(House((x, y), length, depth, turn, rng.uniform(4, 9) * scale, roof, when))


def terraces(place: Neighbourhood, when: When) -> None:
    """Rows of equal houses under one roof line."""
    rng, scale = place.rng, place.plan.scale
    length, depth = rng.uniform(70, 170) * scale, rng.uniform(16, 22) * scale
    for spot in _lattice(
        place, place.reach * rng.uniform(0.3, 0.8), length * 1.15, depth * rng.uniform(2.4, 3.6)
    ):
        _stand(place, spot, length, depth, rng.uniform(6, 9), when)


def halls(place: Neighbourhood, when: When) -> None:
    """Industrial halls with flat roofs on paved ground."""
    rng, scale = place.rng, place.plan.scale
    length = rng.uniform(60, 240) * scale
    depth = length * rng.uniform(0.35, 0.9)
    for spot in _lattice(place, place.reach * rng.uniform(0.2, 0.7), length * 1.2, depth * 1.35):
        stands = rng.random() < 0.75 and _stand(place, spot, length, depth, rng.uniform(8, 14), when)
        if stands and rng.random() < 0.5:
            yard = rectangle(spot, length * 1.18, depth * 1.3, place.grain)
            place.plan.patches.append(Patch(yard, "parking" if rng.random() < 0.3 else "drive", when))


def greenhouses(place: Neighbourhood, when: When) -> None:
    """Long light tunnels, side by side."""
    rng, scale = place.rng, place.plan.scale
    length, depth = rng.uniform(50, 130) * scale, rng.uniform(12, 18) * scale
    for spot in _lattice(place, place.reach * rng.uniform(0.2, 0.5), length * 1.1, depth * 1.25):
        place.plan.patches.append(Patch(rectangle(spot, length, depth, place.grain), "glass", when))


def orchard(place: Neighbourhood, when: When) -> None:
    """Trees in a grid."""
    rng, scale = place.rng, place.plan.scale
    gap = rng.uniform(7, 14) * scale
    spots = _lattice(place, place.reach * rng.uniform(0.2, 0.6), gap, gap * rng.uniform(1.0, 1.6))[:400]
    sizes = gap * rng.uniform(0.25, 0.48) * rng.uniform(0.8, 1.2, len(spots))
    place.plan.woods.append(Wood(np.column_stack([np.asarray(spots), sizes]), when))


def railway(place: Neighbourhood, when: When) -> None:
    road = place.road(when)
    place.plan.roads.append(Road(road.line, max(4.0, 9 * place.plan.scale), "rail", when))
    drop_crossed(place.plan, place.plan.roads[-1])


def pools(place: Neighbourhood) -> None:
    """Garden pools beside houses."""
    rng, scale = place.rng, place.plan.scale
    for house in place.plan.houses:
        if house.when == "both" and rng.random() < 0.25:
            x, y = house.centre
            turn, far = rng.uniform(0, 2 * np.pi), house.radius * rng.uniform(1.1, 1.4)
            spot = (x + far * np.cos(turn), y + far * np.sin(turn))
            shape = rectangle(spot, rng.uniform(9, 16) * scale, rng.uniform(5, 8) * scale, house.angle)
            place.plan.patches.append(Patch(shape, "pool"))


def building_ground(place: Neighbourhood) -> None:
    """Open ground that was there at both dates."""
    outline = blob(place.rng, place.somewhere(), place.reach * place.rng.uniform(0.1, 0.35))
    place.plan.patches.append(Patch(outline, "construction"))


BUILT: dict[str, Callable[[Neighbourhood, When], None]] = {
    "slabs": slabs,
    "old_town": old_town,
    "terraces": terraces,
    "halls": halls,
    "orchard": orchard,
}
NEW_ODDS = {"slabs": 0.28, "old_town": 0.12, "terraces": 0.22, "halls": 0.3, "orchard": 0.08}


def settle(place: Neighbourhood) -> None:
    """The plain land, and on it one or two of the rarer kinds."""
    rng = place.rng
    if rng.random() < 0.25:  # a river or lake first, so that roads bridge it
        place.plan.ponds.append(
            Pond(blob(rng, place.somewhere(1.3), place.reach * rng.uniform(0.1, 0.5), 0.6))
        )
    if rng.random() < 0.5:
        kinds = list(BUILT)
        for kind in rng.choice(kinds, int(rng.integers(1, 3)), replace=False, p=[0.2, 0.3, 0.2, 0.2, 0.1]):
            BUILT[str(kind)](place, "both")
    place.settle()
    for chance, piece in ((0.12, greenhouses), (0.1, railway), (0.15, orchard)):
        if rng.random() < chance:
            piece(place, "both")
    if rng.random() < 0.2:
        pools(place)
    if rng.random() < 0.15:
        building_ground(place)


def change(place: Neighbourhood) -> None:
    """One or two things that happen between the dates."""
    rng = place.rng
    for _ in range(1 + (rng.random() < 0.3)):
        if rng.random() < 0.45:
            kind = str(rng.choice(list(NEW_ODDS), p=list(NEW_ODDS.values())))
            if rng.random() < 0.3:
                clear(place.plan, place.centre, place.reach * 0.5)
            BUILT[kind](place, "built" if rng.random() < 0.88 else "removed")
        else:
            happen(place, str(rng.choice(EVENTS)))
