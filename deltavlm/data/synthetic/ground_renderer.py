"""Renderer of a scene on real ground: its tile at both dates, what differs without change, objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from deltavlm.data.synthetic.ground_layout import Ground, HiddenBuilding
from deltavlm.data.synthetic.ground_truth import COVER_CODE
from deltavlm.data.synthetic.imaging import warp_elastically
from deltavlm.data.synthetic.plan import House, Plan, Points, Rng, blob, polygon, rectangle
from deltavlm.data.synthetic.render import Appearance, Bytes, DateView, Light, Renderer
from deltavlm.data.synthetic.roofs import SHINGLES, draw_hip, random_wings
from deltavlm.data.synthetic.scene import GroundPart
from deltavlm.data.synthetic.texture import PALETTE, Floats, noise, random_color, to_rgb
from deltavlm.data.synthetic.tiles import (
    CutoutHouse,
    gray_of,
)


def random_tone(rng: Rng, light: float, color: float) -> Floats:
    """Random gain of each band, (3,): deviations of the logarithm in common and of each band."""
    return np.exp(rng.normal(0, light) + rng.normal(0, color, 3)).astype(np.float32)


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
        self.growth = 0.0 if "growth" in self.without else float(rng.uniform(0.7, 1.4))  # between dates
        fine = gray - ndimage.uniform_filter(gray, 7)
        shift = (int(rng.integers(size[1])), int(rng.integers(size[0])))
        self.detail = np.clip(np.roll(fine, shift, (0, 1)), -30, 30) * rng.uniform(0.1, 0.5)
        self.detail += noise(rng, size, 1.0) * rng.uniform(1, 7) + noise(rng, size, 3.0) * rng.uniform(0, 5)
        sharpness = float(np.abs(fine).mean())
        self.edge_blur = float(np.clip(rng.normal(0.6, 0.2) + (6 - sharpness) * 0.03, 0.3, 1.1))

    def choose_colors(self, rng: Rng) -> None:
        """Choose colors as bright as the tile; some roofs and roads have colors of the tile itself."""
        super().choose_colors(rng)
        self.shingled = float(rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.2, 0.5]))
        is_uniform = rng.random() < 0.6
        if is_uniform:  # the same roofing all over, with one house in eight apart
            common = random_color(rng, SHINGLES)
            self.roofs = [
                roof
                if rng.random() < 0.12
                else common + np.float32(rng.normal(0, 5)) + rng.normal(0, 2, 3).astype(np.float32)
                for roof in self.roofs
            ]
        gain = float(np.clip(self.real.level / 120, 0.65, 1.25)) ** 0.7
        for colors in (self.roofs, self.streets, self.crowns, self.waters, self.grounds):
            colors[:] = [color * np.float32(gain * np.exp(rng.normal(0, 0.08))) for color in colors]
        for colors, share in (
            (self.roofs, 0.05 if is_uniform else 0.25),
            (self.streets, 0.5),
            (self.grounds, 0.4),
        ):
            for index in range(len(colors)):
                if rng.random() < share:
                    row, col = (int(rng.integers(side)) for side in self.pixels.shape[:2])
                    around = self.pixels[max(0, row - 2) : row + 3, max(0, col - 2) : col + 3]
                    colors[index] = colors[index] * 0.3 + around.mean(axis=(0, 1)) * 0.7
        self.tones = [random_tone(rng, 0.08, 0.03) for _ in self.plan.houses]
        self.wings = [random_wings(rng) if rng.random() < self.shingled else () for _ in self.plan.houses]

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
            self.relight(rng, land)
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
            opacity = wild * np.roll(wild, shift, (0, 1)) * min(1.0, self.growth * rng.uniform(0.4, 1.0))
            land += (opacity * (np.roll(texture, shift, (0, 1)) * rng.uniform(0.7, 1.3) - texture))[..., None]
        for grain in (3.0, 10.0, 40.0):
            color = rng.normal(0, 1, 3) * 4 + rng.normal(0, 1) * np.array([12, 9, 10])
            spots = np.clip(noise(rng, size, grain) + rng.uniform(-1, 0.5), 0, 2) * wild * self.growth
            land += spots[..., None] * (color * rng.uniform(0, 1)).astype(np.float32)
        weather = noise(rng, size, 1.0) * rng.uniform(0, 4) + noise(rng, size, 3.0) * rng.uniform(0, 5)
        land += (weather * (1 - wild) * self.growth)[..., None]

    def relight(self, rng: Rng, land: Floats) -> None:
        """Light and look at the land anew: each cover has another tone, edges of what is built move a little,
        slopes of roofs, walls and crowns become brighter or darker than their surroundings."""
        for code in np.unique(self.real.cover):
            opacity = ndimage.uniform_filter((self.real.cover == code).astype(np.float32), 5)[..., None]
            land *= 1 + opacity * (random_tone(rng, 0.16 * self.growth, 0.04 * self.growth) - 1)
        built = (1 - self.wild)[..., None]
        grain = float(rng.choice([10.0, 40.0]))
        land += built * (warp_elastically(rng, land, rng.uniform(0, 3) * self.growth, grain) - land)
        gray = gray_of(land)
        for window in (9, 25):
            relief = gray - ndimage.uniform_filter(gray, window)
            where = np.clip(noise(rng, self.plan.size, float(rng.choice([10.0, 40.0]))) + 0.7, 0, 1)
            gain = rng.uniform(-0.9, 0.4) * self.growth
            land += (relief * where * gain)[..., None]

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
        if isinstance(house, CutoutHouse):
            return
        wings = self.wings[self.plan.houses.index(house)]
        if not wings:
            super().draw_roof(draw, house, color, light)
        lean = np.asarray(light.lean) * house.height
        for x, y, length, depth in wings:
            along = np.array([np.cos(house.angle), np.sin(house.angle)])
            across = np.array([-np.sin(house.angle), np.cos(house.angle)])
            center = np.asarray(house.center) + lean + along * x * house.length + across * y * house.depth
            corners = rectangle(
                (float(center[0]), float(center[1])), length * house.length, depth * house.depth, house.angle
            )
            draw_hip(draw, corners, color, light)

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
