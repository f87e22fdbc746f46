"""Synthetic scene made from a seed: two images and the ground truth of their changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from deltavlm.data.synthetic import rich_layout
from deltavlm.data.synthetic.events import EVENT_PROBABILITIES, EVENTS
from deltavlm.data.synthetic.ground_truth import rasterize_ground_truth
from deltavlm.data.synthetic.imaging import photograph, random_light
from deltavlm.data.synthetic.layout import Neighborhood
from deltavlm.data.synthetic.plan import Plan, Rng
from deltavlm.data.synthetic.render import Renderer

GroundPart = Literal["distractors", "growth", "unchanged", "cutouts", "hidden"]
MARGIN = 16  # pixels rendered around the image, so that a shift never shows an edge


@dataclass(frozen=True, slots=True)
class Scene:
    """Images and ground truth of two dates; rows first, north up."""

    before: npt.NDArray[np.uint8]  # (height, width, 3) RGB
    after: npt.NDArray[np.uint8]  # (height, width, 3) RGB
    change: npt.NDArray[np.uint8]  # (height, width) codes of ground_truth.CHANGE_CLASSES
    instances: npt.NDArray[np.uint16]  # (height, width) id of the changed road or building, else 0
    cover: npt.NDArray[np.uint8]  # (height, width) codes of ground_truth.COVER_CLASSES, before the change

    def window(self, row: int, col: int, size: int) -> Scene:
        """Square crop; row, col and size in pixels."""
        crop = (slice(row, row + size), slice(col, col + size))
        return Scene(
            self.before[crop], self.after[crop], self.change[crop], self.instances[crop], self.cover[crop]
        )

    def rotated(self, quarter: int, mirror: bool) -> Scene:
        """Rotate counterclockwise by quarters, then mirror left to right."""

        def rotate(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
            array = np.rot90(array, quarter)
            return np.ascontiguousarray(array[:, ::-1] if mirror else array)

        return Scene(*(rotate(getattr(self, name)) for name in self.__slots__))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """Options of `make_scene`."""

    change: float = 0.55
    """Probability that a neighborhood of about 300 px changes."""
    scale: float | None = None
    """Size of objects relative to 0.5 m per pixel; None draws one from 0.33 to 1.6."""
    misregistration_px: float = 2.0
    """Largest shift of the after image."""
    strength: float | None = None
    """Difference of light, haze and contrast between the dates; None draws one from 0.2 to 1.1."""
    downsample: int = 1
    """Factor by which the scene is rendered larger and then averaged, as a camera with coarser pixels does:
    with 2, objects are half as large, and there are four times as many."""
    rich: bool = False
    """More kinds of land, buildings and artifacts (`rich_layout`, `render.Appearance`,
    `imaging.add_artifacts`), a `downsample` drawn from 1, 2 and 3, and 4 px of misregistration."""
    without: tuple[GroundPart, ...] = ()
    """What scenes on tiles (`ground`) leave out, to measure its worth: distractors of the land, growth,
    weathering and relighting alone of these, drawn objects of both dates, buildings cut out of masks,
    buildings of the tile that are hidden at a date."""


def make_scene(
    seed: int, width: int = 256, height: int = 256, options: SceneOptions = SceneOptions()
) -> Scene:
    """Scene of a seed: the same arrays on every machine with the same numpy and Pillow.

    width, height: of the images in pixels.
    """
    rng = np.random.default_rng(seed)
    downsample, misregistration_px = options.downsample, options.misregistration_px
    if options.rich:
        downsample = int(rng.choice([1, 2, 3], p=[0.55, 0.33, 0.12]))
        misregistration_px = 4.0
    size = ((width + 2 * MARGIN) * downsample, (height + 2 * MARGIN) * downsample)
    change = 1 - (1 - options.change) ** (1 / downsample**2)
    plan = make_plan(rng, size, change=change, scale=options.scale, rich=options.rich)
    renderer = Renderer(rng, plan)
    strength = rng.uniform(0.2, 1.1) if options.strength is None else options.strength
    images = []
    for date in (0, 1):
        clean = Image.fromarray(renderer.render(rng, date, random_light(rng))).reduce(downsample)
        shift = misregistration_px * (date == 1) * rng.random()
        clean_pixels = np.asarray(clean)
        images.append(photograph(rng, clean_pixels, MARGIN, shift, strength, rich=options.rich))
    change_map, instances, cover = rasterize_ground_truth(plan, renderer.bare_cover())
    inner = tuple(
        slice(MARGIN * downsample, (MARGIN + side) * downsample, downsample) for side in (height, width)
    )
    return Scene(images[0], images[1], change_map[inner].copy(), instances[inner].copy(), cover[inner].copy())


def make_plan(
    rng: Rng,
    size: tuple[int, int],
    *,
    change: float,
    scale: float | None = None,
    rich: bool = False,
) -> Plan:
    """Random plan of `size` (width, height) pixels.

    change: probability that a neighborhood of about 300 px changes. rich: add the kinds of `rich_layout`.
    """
    width, height = size
    if scale is None:
        scale = float(np.clip(np.exp(rng.normal(-0.15, 0.4)), 0.33, 1.6))
    plan = Plan(size, scale, rich)
    columns, rows = max(1, round(width / 300)), max(1, round(height / 300))
    reach = max(width / columns, height / rows)
    neighborhoods = [
        Neighborhood(rng, plan, ((column + 0.5) * width / columns, (row + 0.5) * height / rows), reach)
        for row in range(rows)
        for column in range(columns)
    ]
    for neighborhood in neighborhoods:
        rich_layout.lay_out(neighborhood) if rich else neighborhood.lay_out()
    for neighborhood in neighborhoods:
        if rng.random() >= change:
            continue
        if rich:
            rich_layout.add_changes(neighborhood)
            continue
        count = 1 + (rng.random() < 0.3)
        for event in rng.choice(list(EVENTS), count, replace=False, p=EVENT_PROBABILITIES):
            EVENTS[str(event)](neighborhood)
    return plan
