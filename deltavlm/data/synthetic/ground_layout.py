"""Layout of a scene on real ground: where its tile has room, what is built, removed and hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from deltavlm.data.synthetic import events
from deltavlm.data.synthetic.ground_truth import CHANGE_CODE, COVER_CODE
from deltavlm.data.synthetic.layout import Neighborhood
from deltavlm.data.synthetic.plan import House, Patch, Plan, Points, Rng, Road, When, blob, inside
from deltavlm.data.synthetic.render import Bytes
from deltavlm.data.synthetic.scene import SceneOptions
from deltavlm.data.synthetic.texture import Floats
from deltavlm.data.synthetic.tiles import (
    BARE,
    BUILDING,
    ROAD,
    VEGETATION,
    WATER,
    CutoutHouse,
    GroundTiles,
    TileWindow,
    gray_of,
)

GROUND_EVENTS: Mapping[str, float] = {
    "subdivision": 0.34,
    "estate": 0.12,
    "row": 0.06,
    "houses": 0.15,
    "works": 0.10,
    "road": 0.08,
    "road_gone": 0.02,
    "demolish": 0.04,
    "clear": 0.02,
    "plant": 0.01,
    "pond": 0.02,
    "construction": 0.04,
}
"""Probability of each event on real ground."""
EVENTS = {**events.EVENTS, "subdivision": events.subdivision}


def guess_cover(pixels: Bytes) -> Bytes:
    """Cover codes by color, (height, width): a rule of thumb for tiles without a mask.

    Green is trees where dark or rough, else grass; smooth and dark or blue is water; gray is built where
    rough or bright; the rest, brown, is soil. Roads are not told from other built land.
    """
    half = np.asarray(Image.fromarray(pixels).reduce(2), np.float32)
    red, green, blue = (ndimage.uniform_filter(half[..., band], 3) for band in range(3))
    gray, level = (red + green + blue) / 3, gray_of(half)
    variance = ndimage.uniform_filter(level**2, 5) - ndimage.uniform_filter(level, 5) ** 2
    roughness = np.sqrt(np.maximum(variance, 0))
    cover = np.full(gray.shape, COVER_CODE["soil"], np.uint8)
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    cover[(chroma < 0.14 * gray) & ((roughness > 10) | (gray > 100))] = COVER_CODE["built"]
    greenness = 2 * green - red - blue
    is_green = greenness > np.maximum(7, 0.1 * gray)
    cover[is_green] = COVER_CODE["grass"]
    cover[(is_green | (gray < 70)) & ((gray < 90) | (roughness > 9))] = COVER_CODE["trees"]
    is_blue = (blue > red + 12) & (chroma > 0.12 * gray)
    is_sea = (roughness < 12) & (blue > red + 8) & (green > red + 12) & (greenness < 0.5 * gray)
    is_water = (roughness < 4) & ((gray < 55) | is_blue)
    cover[is_water | is_sea | ((roughness < 10) & is_blue & (blue > red + 20))] = COVER_CODE["water"]
    height, width = pixels.shape[:2]
    return cover.repeat(2, 0).repeat(2, 1)[:height, :width].copy()


COVER_OF_CLASS = {
    BUILDING: "built",
    ROAD: "road",
    BARE: "soil",
    WATER: "water",
}
"""Cover of the classes of a mask; vegetation is grass or trees by color."""


class Ground:
    """Tile window with its cover, and where on it something can be built."""

    def __init__(self, window: TileWindow) -> None:
        self.window = window
        self.cover = guess_cover(window.pixels)
        if window.classes is not None:
            is_green = window.classes == VEGETATION
            self.cover[is_green & (self.cover != COVER_CODE["trees"])] = COVER_CODE["grass"]
            for code, name in COVER_OF_CLASS.items():
                self.cover[window.classes == code] = COVER_CODE[name]
        level = gray_of(window.pixels)
        self.level = float(level.mean())
        used = [COVER_CODE[name] for name in ("water", "built", "road")]
        occupied = np.isin(self.cover, used).astype(np.float32)
        if window.classes is None:  # smooth gray is as often bare land as it is built
            rough = ndimage.uniform_filter(np.abs(level - ndimage.uniform_filter(level, 5)), 9)
            occupied[(self.cover == COVER_CODE["built"]) & (rough < 5)] = 0.3
        self.occupied = ndimage.uniform_filter(occupied, 5)

    def occupied_share(self, center: tuple[float, float], radius: float) -> float:
        """Share of a square around a point that buildings, roads or water take already."""
        (x, y), reach = center, max(2.0, radius * 0.8)
        rows, cols = (slice(max(0, int(at - reach)), max(0, int(at + reach) + 1), 2) for at in (y, x))
        around = self.occupied[rows, cols]
        return float(around.mean()) if around.size else 0.0

    def occupied_along(self, line: Points) -> float:
        """Mean share of the points of a line, as far as it is in the tile, that are taken already."""
        height, width = self.occupied.shape
        cols, rows = np.rint(line).astype(int).T
        is_inside = (cols >= 0) & (cols < width) & (rows >= 0) & (rows < height)
        return float(self.occupied[rows[is_inside], cols[is_inside]].mean()) if is_inside.any() else 1.0


@dataclass(frozen=True, slots=True)
class HiddenBuilding:
    """Building of the tile that is covered with ground from beside it at one date, or at both."""

    mask: npt.NDArray[np.bool_]  # (height, width) of the building
    cover: Floats  # (height, width) opacity of the ground over it and its edges
    source: tuple[int, int]  # (rows, cols) from a pixel to the one that covers it
    when: When  # "built": hidden at the first date; "removed": at the second; "both": at both


def hide_buildings(rng: Rng, ground: Ground, change: bool) -> list[HiddenBuilding]:
    """Draw a few compact buildings of the tile's mask that free ground beside them can cover.

    change: hide some at one date; else only at both, which leaves no change.
    """
    classes = ground.window.classes
    if classes is None:
        return []
    labels, count = ndimage.label(classes == BUILDING)
    boxes = ndimage.find_objects(labels)
    when: When = "built" if rng.random() < 0.6 else "removed"
    hidden: list[HiddenBuilding] = []
    for label in (rng.permutation(count)[:12] + 1).tolist():
        mask = labels == label
        if not 60 <= mask.sum() <= 0.08 * mask.size:
            continue
        rows, cols = boxes[label - 1]
        reach = np.array([rows.stop - rows.start, cols.stop - cols.start]) + 10
        cover = ndimage.binary_dilation(mask, iterations=5)
        is_free = np.isin(classes, [BARE, VEGETATION])
        for _ in range(8):
            angle = rng.uniform(0, 2 * np.pi)
            source = np.rint(reach * rng.uniform(0.8, 1.6) * (np.sin(angle), np.cos(angle))).astype(int)
            at_rows, at_cols = (axis + step for axis, step in zip(np.nonzero(cover), source, strict=True))
            inside = (at_rows >= 0) & (at_rows < mask.shape[0]) & (at_cols >= 0) & (at_cols < mask.shape[1])
            if inside.all() and is_free[at_rows, at_cols].mean() > 0.93:
                soft = ndimage.uniform_filter(
                    ndimage.binary_dilation(mask, iterations=3).astype(np.float32), 5
                )
                date = when if change and rng.random() < 0.8 else "both"
                hidden.append(HiddenBuilding(mask, soft, (int(source[0]), int(source[1])), date))
                break
        if len(hidden) >= 6:
            break
    return hidden


class GroundNeighborhood(Neighborhood):
    """Neighborhood that builds on free ground, some of the houses with roofs cut out of `tiles`."""

    def __init__(self, rng: Rng, plan: Plan, ground: Ground, tiles: GroundTiles | None) -> None:
        width, height = plan.size
        self.ground, self.tiles = ground, tiles
        reach = max(width, height) * rng.uniform(0.45, 1.0)
        corners = [
            (float(rng.uniform(0.2, 0.8) * width), float(rng.uniform(0.2, 0.8) * height)) for _ in range(4)
        ]
        center = min(corners, key=lambda point: ground.occupied_share(point, reach / 2))
        super().__init__(rng, plan, center, reach)
        self.tolerance = rng.choice([0.15, 0.3, 0.9], p=[0.5, 0.4, 0.1])
        self.cutout_share = float(rng.choice([0.0, 0.5, 1.0], p=[0.5, 0.3, 0.2]))

    def random_point(self, share: float = 1.0) -> tuple[float, float]:
        """Point in the inner `share` of the square: of three, the one on the freest ground."""
        points = [super(GroundNeighborhood, self).random_point(share) for _ in range(3)]
        return min(points, key=lambda point: self.ground.occupied_share(point, self.house_px))

    def road(self, when: When = "both", *, short: bool = False) -> Road:
        """Random road: of four, the one that crosses least of what the tile shows."""
        roads = [super(GroundNeighborhood, self).road(when, short=short) for _ in range(4)]
        return min(roads, key=lambda road: self.ground.occupied_along(road.line))

    def fits(self, house: House) -> bool:
        """True when the house is also clear of what the tile shows, or on ground that was cleared."""
        is_cleared = any(
            patch.when == "built" and inside(patch.outline, house.center) for patch in self.plan.patches
        )
        if not is_cleared and self.ground.occupied_share(house.center, house.radius) > self.tolerance:
            return False
        return super().fits(house)

    def house(self, center: tuple[float, float], angle: float, when: When, *, grow: float = 1.0) -> House:
        """Random house, drawn or cut out."""
        house = super().house(center, angle, when, grow=min(grow, 0.35 * min(self.plan.size) / self.house_px))
        if self.tiles is None or self.rng.random() >= self.cutout_share:
            return house
        length = house.length * self.rng.uniform(1.0, 1.3)
        cutout = self.tiles.draw_cutout(self.rng, length * 0.5 / self.plan.scale)
        if cutout is None:
            return house
        depth = length * cutout.pixels.shape[0] / cutout.pixels.shape[1]
        return CutoutHouse(center, length, depth, angle, house.height, "flat", when, cutout=cutout)


def lay_out(
    rng: Rng, plan: Plan, ground: Ground, tiles: GroundTiles, options: SceneOptions
) -> list[HiddenBuilding]:
    """Fill a plan: a few objects of both dates in most scenes, and changes. Returns buildings to hide."""
    change = 1 - (1 - options.change) ** (1 / options.downsample**2)
    count = max(1, round(plan.size[0] / 300)) * max(1, round(plan.size[1] / 300))
    names, probabilities = list(GROUND_EVENTS), list(GROUND_EVENTS.values())
    is_changed = rng.random(count) < change
    hidden = hide_buildings(rng, ground, bool(is_changed.any())) if rng.random() < 0.5 else []
    if "hidden" in options.without:
        hidden = []
    has_cutouts = "cutouts" not in options.without
    for changes in is_changed:
        area = GroundNeighborhood(rng, plan, ground, tiles if has_cutouts else None)
        if rng.random() < 0.55 and "unchanged" not in options.without:
            add_unchanged(area)
        if not changes or (count == 1 and any(building.when != "both" for building in hidden)):
            continue
        objects = count_changes(plan)
        for _ in range(4):  # on occupied ground an event may find no place
            area = GroundNeighborhood(rng, plan, ground, tiles if has_cutouts else None)
            for name in rng.choice(names, 1 + (rng.random() < 0.3), replace=False, p=probabilities):
                EVENTS[str(name)](area)
            if count_changes(plan) > objects:
                break
    return [building for building in hidden if is_clear(plan, building)]


def is_clear(plan: Plan, building: HiddenBuilding) -> bool:
    """True when no road and no house of the plan is drawn over the building."""
    rows, cols = np.nonzero(building.mask)
    center = (float(cols.mean()), float(rows.mean()))
    radius = float(np.hypot(np.ptp(rows), np.ptp(cols))) / 2
    if any(road.is_near(center, radius + road.width / 2 + 5) for road in plan.roads):
        return False
    return all(
        np.hypot(house.center[0] - center[0], house.center[1] - center[1]) > house.radius + radius
        for house in plan.houses
    )


def add_hidden(
    hidden: list[HiddenBuilding], change: Bytes, instances: npt.NDArray[np.uint16], cover: Bytes
) -> tuple[Bytes, npt.NDArray[np.uint16], Bytes]:
    """Ground truth with the hidden buildings: those of one date are changes, and hide their cover before."""
    change, instances, cover = change.copy(), instances.copy(), cover.copy()
    for building in hidden:
        if building.when != "removed":  # hidden at the first date: ground is there
            rows, cols = np.nonzero(building.mask)
            cover[rows, cols] = cover[rows + building.source[0], cols + building.source[1]]
        if building.when != "both":
            change[building.mask] = CHANGE_CODE[f"building_{building.when}"]
            instances[building.mask] = instances.max() + 1
    return change, instances, cover


def count_changes(plan: Plan) -> int:
    """Number of objects that exist at one date."""
    sites = [patch for patch in plan.patches if patch.ground in ("construction", "parking")]
    dates = [
        [item.when for item in items] for items in (plan.roads, plan.houses, plan.woods, plan.ponds, sites)
    ]
    return sum(when != "both" for when in chain.from_iterable(dates))


def add_unchanged(area: GroundNeighborhood) -> None:
    """Add objects of both dates, which look drawn and yet are no change."""
    rng, plan = area.rng, area.plan
    if rng.random() < 0.25:
        road = area.road("both", short=rng.random() < 0.4)
        plan.roads.append(road)
        if rng.random() < 0.6:
            area.add_row(road, "both", share=rng.uniform(0.3, 1.0), limit=int(rng.integers(2, 14)))
    if rng.random() < 0.7:
        area.add_scattered(int(rng.integers(1, 8)), "both")
    if rng.random() < 0.15:
        area.add_scattered(int(rng.integers(1, 3)), "both", grow=rng.uniform(1.6, 3.0))
    if rng.random() < 0.3:
        plan.woods.append(area.wood(area.random_point(), area.reach * rng.uniform(0.04, 0.2), "both"))
    if rng.random() < 0.15:
        outline = blob(rng, area.random_point(), area.reach * rng.uniform(0.05, 0.15))
        plan.patches.append(Patch(outline, rng.choice(["construction", "soil", "lawn", "drive"])))
