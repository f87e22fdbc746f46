"""Renderer of a plan: clean aerial images of either date, drawn with Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from deltavlm.data.synthetic.ground_truth import COVER_CODE
from deltavlm.data.synthetic.plan import House, Plan, Points, Rng, blob, polygon, rectangle
from deltavlm.data.synthetic.texture import (
    CARS,
    COVER_COLORS,
    GROUND_PALETTE,
    PALETTE,
    ROADS,
    ROOFS,
    WATER,
    Floats,
    noise,
    parcels,
    random_color,
    to_rgb,
)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Light:
    """Sun and view direction of one date."""

    dx: float  # shadow offset per pixel of height
    dy: float
    darkness: float  # of shadows, 0 to 1
    lean: tuple[float, float]  # offset of roofs per pixel of height, in an off-nadir view


@dataclass(frozen=True, slots=True)
class Appearance:
    """Appearance of unchanged objects at one date; its differences are distractors, not changes."""

    crown_scale: float = 1.0
    recolored: float = 0.0  # share of roofs and roads in another color than at the other date
    snow: float = 0.0  # opacity of the snow on the ground

    @classmethod
    def random(cls, rng: Rng) -> Appearance:
        """Random appearance."""
        crown_scale = float(np.exp(rng.normal(0, 0.18)))
        snow = float(rng.uniform(0.3, 0.9)) if rng.random() < 0.03 else 0.0
        return cls(crown_scale, float(rng.choice([0.0, 0.1, 0.3])), snow)


@dataclass(frozen=True, slots=True)
class DateView:
    """Light, appearance and season of one date."""

    light: Light
    appearance: Appearance
    season: npt.NDArray[np.float32]  # (3,) RGB offset of plants


class Renderer:
    """Renderer of one plan at two dates; it fixes the colors and textures that both dates share."""

    def __init__(self, rng: Rng, plan: Plan) -> None:
        self.rng, self.plan = rng, plan
        self.choose_ground(rng)
        self.choose_colors(rng)
        self.litter = float(rng.choice([0, 3, 15])) * plan.size[0] * plan.size[1] / 288**2
        # Probability that a parcel has another color at one date, without any change
        self.turnover = rng.uniform(0, 0.5) if rng.random() < 0.5 else 0.05
        if plan.rich and rng.random() < 0.3:  # most fields look different
            self.turnover = rng.uniform(0.5, 1.0)

    def choose_ground(self, rng: Rng) -> None:
        """Choose fields, their colors and textures."""
        plan = self.plan
        self.fields = parcels(rng, plan.size)
        count = int(self.fields.max()) + 1
        weights = rng.dirichlet([1.2, 1.0, 0.5])
        self.kinds = rng.choice(["grass", "crops", "soil"], count, p=weights)
        self.base = np.stack([random_color(rng, PALETTE[kind]) for kind in self.kinds])
        self.grain = noise(rng, plan.size, 1.0) * 0.5 + noise(rng, plan.size, 3.0) * 0.5
        self.broad = noise(rng, plan.size, 12.0)

    def choose_colors(self, rng: Rng) -> None:
        """Choose the color of each object of the plan."""
        plan = self.plan
        self.roofs = [random_color(rng, ROOFS, 8) for _ in plan.houses]
        self.streets = [random_color(rng, ROADS[road.surface], 7) for road in plan.roads]
        self.crowns = [random_color(rng, PALETTE["trees"], 8) for _ in plan.woods]
        self.waters = [random_color(rng, WATER, 6) for _ in plan.ponds]
        self.grounds = [
            random_color(rng, (PALETTE | ROADS | COVER_COLORS)[GROUND_PALETTE[p.ground]], 10)
            for p in plan.patches
        ]

    def ground(self, rng: Rng, season: npt.NDArray[np.float32]) -> Floats:
        """Fields in one season, (height, width, 3) floats; crops differ at every date."""
        parcel_colors = self.base.copy()
        for parcel, kind in enumerate(self.kinds):
            if (kind == "crops" and rng.random() < 0.7) or rng.random() < self.turnover:
                other = "soil" if kind == "crops" and rng.random() < 0.3 else kind
                parcel_colors[parcel] = random_color(rng, PALETTE[other])
        parcel_colors += season * np.where(self.kinds == "soil", 0.3, 1.0)[:, None].astype(np.float32)
        image = parcel_colors[self.fields]
        contrast = rng.uniform(3, 11)
        texture = (
            self.grain * 0.6 + noise(rng, self.plan.size, 1.0) * 0.6 + self.broad * rng.uniform(0.2, 1.0)
        )
        image += (texture * contrast)[..., None]
        if rng.random() < 0.4:  # smooth tint: moisture, haze layers, mosaicking
            image += noise(rng, self.plan.size, 40.0)[..., None] * (
                rng.normal(0, 5) + rng.normal(0, 1.5, 3)
            ).astype(np.float32)
        if rng.random() < 0.5:  # rows of crops
            ys, xs = np.mgrid[0 : self.plan.size[1], 0 : self.plan.size[0]].astype(np.float32)
            angle, step = rng.uniform(0, np.pi), rng.uniform(2.5, 9)
            stripes = np.sin((xs * np.cos(angle) + ys * np.sin(angle)) * (2 * np.pi / step))
            image += ((self.kinds == "crops")[self.fields] * stripes * rng.uniform(1, 7))[..., None]
        if rng.random() < 0.35:  # shrubs
            shrubs = noise(rng, self.plan.size, 3.0) if rng.random() < 0.5 else self.grain * 1.6
            cover = (shrubs + self.broad * 0.5 > rng.uniform(0.9, 2.0)) & (self.kinds != "crops")[self.fields]
            image[cover] = image[cover] * 0.55 + random_color(rng, PALETTE["trees"]) * 0.45
        return image

    def render(self, rng: Rng, date: int, light: Light) -> Bytes:
        """Render date 0 (before) or 1 (after) without weather or sensor effects, (height, width, 3) uint8."""
        appearance = Appearance.random(rng) if self.plan.rich else Appearance()
        season = (rng.normal(0, 1) * np.array([13, 11, 8]) + rng.normal(0, [4, 5, 4])).astype(np.float32)
        if rng.random() < 0.3:
            season *= 0.2
        land = self.ground(rng, season)
        if appearance.snow:
            land += appearance.snow * (np.float32(235) - land)
        return self.draw_objects(rng, land, date, DateView(light, appearance, season))

    def draw_objects(self, rng: Rng, land: Floats, date: int, view: DateView) -> Bytes:
        """Draw the objects of a date and their shadows onto the land, (height, width, 3)."""
        plan, light, appearance, season = self.plan, view.light, view.appearance, view.season
        absent = ("removed", "built")[1 - date]
        image = Image.fromarray(np.clip(land, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        shadows = Image.new("L", plan.size, 0)
        shadow_draw = ImageDraw.Draw(shadows)

        def exists(when: str) -> bool:
            return when == "both" or when != absent

        def tint(color: npt.NDArray[np.floating[Any]]) -> tuple[int, int, int]:
            return to_rgb(color + season * 0.25)

        def recolor(color: Floats, palette: list[tuple[int, int, int]]) -> Floats:
            is_new = appearance.recolored and rng.random() < appearance.recolored
            return random_color(rng, palette, 8) if is_new else color

        for patch, color in zip(plan.patches, self.grounds, strict=True):
            if exists(patch.when):
                draw.polygon(polygon(patch.outline), fill=tint(color))
                if patch.ground == "construction":
                    self.draw_site(rng, draw, patch.outline)
                if patch.ground == "glass":
                    self.draw_greenhouse(draw, patch.outline, tint(color * 0.8))
                if patch.ground == "parking":
                    self.draw_parked_cars(rng, draw, patch.outline, int(rng.integers(0, 40)))
        # litter (heaps, tarpaulins, puddles) differs at every date, and is no change
        for _ in range(rng.poisson(self.litter)):
            center = (float(rng.uniform(0, plan.size[0])), float(rng.uniform(0, plan.size[1])))
            kind = ["soil", "grass", "crops"][int(rng.integers(3))]
            outline = polygon(blob(rng, center, float(rng.uniform(2, 12))))
            draw.polygon(outline, fill=tint(random_color(rng, PALETTE[kind], 16)))
        for pond, color in zip(plan.ponds, self.waters, strict=True):
            if exists(pond.when):
                draw.polygon(polygon(pond.outline), fill=tint(color + rng.normal(0, 8, 3)))
        for road, color in zip(plan.roads, self.streets, strict=True):
            if exists(road.when):
                line = polygon(road.line)
                color = recolor(color, ROADS[road.surface])
                if road.surface != "dirt" and road.width > 9 and rng.random() < 0.5:
                    draw.line(line, fill=tint(color + 30), width=round(road.width * 1.3), joint="curve")
                draw.line(
                    line, fill=tint(color + rng.normal(0, 4)), width=max(2, round(road.width)), joint="curve"
                )
                if road.surface == "asphalt" and road.width > 12 and rng.random() < 0.6:
                    draw.line(line, fill=tint(color + 60), width=1)
                if road.surface == "rail":
                    draw.line(line, fill=tint(color * 0.6), width=1)
                else:
                    self.draw_traffic(rng, draw, road.line, road.width)
        for wood, color in zip(plan.woods, self.crowns, strict=True):
            if exists(wood.when):
                trees = wood.trees * np.array([1.0, 1.0, appearance.crown_scale]) if plan.rich else wood.trees
                self.draw_trees(rng, draw, shadow_draw, trees, color + season * 0.5, light)
        for house in plan.houses:
            if exists(house.when):
                self.draw_shadow(shadow_draw, house, light)
        shadow = np.asarray(shadows.filter(ImageFilter.BoxBlur(1)), np.float32)[..., None] / 255
        pixels = np.asarray(image, np.float32)
        image = Image.fromarray((pixels * (1 - light.darkness * shadow)).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for house, color in zip(plan.houses, self.roofs, strict=True):
            if exists(house.when):
                self.draw_roof(draw, house, recolor(color, ROOFS) + rng.normal(0, 5), light)
        return np.asarray(image)

    def draw_site(self, rng: Rng, draw: ImageDraw.ImageDraw, outline: Points) -> None:
        """Draw wheel tracks, heaps and stacked material, which tell a construction site from a bare field."""
        low, high = outline.min(axis=0), outline.max(axis=0)
        center, reach = (low + high) / 2, (high - low).min() / 2
        soil = random_color(rng, PALETTE["soil"])
        for _ in range(int(rng.integers(3, 9))):
            angle = rng.uniform(0, np.pi)
            along = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-np.sin(angle), np.cos(angle)])
            offset, half_gauge = across * rng.uniform(-0.6, 0.6) * reach, across * rng.uniform(1.5, 3)
            for side in (half_gauge, -half_gauge):
                ends = [center + offset + side + along * reach * end for end in (-0.75, 0.75)]
                draw.line(polygon(np.stack(ends)), fill=to_rgb(soil + rng.normal(18, 8)), width=2)
        for _ in range(int(rng.integers(3, 12))):
            point = center + rng.uniform(-0.6, 0.6, 2) * reach
            shape = blob(rng, (float(point[0]), float(point[1])), float(rng.uniform(3, 10)))
            draw.polygon(polygon(shape + 1.5), fill=to_rgb(soil * 0.5))
            draw.polygon(polygon(shape), fill=to_rgb(random_color(rng, PALETTE["soil"])))
        for _ in range(int(rng.integers(0, 8))):
            point = center + rng.uniform(-0.6, 0.6, 2) * reach
            length, depth, angle = rng.uniform(2, 8), rng.uniform(2, 8), rng.uniform(0, np.pi)
            stack = rectangle((float(point[0]), float(point[1])), length, depth, angle)
            draw.polygon(polygon(stack), fill=to_rgb(random_color(rng, ROOFS, 12)))

    def draw_greenhouse(self, draw: ImageDraw.ImageDraw, corners: Points, fill: tuple[int, int, int]) -> None:
        """Draw the ribs of a greenhouse."""
        a, b, c, d = corners
        for share in np.linspace(0, 1, 7)[1:-1].tolist():
            draw.line(polygon(np.stack([a + (b - a) * share, d + (c - d) * share])), fill=fill, width=1)

    def draw_parked_cars(self, rng: Rng, draw: ImageDraw.ImageDraw, corners: Points, number: int) -> None:
        """Draw cars in a rectangle, at other points at every date."""
        a, b, _, d = corners[:4]
        angle = float(np.arctan2(*(b - a)[::-1]))
        for _ in range(number):
            point = a + (b - a) * rng.uniform(0.05, 0.95) + (d - a) * rng.uniform(0.05, 0.95)
            self.draw_car(rng, draw, (float(point[0]), float(point[1])), angle + np.pi / 2)

    def draw_traffic(self, rng: Rng, draw: ImageDraw.ImageDraw, line: Points, width: float) -> None:
        """Draw a few cars on a road that is wide enough."""
        if width < 7:
            return
        for _ in range(rng.poisson(1.2)):
            index = int(rng.integers(len(line) - 1))
            (x, y), step = line[index], line[index + 1] - line[index]
            angle = float(np.arctan2(step[1], step[0]))
            side = rng.choice([-1, 1]) * width * 0.22
            self.draw_car(rng, draw, (x - np.sin(angle) * side, y + np.cos(angle) * side), angle)

    def draw_car(
        self, rng: Rng, draw: ImageDraw.ImageDraw, center: tuple[float, float], angle: float
    ) -> None:
        """Draw a car of a random color."""
        scale = self.plan.scale
        color = CARS[int(rng.integers(len(CARS)))]
        draw.polygon(polygon(rectangle(center, 8 * scale, 3.8 * scale, angle)), fill=color)

    def draw_trees(
        self,
        rng: Rng,
        draw: ImageDraw.ImageDraw,
        shadow_draw: ImageDraw.ImageDraw,
        trees: Points,
        color: Floats,
        light: Light,
    ) -> None:
        """Draw crowns with a lit side, and their shadows on the ground."""
        offsets = rng.normal(0, 9, len(trees))
        for (x, y, r), offset in zip(trees.tolist(), offsets.tolist(), strict=True):
            sx, sy = x + light.dx * r * 0.9, y + light.dy * r * 0.9
            shadow_draw.ellipse((sx - r, sy - r, sx + r, sy + r), fill=150)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=to_rgb(color + offset - 12))
            q, hx, hy = r * 0.55, x - light.dx * r * 0.3, y - light.dy * r * 0.3
            draw.ellipse((hx - q, hy - q, hx + q, hy + q), fill=to_rgb(color + offset + 12))

    def draw_shadow(self, draw: ImageDraw.ImageDraw, house: House, light: Light) -> None:
        """Draw the shadow of a house into the mask of shadows."""
        base = house.footprint
        reach = np.array([light.dx, light.dy]) * house.height
        for share in (0.35, 0.7, 1.0):
            draw.polygon(polygon(base + reach * share), fill=255)

    def draw_roof(self, draw: ImageDraw.ImageDraw, house: House, color: Floats, light: Light) -> None:
        """Draw the roof of a house, and the wall that an off-nadir view shows."""
        lean = np.asarray(light.lean) * house.height
        corners = rectangle(house.center, house.length, house.depth, house.angle)
        if light.lean != (0.0, 0.0):
            draw.polygon(polygon(corners + lean * 0.5), fill=to_rgb(color * 0.6))
        a, b, c, d = corners + lean
        # light on the slope at c-d; that at a-b is turned away from it as much
        sun = -(light.dx * -np.sin(house.angle) + light.dy * np.cos(house.angle))
        lit, shaded = color * (1 + 0.16 * sun), color * (1 - 0.16 * sun)
        if house.roof == "flat":
            draw.polygon(polygon(np.stack([a, b, c, d])), fill=to_rgb(color), outline=to_rgb(color * 0.8))
            if house.length > 40:  # machinery on large roofs
                point = a + (b - a) * 0.3 + (d - a) * 0.4
                draw.polygon(
                    polygon(rectangle((point[0], point[1]), 6, 4, house.angle)), fill=to_rgb(color * 0.7)
                )
        elif house.roof == "hip":
            ridge = [(a + d) / 2 + (b - a) * 0.28, (b + c) / 2 - (b - a) * 0.28]
            draw.polygon(polygon(np.stack([a, b, ridge[1], ridge[0]])), fill=to_rgb(shaded))
            draw.polygon(polygon(np.stack([d, c, ridge[1], ridge[0]])), fill=to_rgb(lit))
            draw.polygon(polygon(np.stack([a, d, ridge[0]])), fill=to_rgb(color * 0.94))
            draw.polygon(polygon(np.stack([b, c, ridge[1]])), fill=to_rgb(color * 1.05))
        else:
            if house.roof == "ell":
                wing = rectangle(
                    ((c + b) / 2 + (c - b) * 0.35).tolist(), house.length * 0.42, house.depth, house.angle
                )
                draw.polygon(polygon(wing + 0.0), fill=to_rgb(lit * 0.97))
            start, end = (a + d) / 2, (b + c) / 2
            draw.polygon(polygon(np.stack([a, b, end, start])), fill=to_rgb(shaded))
            draw.polygon(polygon(np.stack([d, c, end, start])), fill=to_rgb(lit))

    def bare_cover(self) -> Bytes:
        """Cover codes of the fields without any object, (height, width)."""
        codes: Bytes = np.asarray([COVER_CODE[kind] for kind in self.kinds], np.uint8)[self.fields]
        return codes
