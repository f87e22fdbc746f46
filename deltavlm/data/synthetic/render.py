"""A plan turned into pixels: clean views from above at either date. Pillow draws the shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from deltavlm.data.synthetic.ground_truth import COVER_CODE
from deltavlm.data.synthetic.plan import House, Plan, Points, Rng, blob, polygon, rectangle
from deltavlm.data.synthetic.texture import (
    COVERED,
    GROUND,
    PALETTE,
    ROADS,
    ROOFS,
    WATER,
    Floats,
    noise,
    paint,
    parcels,
    pick,
)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Light:
    """The sun of one date: direction of the shadows (x, y), their length per height, and their darkness."""

    dx: float
    dy: float
    darkness: float
    lean: tuple[float, float]  # how far roofs lean out per pixel of height (off-nadir view)


@dataclass(frozen=True, slots=True)
class Appearance:
    """What time does to things that stay: none of it is a change."""

    growth: float = 1.0  # of crowns
    renewed: float = 0.0  # share of roofs and roads in another colour than at the other date
    snow: float = 0.0  # how white the ground is

    @classmethod
    def draw(cls, rng: Rng) -> Appearance:
        growth = float(np.exp(rng.normal(0, 0.18)))
        snow = float(rng.uniform(0.3, 0.9)) if rng.random() < 0.03 else 0.0
        return cls(growth, float(rng.choice([0.0, 0.1, 0.3])), snow)


class Renderer:
    """Paints one plan at two dates. What does not change between them (seeds of parcels, roofs, crowns) is
    fixed here."""

    def __init__(self, rng: Rng, plan: Plan) -> None:
        self.rng, self.plan = rng, plan
        self.fields = parcels(rng, plan.size)
        count = int(self.fields.max()) + 1
        weights = rng.dirichlet([1.2, 1.0, 0.5])
        self.kinds = rng.choice(["grass", "crops", "soil"], count, p=weights)
        self.base = np.stack([pick(rng, PALETTE[kind]) for kind in self.kinds])
        self.grain = noise(rng, plan.size, 1.0) * 0.5 + noise(rng, plan.size, 3.0) * 0.5
        self.broad = noise(rng, plan.size, 12.0)
        self.roofs = [pick(rng, ROOFS, 8) for _ in plan.houses]
        self.streets = [pick(rng, ROADS[road.surface], 7) for road in plan.roads]
        self.crowns = [pick(rng, PALETTE["trees"], 8) for _ in plan.woods]
        self.waters = [pick(rng, WATER, 6) for _ in plan.ponds]
        self.grounds = [pick(rng, (PALETTE | ROADS | COVERED)[GROUND[p.ground]], 10) for p in plan.patches]
        self.litter = float(rng.choice([0, 3, 15])) * plan.size[0] * plan.size[1] / 288**2
        # A few darker or lighter stretches in one date alone: ground mosaics that differ without anything
        # new.
        self.turnover = rng.uniform(0, 0.5) if rng.random() < 0.5 else 0.05
        if plan.rich and rng.random() < 0.3:  # every field looks different
            self.turnover = rng.uniform(0.5, 1.0)

    # -- one date
    # ----------------------------------------------------------------------------------------------------

    def ground(self, rng: Rng, season: npt.NDArray[np.float32]) -> Floats:
        """Fields in one season, (height, width, 3) floats. Crops are new every date."""
        colours = self.base.copy()
        for parcel, kind in enumerate(self.kinds):
            if (kind == "crops" and rng.random() < 0.7) or rng.random() < self.turnover:
                other = "soil" if kind == "crops" and rng.random() < 0.3 else kind
                colours[parcel] = pick(rng, PALETTE[other])
        colours += season * np.where(self.kinds == "soil", 0.3, 1.0)[:, None].astype(np.float32)
        image = colours[self.fields]
        contrast = rng.uniform(3, 11)
        texture = (
            self.grain * 0.6 + noise(rng, self.plan.size, 1.0) * 0.6 + self.broad * rng.uniform(0.2, 1.0)
        )
        image += (texture * contrast)[..., None]
        if rng.random() < 0.4:  # drifting tint: moisture, haze layers, mosaicking
            image += noise(rng, self.plan.size, 40.0)[..., None] * (
                rng.normal(0, 5) + rng.normal(0, 1.5, 3)
            ).astype(np.float32)
        if rng.random() < 0.5:  # rows of crops
            ys, xs = np.mgrid[0 : self.plan.size[1], 0 : self.plan.size[0]].astype(np.float32)
            angle, step = rng.uniform(0, np.pi), rng.uniform(2.5, 9)
            stripes = np.sin((xs * np.cos(angle) + ys * np.sin(angle)) * (2 * np.pi / step))
            image += ((self.kinds == "crops")[self.fields] * stripes * rng.uniform(1, 7))[..., None]
        if rng.random() < 0.35:  # shrub
            shrub = noise(rng, self.plan.size, 3.0) if rng.random() < 0.5 else self.grain * 1.6
            cover = (shrub + self.broad * 0.5 > rng.uniform(0.9, 2.0)) & (self.kinds != "crops")[self.fields]
            image[cover] = image[cover] * 0.55 + pick(rng, PALETTE["trees"]) * 0.45
        return image

    def render(self, rng: Rng, date: int, light: Light) -> Bytes:
        """Date 0 (before) or 1 (after) as (height, width, 3) uint8, clean of sensor and weather."""
        plan = self.plan
        gone = ("removed", "built")[1 - date]
        mood = Appearance.draw(rng) if plan.rich else Appearance()
        season = (rng.normal(0, 1) * np.array([13, 11, 8]) + rng.normal(0, [4, 5, 4])).astype(np.float32)
        if rng.random() < 0.3:
            season *= 0.2
        land = self.ground(rng, season)
        if mood.snow:
            land += mood.snow * (np.float32(235) - land)
        image = Image.fromarray(np.clip(land, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        shade = Image.new("L", plan.size, 0)
        dark = ImageDraw.Draw(shade)

        def there(when: str) -> bool:
            return when == "both" or when != gone

        def tint(colour: npt.NDArray[np.floating[Any]]) -> tuple[int, int, int]:
            return paint(colour + season * 0.25)

        def aged(colour: Floats, colours: list[tuple[int, int, int]]) -> Floats:
            return pick(rng, colours, 8) if mood.renewed and rng.random() < mood.renewed else colour

        for patch, colour in zip(plan.patches, self.grounds, strict=True):
            if there(patch.when):
                draw.polygon(polygon(patch.outline), fill=tint(colour))
                if patch.ground == "construction":
                    self.ruts(rng, draw, patch.outline)
                if patch.ground == "glass":
                    self.panes(draw, patch.outline, tint(colour * 0.8))
                if patch.ground == "parking":
                    self.cars(rng, draw, patch.outline, int(rng.integers(0, 40)))
        for _ in range(
            rng.poisson(self.litter)
        ):  # heaps, tarpaulins, puddles, worn spots: new every date, and no change
            spot = (float(rng.uniform(0, plan.size[0])), float(rng.uniform(0, plan.size[1])))
            kind = ["soil", "grass", "crops"][int(rng.integers(3))]
            draw.polygon(
                polygon(blob(rng, spot, float(rng.uniform(2, 12)))), fill=tint(pick(rng, PALETTE[kind], 16))
            )
        for pond, colour in zip(plan.ponds, self.waters, strict=True):
            if there(pond.when):
                draw.polygon(polygon(pond.outline), fill=tint(colour + rng.normal(0, 8, 3)))
        for road, colour in zip(plan.roads, self.streets, strict=True):
            if there(road.when):
                line = polygon(road.line)
                colour = aged(colour, ROADS[road.surface])
                if road.surface != "dirt" and road.width > 9 and rng.random() < 0.5:
                    draw.line(line, fill=tint(colour + 30), width=round(road.width * 1.3), joint="curve")
                draw.line(
                    line, fill=tint(colour + rng.normal(0, 4)), width=max(2, round(road.width)), joint="curve"
                )
                if road.surface == "asphalt" and road.width > 12 and rng.random() < 0.6:
                    draw.line(line, fill=tint(colour + 60), width=1)
                if road.surface == "rail":
                    draw.line(line, fill=tint(colour * 0.6), width=1)
                else:
                    self.traffic(rng, draw, road.line, road.width)
        for wood, colour in zip(plan.woods, self.crowns, strict=True):
            if there(wood.when):
                trees = wood.trees * np.array([1.0, 1.0, mood.growth]) if plan.rich else wood.trees
                self.trees(rng, draw, dark, trees, colour + season * 0.5, light)
        for house in plan.houses:
            if there(house.when):
                self.shadow(dark, house, light)
        shadow = np.asarray(shade.filter(ImageFilter.BoxBlur(1)), np.float32)[..., None] / 255
        pixels = np.asarray(image, np.float32)
        image = Image.fromarray((pixels * (1 - light.darkness * shadow)).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for house, colour in zip(plan.houses, self.roofs, strict=True):
            if there(house.when):
                self.roof(draw, house, aged(colour, ROOFS) + rng.normal(0, 5), light)
        return np.asarray(image)

    def ruts(self, rng: Rng, draw: ImageDraw.ImageDraw, outline: Points) -> None:
        """Wheel tracks, heaps and stacked material of a building site: what tells it from a bare field."""
        low, high = outline.min(axis=0), outline.max(axis=0)
        middle, reach = (low + high) / 2, (high - low).min() / 2
        soil = pick(rng, PALETTE["soil"])
        for _ in range(int(rng.integers(3, 9))):
            turn = rng.uniform(0, np.pi)
            along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
            off, lane = across * rng.uniform(-0.6, 0.6) * reach, across * rng.uniform(1.5, 3)
            for side in (lane, -lane):
                ends = [middle + off + side + along * reach * end for end in (-0.75, 0.75)]
                draw.line(polygon(np.stack(ends)), fill=paint(soil + rng.normal(18, 8)), width=2)
        for _ in range(int(rng.integers(3, 12))):
            spot = middle + rng.uniform(-0.6, 0.6, 2) * reach
            shape = blob(rng, (float(spot[0]), float(spot[1])), float(rng.uniform(3, 10)))
            draw.polygon(polygon(shape + 1.5), fill=paint(soil * 0.5))
            draw.polygon(polygon(shape), fill=paint(pick(rng, PALETTE["soil"])))
        for _ in range(int(rng.integers(0, 8))):
            spot = middle + rng.uniform(-0.6, 0.6, 2) * reach
            stack = rectangle(
                (float(spot[0]), float(spot[1])), rng.uniform(2, 8), rng.uniform(2, 8), rng.uniform(0, np.pi)
            )
            draw.polygon(polygon(stack), fill=paint(pick(rng, ROOFS, 12)))

    def panes(self, draw: ImageDraw.ImageDraw, corners: Points, fill: tuple[int, int, int]) -> None:
        """The ribs of a greenhouse."""
        a, b, c, d = corners
        for share in np.linspace(0, 1, 7)[1:-1].tolist():
            draw.line(polygon(np.stack([a + (b - a) * share, d + (c - d) * share])), fill=fill, width=1)

    def cars(self, rng: Rng, draw: ImageDraw.ImageDraw, corners: Points, number: int) -> None:
        """Parked in a rectangle, in other places every date."""
        a, b, _, d = corners[:4]
        angle = float(np.arctan2(*(b - a)[::-1]))
        for _ in range(number):
            spot = a + (b - a) * rng.uniform(0.05, 0.95) + (d - a) * rng.uniform(0.05, 0.95)
            self.car(rng, draw, (float(spot[0]), float(spot[1])), angle + np.pi / 2)

    def traffic(self, rng: Rng, draw: ImageDraw.ImageDraw, line: Points, width: float) -> None:
        if width < 7:
            return
        for _ in range(rng.poisson(1.2)):
            at = int(rng.integers(len(line) - 1))
            step = line[at + 1] - line[at]
            angle = float(np.arctan2(step[1], step[0]))
            side = rng.choice([-1, 1]) * width * 0.22
            self.car(
                rng, draw, (line[at][0] - np.sin(angle) * side, line[at][1] + np.cos(angle) * side), angle
            )

    def car(self, rng: Rng, draw: ImageDraw.ImageDraw, spot: tuple[float, float], angle: float) -> None:
        scale = self.plan.scale
        colour = [(230, 230, 230), (40, 40, 44), (150, 40, 36), (60, 80, 130), (170, 172, 176)][
            int(rng.integers(5))
        ]
        draw.polygon(polygon(rectangle(spot, 8 * scale, 3.8 * scale, angle)), fill=colour)

    def trees(
        self,
        rng: Rng,
        draw: ImageDraw.ImageDraw,
        dark: ImageDraw.ImageDraw,
        trees: Points,
        colour: Floats,
        light: Light,
    ) -> None:
        """Crowns with a lit side; their shadows go onto the ground."""
        bright = rng.normal(0, 9, len(trees))
        for (x, y, r), lift in zip(trees.tolist(), bright.tolist(), strict=True):
            sx, sy = x + light.dx * r * 0.9, y + light.dy * r * 0.9
            dark.ellipse((sx - r, sy - r, sx + r, sy + r), fill=150)
            low, top = np.clip(colour + lift - 12, 0, 255), np.clip(colour + lift + 12, 0, 255)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(int(low[0]), int(low[1]), int(low[2])))
            q, hx, hy = r * 0.55, x - light.dx * r * 0.3, y - light.dy * r * 0.3
            draw.ellipse((hx - q, hy - q, hx + q, hy + q), fill=(int(top[0]), int(top[1]), int(top[2])))

    def shadow(self, dark: ImageDraw.ImageDraw, house: House, light: Light) -> None:
        base = rectangle(house.centre, house.length, house.depth, house.angle)
        reach = np.array([light.dx, light.dy]) * house.height
        for share in (0.35, 0.7, 1.0):
            dark.polygon(polygon(base + reach * share), fill=255)

    def roof(self, draw: ImageDraw.ImageDraw, house: House, colour: Floats, light: Light) -> None:
        lean = np.asarray(light.lean) * house.height
        corners = rectangle(house.centre, house.length, house.depth, house.angle)
        if light.lean != (0.0, 0.0):  # the wall that an off-nadir view shows
            draw.polygon(polygon(corners + lean * 0.5), fill=paint(colour * 0.6))
        a, b, c, d = corners + lean
        sun = -(
            light.dx * -np.sin(house.angle) + light.dy * np.cos(house.angle)
        )  # how the c-d slope faces the light
        lit, shaded = colour * (1 + 0.16 * sun), colour * (1 - 0.16 * sun)
        if house.roof == "flat":
            draw.polygon(polygon(np.stack([a, b, c, d])), fill=paint(colour), outline=paint(colour * 0.8))
            if house.length > 40:  # plant on big roofs
                spot = a + (b - a) * 0.3 + (d - a) * 0.4
                draw.polygon(
                    polygon(rectangle((spot[0], spot[1]), 6, 4, house.angle)), fill=paint(colour * 0.7)
                )
        elif house.roof == "hip":
            ridge = [(a + d) / 2 + (b - a) * 0.28, (b + c) / 2 - (b - a) * 0.28]
            draw.polygon(polygon(np.stack([a, b, ridge[1], ridge[0]])), fill=paint(shaded))
            draw.polygon(polygon(np.stack([d, c, ridge[1], ridge[0]])), fill=paint(lit))
            draw.polygon(polygon(np.stack([a, d, ridge[0]])), fill=paint(colour * 0.94))
            draw.polygon(polygon(np.stack([b, c, ridge[1]])), fill=paint(colour * 1.05))
        else:
            if house.roof == "ell":
                wing = rectangle(
                    ((c + b) / 2 + (c - b) * 0.35).tolist(), house.length * 0.42, house.depth, house.angle
                )
                draw.polygon(polygon(wing + 0.0), fill=paint(lit * 0.97))
            left, right = (a + d) / 2, (b + c) / 2
            draw.polygon(polygon(np.stack([a, b, right, left])), fill=paint(shaded))
            draw.polygon(polygon(np.stack([d, c, right, left])), fill=paint(lit))

    def bare_cover(self) -> Bytes:
        """Cover codes of the bare fields, (height, width)."""
        codes: Bytes = np.asarray([COVER_CODE[kind] for kind in self.kinds], np.uint8)[self.fields]
        return codes
