"""Ground truth of a plan, rasterized: change classes, instance ids, and the cover before the change."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from deltavlm.data.synthetic.plan import Plan, polygon

Bytes = npt.NDArray[np.uint8]

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
"""Names of the codes of the change map. Built and removed differ, since captions tell the direction."""
CHANGE_CODE = {name: code for code, name in enumerate(CHANGE_CLASSES)}
COVER_CLASSES = ("grass", "crops", "soil", "trees", "water", "built", "road")
"""Names of the codes of the cover map, for captions such as "houses are built along the road"."""
COVER_CODE = {name: code for code, name in enumerate(COVER_CLASSES)}


def rasterize_ground_truth(plan: Plan, land: Bytes) -> tuple[Bytes, npt.NDArray[np.uint16], Bytes]:
    """Rasterize change codes, ids of changed roads and buildings (0: none) and cover before, (height, width).

    land: cover of the bare fields, (height, width).
    """
    change, instances = Image.new("L", plan.size, 0), Image.new("I", plan.size, 0)
    cover = Image.fromarray(land)
    draw_change, draw_instance, draw_cover = map(ImageDraw.Draw, (change, instances, cover))
    for patch in plan.patches:
        if patch.when == "both":
            draw_cover.polygon(
                polygon(patch.outline), fill=COVER_CODE["built" if patch.ground == "parking" else "soil"]
            )
        elif patch.ground in ("construction", "parking"):
            draw_change.polygon(polygon(patch.outline), fill=CHANGE_CODE["ground_opened"])
    for wood in plan.woods:
        for x, y, r in wood.trees.tolist():
            if wood.when != "built":
                draw_cover.ellipse((x - r, y - r, x + r, y + r), fill=COVER_CODE["trees"])
            if wood.when != "both":
                kind = "trees_removed" if wood.when == "removed" else "trees_planted"
                draw_change.ellipse((x - r, y - r, x + r, y + r), fill=CHANGE_CODE[kind])
    for pond in plan.ponds:
        if pond.when == "both":
            draw_cover.polygon(polygon(pond.outline), fill=COVER_CODE["water"])
            draw_change.polygon(polygon(pond.outline), fill=0)
        else:
            draw_change.polygon(
                polygon(pond.outline), fill=CHANGE_CODE["water_new" if pond.when == "built" else "water_gone"]
            )
    number = 0
    # roads of both dates are drawn last: where a new road meets one, nothing changed
    for when in ("built", "removed", "both"):
        for road in plan.roads:
            if road.when == when:
                line, width = polygon(road.line), max(2, round(road.width))
                if when == "both":
                    covered = COVER_CODE["built" if road.surface == "rail" else "road"]
                    draw_cover.line(line, fill=covered, width=width, joint="curve")
                    draw_change.line(line, fill=0, width=width, joint="curve")
                    draw_instance.line(line, fill=0, width=width, joint="curve")
                else:
                    number += 1
                    draw_change.line(line, fill=CHANGE_CODE[f"road_{when}"], width=width, joint="curve")
                    draw_instance.line(line, fill=number, width=width, joint="curve")
    for house in plan.houses:
        base = polygon(house.footprint)
        if house.when == "both":
            draw_cover.polygon(base, fill=COVER_CODE["built"])
            draw_change.polygon(base, fill=0)
            draw_instance.polygon(base, fill=0)
        else:
            number += 1
            draw_change.polygon(base, fill=CHANGE_CODE[f"building_{house.when}"])
            draw_instance.polygon(base, fill=number)
    return np.asarray(change), np.asarray(instances).astype(np.uint16), np.asarray(cover)
