"""The truth of a plan: what changed where, which thing it is, and what was there before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from deltavlm.data.synthetic.plan import Plan, polygon, rectangle

Bytes = npt.NDArray[np.uint8]

# Codes of the change map. Built and removed are apart: the direction is half of a caption.
CHANGE_CLASSES = (
    "none",
    "building_built",
    "building_removed",
    "road_built",
    "road_removed",
    "trees_removed",
    "trees_planted",
    "water_new",
    "water_gone",
    "ground_opened",
    "ground_closed",
)
CHANGE_CODE = {name: code for code, name in enumerate(CHANGE_CLASSES)}
# Codes of the cover map: what was on the ground before, for "replacing the trees".
COVER_CLASSES = ("grass", "crops", "soil", "trees", "water", "built")
COVER_CODE = {name: code for code, name in enumerate(COVER_CLASSES)}


def rasterize_ground_truth(plan: Plan, land: Bytes) -> tuple[Bytes, npt.NDArray[np.uint16], Bytes]:
    """Change codes, ids of changed roads and buildings (0 none), and cover before; each (height, width).

    `land` is the cover of the bare fields, (height, width).
    """
    change, instances = Image.new("L", plan.size, 0), Image.new("I", plan.size, 0)
    cover = Image.fromarray(land)
    code, thing, under = ImageDraw.Draw(change), ImageDraw.Draw(instances), ImageDraw.Draw(cover)
    for patch in plan.patches:
        if patch.when == "both":
            under.polygon(
                polygon(patch.outline), fill=COVER_CODE["built" if patch.ground == "parking" else "soil"]
            )
        elif patch.ground in ("construction", "parking"):
            code.polygon(polygon(patch.outline), fill=CHANGE_CODE["ground_opened"])
    for wood in plan.woods:
        for x, y, r in wood.trees.tolist():
            if wood.when != "built":
                under.ellipse((x - r, y - r, x + r, y + r), fill=COVER_CODE["trees"])
            if wood.when != "both":
                kind = "trees_removed" if wood.when == "removed" else "trees_planted"
                code.ellipse((x - r, y - r, x + r, y + r), fill=CHANGE_CODE[kind])
    for pond in plan.ponds:
        if pond.when == "both":
            under.polygon(polygon(pond.outline), fill=COVER_CODE["water"])
            code.polygon(polygon(pond.outline), fill=0)
        else:
            code.polygon(
                polygon(pond.outline), fill=CHANGE_CODE["water_new" if pond.when == "built" else "water_gone"]
            )
    number = 0
    for when in (
        "built",
        "removed",
        "both",
    ):  # where a new road meets an old one, the old one is no change
        for road in plan.roads:
            if road.when == when:
                line, width = polygon(road.line), max(2, round(road.width))
                if when == "both":
                    under.line(line, fill=COVER_CODE["built"], width=width, joint="curve")
                    code.line(line, fill=0, width=width, joint="curve")
                    thing.line(line, fill=0, width=width, joint="curve")
                else:
                    number += 1
                    code.line(line, fill=CHANGE_CODE[f"road_{when}"], width=width, joint="curve")
                    thing.line(line, fill=number, width=width, joint="curve")
    for house in plan.houses:
        base = polygon(rectangle(house.centre, house.length, house.depth, house.angle))
        if house.when == "both":
            under.polygon(base, fill=COVER_CODE["built"])
            code.polygon(base, fill=0)
            thing.polygon(base, fill=0)
        else:
            number += 1
            code.polygon(base, fill=CHANGE_CODE[f"building_{house.when}"])
            thing.polygon(base, fill=number)
    return np.asarray(change), np.asarray(instances).astype(np.uint16), np.asarray(cover)
