"""Synthetic changes on real ground: tiles at both dates, drawn objects at one.

Distractors, which are no change, appear in changed and unchanged pairs alike: plants that grow, surfaces that
weather, recolored fields, vegetation tone, lengthened shadows, retoned roofs, cars, and drawn and cut out
buildings that exist at both dates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from deltavlm.data.synthetic import events
from deltavlm.data.synthetic.ground_truth import CHANGE_CODE, COVER_CODE, rasterize_ground_truth
from deltavlm.data.synthetic.imaging import photograph, random_light, warp_elastically
from deltavlm.data.synthetic.layout import Neighborhood
from deltavlm.data.synthetic.plan import House, Patch, Plan, Points, Rng, Road, When, blob, polygon, rectangle
from deltavlm.data.synthetic.render import Appearance, Bytes, DateView, Light, Renderer
from deltavlm.data.synthetic.scene import MARGIN, GroundPart, Scene, SceneOptions
from deltavlm.data.synthetic.texture import PALETTE, Floats, noise, random_color, to_rgb
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

__all__ = ["GroundTiles", "make_georeferenced_scene", "make_ground_scene"]

GROUND_EVENTS: Mapping[str, float] = {
    "subdivision": 0.24,
    "estate": 0.16,
    "row": 0.08,
    "houses": 0.18,
    "works": 0.12,
    "road": 0.07,
    "road_gone": 0.02,
    "demolish": 0.04,
    "clear": 0.02,
    "plant": 0.01,
    "pond": 0.02,
    "construction": 0.04,
}
"""Probability of each event on real ground."""
EVENTS = {**events.EVENTS, "subdivision": events.subdivision}


def make_ground_scene(
    seed: int,
    tiles: GroundTiles,
    width: int = 256,
    height: int = 256,
    options: SceneOptions = SceneOptions(),  # noqa: B008
) -> Scene:
    """Scene of a seed on the ground of a tile: the same arrays on every machine with the same tiles.

    The cover before the change comes from the tile's mask, else from its colors (`guess_cover`). A tile with
    another date is the ground at both, and nothing of its own land is altered: how its dates differ is what
    is no change. Three scenes in ten have the sensor artifacts of `SceneOptions.rich`, which this does not
    read.
    """
    rng = np.random.default_rng(seed)
    return _make_scene(rng, tiles, tiles.draw_window(rng, _render_size(width, height, options)), options)


def make_georeferenced_scene(
    seed: int,
    tiles: GroundTiles,
    width: int,
    height: int,
    options: SceneOptions = SceneOptions(),  # noqa: B008
) -> tuple[Scene, Path, tuple[int, int]]:
    """Scene of a seed on an unchanged window of a georeferenced tile, with the path of the tile and the
    (row, col) of the scene in it.

    Raises: InputError if no georeferenced tile is large enough.
    """
    rng = np.random.default_rng(seed)
    window = tiles.cut_window(rng, _render_size(width, height, options))
    assert window.offsets is not None
    row, col = window.offsets
    return _make_scene(rng, tiles, window, options), window.path, (row + MARGIN, col + MARGIN)


def _render_size(width: int, height: int, options: SceneOptions) -> tuple[int, int]:
    """(width, height) of a rendering with its margins."""
    return (width + 2 * MARGIN) * options.downsample, (height + 2 * MARGIN) * options.downsample


def _make_scene(rng: Rng, tiles: GroundTiles, window: TileWindow, options: SceneOptions) -> Scene:
    ground, downsample = Ground(window), options.downsample
    scale = options.scale or float(np.clip(0.5 / window.gsd_m, 0.3, 1.5))
    height, width = window.pixels.shape[:2]
    plan = Plan((width, height), scale, rich=True)
    hidden = lay_out(rng, plan, ground, tiles, options)
    renderer = GroundRenderer(rng, plan, ground, hidden, options.without)
    strength = rng.uniform(0.15, 0.9) if options.strength is None else options.strength
    has_artifacts = bool(rng.random() < 0.3)
    images = []
    for date in (0, 1):
        clean = Image.fromarray(renderer.render(rng, date, random_light(rng))).reduce(downsample)
        shift = options.misregistration_px * (date == 1) * rng.random()
        images.append(photograph(rng, np.asarray(clean), MARGIN, shift, strength, rich=has_artifacts))
    change, instances, cover = add_hidden(hidden, *rasterize_ground_truth(plan, ground.cover))
    inner = tuple(
        slice(MARGIN * downsample, side - MARGIN * downsample, downsample) for side in (height, width)
    )
    return Scene(images[0], images[1], change[inner].copy(), instances[inner].copy(), cover[inner].copy())


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


def random_tone(rng: Rng, light: float, color: float) -> Floats:
    """Random gain of each band, (3,): deviations of the logarithm in common and of each band."""
    return np.exp(rng.normal(0, light) + rng.normal(0, color, 3)).astype(np.float32)


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
        self.cutout_share = float(rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.35, 0.35]))

    def random_point(self, share: float = 1.0) -> tuple[float, float]:
        """Point in the inner `share` of the square: of three, the one on the freest ground."""
        points = [super(GroundNeighborhood, self).random_point(share) for _ in range(3)]
        return min(points, key=lambda point: self.ground.occupied_share(point, self.house_px))

    def road(self, when: When = "both", *, short: bool = False) -> Road:
        """Random road: of four, the one that crosses least of what the tile shows."""
        roads = [super(GroundNeighborhood, self).road(when, short=short) for _ in range(4)]
        return min(roads, key=lambda road: self.ground.occupied_along(road.line))

    def fits(self, house: House) -> bool:
        """True when the house is also clear of what the tile shows."""
        if self.ground.occupied_share(house.center, house.radius) > self.tolerance:
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


class GroundRenderer(Renderer):
    """Renderer of a plan on the ground of a tile.

    Objects are drawn in the tone of the first date. `tones_of_dates` turn both dates to theirs, drawn objects
    included: at the second date of a tile a drawn house is as bright or hazy as the land around it.
    """

    def __init__(
        self,
        rng: Rng,
        plan: Plan,
        ground: Ground,
        hidden: list[HiddenBuilding],
        without: tuple[GroundPart, ...],
    ) -> None:
        self.real, self.hidden, self.without = ground, hidden, without
        super().__init__(rng, plan)
        self.litter = 0.0  # drawn by `add_litter`, in colors of the tile
        self.pieces = float(rng.choice([0, 2, 6], p=[0.5, 0.3, 0.2])) * plan.size[0] * plan.size[1] / 288**2

    def choose_ground(self, rng: Rng) -> None:
        """Find plants, shadows and open land of the tile, and its fine texture for drawn objects."""
        pixels = self.real.window.pixels.astype(np.float32)
        self.pixels, size = pixels, self.plan.size
        self.dates, self.tones_of_dates = [pixels, pixels], [np.ones(3, np.float32)] * 2
        if self.real.window.after is not None:
            after = self.real.window.after.astype(np.float32)
            tone = np.clip((after.mean(axis=(0, 1)) + 1) / (pixels.mean(axis=(0, 1)) + 1), 0.4, 2.5)
            self.dates[1], self.tones_of_dates[1] = after / tone, tone
        red, green, blue = np.moveaxis(pixels, 2, 0)
        gray = gray_of(pixels)
        smooth = ndimage.uniform_filter(gray, 3)
        self.plants = np.clip((2 * green - red - blue) / 30, 0, 1)[..., None]
        dark = float(np.quantile(gray[::4, ::4], 0.3))
        self.shadow = np.clip((min(dark, 75.0) - smooth) / 15, 0, 1) * np.clip((blue - red + 25) / 20, 0, 1)
        is_field = np.isin(self.real.cover, [COVER_CODE[name] for name in ("grass", "crops", "soil")])
        self.open_land = ndimage.uniform_filter(is_field.astype(np.float32), 5)
        is_tree = (self.real.cover == COVER_CODE["trees"]).astype(np.float32)
        plants = np.maximum(self.plants[..., 0], ndimage.uniform_filter(is_tree, 3))
        self.wild = np.maximum(plants, self.open_land)
        self.growth = 0.0 if "growth" in self.without else float(rng.uniform(0, 1) ** 0.6)  # between dates
        fine = gray - ndimage.uniform_filter(gray, 7)
        shift = (int(rng.integers(size[1])), int(rng.integers(size[0])))
        self.detail = np.clip(np.roll(fine, shift, (0, 1)), -30, 30) * rng.uniform(0.1, 0.5)
        self.detail += noise(rng, size, 1.0) * rng.uniform(1, 7) + noise(rng, size, 3.0) * rng.uniform(0, 5)
        sharpness = float(np.abs(fine).mean())
        self.edge_blur = float(np.clip(rng.normal(0.6, 0.2) + (6 - sharpness) * 0.03, 0.3, 1.1))

    def choose_colors(self, rng: Rng) -> None:
        """Choose colors as bright as the tile; some roofs and roads have colors of the tile itself."""
        super().choose_colors(rng)
        gain = float(np.clip(self.real.level / 120, 0.65, 1.25)) ** 0.7
        for colors in (self.roofs, self.streets, self.crowns, self.waters, self.grounds):
            colors[:] = [color * np.float32(gain * np.exp(rng.normal(0, 0.08))) for color in colors]
        for colors, share in ((self.roofs, 0.25), (self.streets, 0.5), (self.grounds, 0.4)):
            for index in range(len(colors)):
                if rng.random() < share:
                    row, col = (int(rng.integers(side)) for side in self.pixels.shape[:2])
                    around = self.pixels[max(0, row - 2) : row + 3, max(0, col - 2) : col + 3]
                    colors[index] = colors[index] * 0.3 + around.mean(axis=(0, 1)) * 0.7
        self.tones = [random_tone(rng, 0.08, 0.03) for _ in self.plan.houses]

    def without_hidden(self, date: int) -> Floats:
        """Tile at a date without the buildings that are hidden then, (height, width, 3)."""
        pixels = self.dates[date]
        land = pixels.copy()
        for building in self.hidden:
            if building.when == ("removed", "built")[date]:
                continue  # it stands at this date
            rows, cols = np.nonzero(building.cover > 0)
            height, width = building.cover.shape
            from_rows = np.clip(rows + building.source[0], 0, height - 1)
            from_cols = np.clip(cols + building.source[1], 0, width - 1)
            opacity = building.cover[rows, cols][:, None]
            land[rows, cols] += opacity * (pixels[from_rows, from_cols] - land[rows, cols])
        return land

    def ground_at(self, rng: Rng, date: int, season: npt.NDArray[np.float32]) -> Floats:
        """Tile at one date, (height, width, 3): its distractors differ at every date."""
        land = self.without_hidden(date) + season * 0.2
        if "distractors" in self.without or self.real.window.after is not None:
            return land
        amount = float(rng.choice([0.3, 1.0, 2.0], p=[0.4, 0.4, 0.2]))
        tone = random_tone(rng, 0.07 * amount, 0.05 * amount)
        land *= 1 + self.plants * (tone - 1)
        land += self.plants * season * amount * 0.6
        if self.growth:
            self.regrow(rng, land)
        if rng.random() < 0.4:
            self.recolor_fields(rng, land)
        if rng.random() < 0.4:
            self.retone_segments(rng, land)
        if rng.random() < 0.5:
            self.move_shadows(rng, land)
        self.add_litter(rng, land)
        if rng.random() < 0.4:
            self.add_cars(rng, land)
        return land

    def regrow(self, rng: Rng, land: Floats) -> None:
        """Grow plants and open land as over years: crowns and clumps move, fine texture comes from elsewhere
        in the tile, spots become denser or barer; all other surfaces weather a little."""
        size, shape, wild = self.plan.size, land.shape[:2], self.wild
        reach = rng.uniform(0.5, 3.5) * self.growth
        warped = warp_elastically(rng, land, reach, grain=float(rng.choice([3.0, 10.0])))
        land += wild[..., None] * (warped - land)
        for window in (5, 15, 31):
            gray = gray_of(land)
            texture = gray - ndimage.uniform_filter(gray, window)
            shift = [int(rng.integers(side // 4, side - side // 4)) for side in shape]
            opacity = wild * np.roll(wild, shift, (0, 1)) * self.growth * rng.uniform(0.4, 1.0)
            land += (opacity * (np.roll(texture, shift, (0, 1)) * rng.uniform(0.7, 1.3) - texture))[..., None]
        for grain in (3.0, 10.0, 40.0):
            color = rng.normal(0, 1, 3) * 4 + rng.normal(0, 1) * np.array([12, 9, 10])
            spots = np.clip(noise(rng, size, grain) + rng.uniform(-1, 0.5), 0, 2) * wild * self.growth
            land += spots[..., None] * (color * rng.uniform(0, 1)).astype(np.float32)
        weather = noise(rng, size, 1.0) * rng.uniform(0, 4) + noise(rng, size, 3.0) * rng.uniform(0, 5)
        land += (weather * (1 - wild) * self.growth)[..., None]

    def recolor_fields(self, rng: Rng, land: Floats) -> None:
        """Give open land within rectangles another color, sometimes with furrows."""
        width, height = self.plan.size
        ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
        for _ in range(int(rng.integers(1, 4))):
            center = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
            sides = rng.uniform(0.15, 0.8, 2) * width
            angle = float(rng.uniform(0, np.pi))
            image = Image.new("L", self.plan.size, 0)
            ImageDraw.Draw(image).polygon(polygon(rectangle(center, sides[0], sides[1], angle)), fill=255)
            mask = np.asarray(image.filter(ImageFilter.BoxBlur(1)), np.float32) / 255
            share = (mask * self.open_land).sum() / max(1.0, mask.sum())
            if share < 0.85:
                continue
            own = (land * mask[..., None]).sum(axis=(0, 1)) / mask.sum()
            if (self.plants[..., 0] * mask).sum() > 0.25 * mask.sum():  # crops, bare or not
                kind = ["grass", "crops", "soil"][int(rng.integers(3))]
                color = random_color(rng, PALETTE[kind]) * np.float32(np.clip(own.mean() / 120, 0.5, 1.3))
                color += (own - color) * np.float32(rng.uniform(0.1, 0.7))
            else:
                color = own * random_tone(rng, 0.13, 0.025)
            texture = noise(rng, self.plan.size, 3.0) * rng.uniform(0, 5)
            if rng.random() < 0.5:
                step, turn = rng.uniform(2.5, 9), angle + rng.choice([0, np.pi / 2])
                furrows = np.sin((xs * np.cos(turn) + ys * np.sin(turn)) * (2 * np.pi / step))
                texture = texture + furrows.astype(np.float32) * np.float32(rng.uniform(2, 9))
            gray = gray_of(land)
            texture += (gray - ndimage.uniform_filter(gray, 15)) * rng.uniform(0.3, 1.0)
            opacity = (mask * self.open_land**2 * rng.uniform(0.3, 0.95))[..., None]
            land += opacity * (color + texture[..., None] - land)

    def retone_segments(self, rng: Rng, land: Floats) -> None:
        """Change the tone of a few segments of equal color: roofs, yards, roads, fields."""
        height, width = land.shape[:2]
        for _ in range(int(rng.integers(1, 6))):
            row, col = int(rng.integers(height)), int(rng.integers(width))
            reach = int(rng.integers(20, 60))
            rows, cols = slice(max(0, row - reach), row + reach), slice(max(0, col - reach), col + reach)
            window = self.pixels[rows, cols]
            limit = rng.uniform(14, 30)
            near = np.ones(window.shape[:2], bool)
            for band in range(3):
                near &= np.abs(window[..., band] - self.pixels[row, col, band]) < limit
            labels, _ = ndimage.label(near)
            segment = labels == labels[row - rows.start, col - cols.start]
            segment = ndimage.binary_closing(segment, iterations=1) | segment
            opacity = ndimage.uniform_filter(segment.astype(np.float32), 3)[..., None]
            tone = random_tone(rng, 0.18, 0.07)
            land[rows, cols] *= 1 + opacity * (tone - 1)

    def move_shadows(self, rng: Rng, land: Floats) -> None:
        """Lighten the shadows of the tile, or lengthen them in one direction."""
        if rng.random() < 0.5:
            land *= 1 + (self.shadow * rng.uniform(0.1, 0.7))[..., None]
            return
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(1, 7)
        longer = self.shadow
        for share in (0.5, 1.0):
            shift = (round(np.sin(angle) * reach * share), round(np.cos(angle) * reach * share))
            longer = np.maximum(longer, np.roll(self.shadow, shift, (0, 1)))
        land *= 1 - ((longer - self.shadow) * rng.uniform(0.2, 0.6))[..., None]

    def add_litter(self, rng: Rng, land: Floats) -> None:
        """Draw heaps, tarpaulins and puddles in colors of the tile, at other points at every date."""
        width, height = self.plan.size
        for _ in range(rng.poisson(self.pieces)):
            x, y, radius = float(rng.uniform(0, width)), float(rng.uniform(0, height)), rng.uniform(2, 9)
            color = self.pixels[int(rng.integers(height)), int(rng.integers(width))] * random_tone(
                rng, 0.15, 0.05
            )
            reach = int(radius * 2) + 2  # of the farthest point of the outline
            row, col = int(y) - reach, int(x) - reach
            mask = Image.new("L", (2 * reach, 2 * reach), 0)
            outline = blob(rng, (x, y), radius) - (col, row)
            ImageDraw.Draw(mask).polygon(polygon(outline), fill=255)
            opacity = np.asarray(mask.filter(ImageFilter.BoxBlur(0.7)), np.float32)[..., None] / 255
            box = (slice(max(0, row), row + 2 * reach), slice(max(0, col), col + 2 * reach))
            around = land[box]
            opacity = opacity[max(0, -row) :, max(0, -col) :][: around.shape[0], : around.shape[1]]
            around += opacity * (color - around)

    def add_cars(self, rng: Rng, land: Floats) -> None:
        """Draw cars on gray ground."""
        paved = [COVER_CODE["built"], COVER_CODE["road"]]
        spots = np.argwhere(np.isin(self.real.cover[::3, ::3], paved)) * 3
        if not len(spots):
            return
        image = Image.fromarray(np.clip(land, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        street = rng.uniform(0, np.pi)
        for _ in range(int(rng.integers(1, 9))):
            y, x = spots[int(rng.integers(len(spots)))]
            self.draw_car(rng, draw, (float(x), float(y)), street + rng.choice([0, np.pi / 2]))
        land[:] = np.asarray(image)

    def render(self, rng: Rng, date: int, light: Light) -> Bytes:
        """Render date 0 (before) or 1 (after) without weather or sensor effects, (height, width, 3) uint8."""
        season = (rng.normal(0, 1) * np.array([13, 11, 8]) + rng.normal(0, [4, 5, 4])).astype(np.float32)
        appearance = Appearance.random(rng)
        land = np.clip(self.ground_at(rng, date, season), 0, 255)
        view = DateView(light, appearance, season)
        drawn = self.draw_objects(rng, land, date, view)
        image = Image.fromarray(self.blend(land, drawn))
        absent = ("removed", "built")[1 - date]
        for house, tone in zip(self.plan.houses, self.tones, strict=True):
            if isinstance(house, CutoutHouse) and house.when != absent:
                if rng.random() < appearance.recolored:
                    tone = tone * random_tone(rng, 0.15, 0.06)
                self.paste(image, house, tone, light)
        if self.real.window.after is None:
            return np.asarray(image)
        return np.clip(np.asarray(image) * self.tones_of_dates[date], 0, 255).astype(np.uint8)

    def blend(self, land: Floats, drawn: Bytes) -> Bytes:
        """Drawn objects on the land with texture and with edges as soft as those of the tile."""
        blended = land.astype(np.uint8)
        altered = (drawn != blended).any(axis=2)
        rows, cols = np.flatnonzero(altered.any(axis=1)), np.flatnonzero(altered.any(axis=0))
        if not len(rows):
            return blended
        box = (slice(max(0, rows[0] - 4), rows[-1] + 5), slice(max(0, cols[0] - 4), cols[-1] + 5))
        altered = altered[box]
        textured = drawn[box] + (altered * self.detail[box])[..., None]
        blurred = Image.fromarray(np.clip(textured, 0, 255).astype(np.uint8))
        soft = np.asarray(blurred.filter(ImageFilter.BoxBlur(self.edge_blur)), np.float32)
        opacity = ndimage.uniform_filter(ndimage.maximum_filter(altered.astype(np.float32), 3), 3)[..., None]
        blended[box] = land[box] + opacity * (soft - land[box])
        return blended

    def draw_trees(
        self,
        rng: Rng,
        draw: ImageDraw.ImageDraw,
        shadow_draw: ImageDraw.ImageDraw,
        trees: Points,
        color: Floats,
        light: Light,
    ) -> None:
        """Draw crowns of several clumps, brighter towards the sun, and their shadows on the ground."""
        count = len(trees)
        tones = rng.normal(0, 9, count)
        turns, reaches = rng.uniform(0, 2 * np.pi, (count, 5)), rng.uniform(0.3, 0.62, (count, 5))
        for index, (x, y, r) in enumerate(trees.tolist()):
            sx, sy = x + light.dx * r * 0.9, y + light.dy * r * 0.9
            shadow_draw.ellipse((sx - r, sy - r, sx + r, sy + r), fill=150)
            q = r * 0.82
            draw.ellipse((x - q, y - q, x + q, y + q), fill=to_rgb(color + tones[index] - 14))
            for turn, reach in zip(turns[index], reaches[index], strict=True):
                dx, dy, q = np.cos(turn) * reach, np.sin(turn) * reach, r * (1.0 - reach) * 0.95
                lit = -(dx * light.dx + dy * light.dy)
                shade = to_rgb(color + tones[index] + 24 * lit - 2)
                cx, cy = x + dx * r, y + dy * r
                draw.ellipse((cx - q, cy - q, cx + q, cy + q), fill=shade)

    def draw_roof(self, draw: ImageDraw.ImageDraw, house: House, color: Floats, light: Light) -> None:
        """Draw the roof of a drawn house; cut out ones, with their own texture, are pasted later."""
        if not isinstance(house, CutoutHouse):
            super().draw_roof(draw, house, color, light)

    def paste(self, image: Image.Image, house: CutoutHouse, tone: Floats, light: Light) -> None:
        """Paste a cut out building with soft edges, as bright as the tile."""
        assert house.cutout is not None
        corners = house.footprint + np.asarray(light.lean) * house.height * 0.5
        low = np.floor(corners.min(axis=0)).astype(int) - 3
        span = np.ceil(corners.max(axis=0)).astype(int) + 3 - low
        mask = Image.new("L", (int(span[0]), int(span[1])), 0)
        ImageDraw.Draw(mask).polygon(polygon(corners - low), fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(self.edge_blur * 0.8))
        gain = tone * np.float32(np.clip(self.real.level / max(house.cutout.level, 20.0), 0.55, 1.5))
        pixels = np.clip(house.cutout.pixels * gain, 0, 255).astype(np.uint8)
        # inverse affine map from the window of the mask to the pixels of the cutout
        cos, sin = np.cos(house.angle), np.sin(house.angle)
        columns, rows = pixels.shape[1] / house.length, pixels.shape[0] / house.depth
        x, y = low - house.center - np.asarray(light.lean) * house.height * 0.5
        coefficients = (
            cos * columns, sin * columns, (cos * x + sin * y) * columns + pixels.shape[1] / 2,
            -sin * rows, cos * rows, (cos * y - sin * x) * rows + pixels.shape[0] / 2,
        )  # fmt: skip
        source = Image.fromarray(np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="edge"))
        shifted = (*coefficients[:2], coefficients[2] + 4, *coefficients[3:5], coefficients[5] + 4)
        roof = source.transform(mask.size, Image.Transform.AFFINE, shifted, Image.Resampling.BILINEAR)
        image.paste(roof, (int(low[0]), int(low[1])), mask)
