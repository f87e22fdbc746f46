"""A finished scene: two pictures and the truth, from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deltavlm.data.synthetic import styles
from deltavlm.data.synthetic.events import EVENTS, ODDS, happen
from deltavlm.data.synthetic.layout import Neighbourhood
from deltavlm.data.synthetic.nuisance import photograph, sun
from deltavlm.data.synthetic.paint import Painter
from deltavlm.data.synthetic.plan import Plan, Rng
from deltavlm.data.synthetic.truth import draw_truth

MARGIN = 16  # drawn around the picture, so that a shift never shows an edge


@dataclass(frozen=True, slots=True)
class Scene:
    """Two dates of one place. Arrays are rows first, north up."""

    before: npt.NDArray[np.uint8]  # (height, width, 3) RGB
    after: npt.NDArray[np.uint8]  # (height, width, 3) RGB
    change: npt.NDArray[np.uint8]  # (height, width) codes of paint.CHANGES
    things: npt.NDArray[np.uint16]  # (height, width) id of the changed road or building, 0 elsewhere
    cover: npt.NDArray[np.uint8]  # (height, width) codes of paint.COVERS: what was there before

    def window(self, row: int, col: int, size: int) -> Scene:
        """A square cut, in pixels."""
        cut = (slice(row, row + size), slice(col, col + size))
        return Scene(self.before[cut], self.after[cut], self.change[cut], self.things[cut], self.cover[cut])

    def turned(self, quarter: int, mirror: bool) -> Scene:
        """Turned by quarters anti-clockwise, then mirrored left to right."""

        def turn(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
            array = np.rot90(array, quarter)
            return np.ascontiguousarray(array[:, ::-1] if mirror else array)

        return Scene(*(turn(getattr(self, name)) for name in self.__slots__))  # type: ignore[arg-type]


def make_scene(
    seed: int,
    width: int = 256,
    height: int = 256,
    *,
    change: float = 0.55,
    scale: float | None = None,
    misregistration_px: float = 2.0,
    strength: float | None = None,
    reduce: int = 1,
    rich: bool = False,
) -> Scene:
    """The scene of a seed: the same arrays on every machine with the same numpy and Pillow.

    `change` is the chance that about 300 px of the picture change; `scale` the size of things relative to
    0.5 m per pixel (None draws one, 0.33 to 1.6); `misregistration_px` the largest shift of the after
    picture; `strength` how far the light, haze and contrast of the dates differ (None draws one, 0.2 to 1.1).
    `reduce` draws so many times larger and averages down, as a camera with coarser pixels would: with 2,
    things are half as large, and there are four times as many. `rich` draws from more kinds of land, of
    building and of nuisance (`styles`, `paint.Mood`, `nuisance.mishaps`), and a `reduce` of 1, 2 or 3.
    """
    rng = np.random.default_rng(seed)
    if rich:
        reduce = int(rng.choice([1, 2, 3], p=[0.55, 0.33, 0.12]))
        misregistration_px = 4.0
    size = ((width + 2 * MARGIN) * reduce, (height + 2 * MARGIN) * reduce)
    plan = make_plan(rng, size, change=1 - (1 - change) ** (1 / reduce**2), scale=scale, rich=rich)
    painter = Painter(rng, plan)
    if strength is None:
        strength = rng.uniform(0.2, 1.1)
    views = []
    for date in (0, 1):
        view = np.asarray(Image.fromarray(painter.view(rng, date, sun(rng))).reduce(reduce))
        shift = misregistration_px * (date == 1) * rng.random()
        views.append(photograph(rng, view, MARGIN, misregistration_px=shift, strength=strength, rich=rich))
    inner = tuple(slice(MARGIN * reduce, (MARGIN + side) * reduce, reduce) for side in (height, width))
    change_map, things, cover = draw_truth(plan, painter.land())
    return Scene(views[0], views[1], change_map[inner].copy(), things[inner].copy(), cover[inner].copy())


def make_plan(
    rng: Rng,
    size: tuple[int, int],
    *,
    change: float = 0.55,
    scale: float | None = None,
    rich: bool = False,
) -> Plan:
    """A plan of `size` (width, height) pixels; each neighbourhood of about 300 px changes with probability
    `change`. `rich` also has the kinds of land of `styles`."""
    width, height = size
    if scale is None:
        scale = float(np.clip(np.exp(rng.normal(-0.15, 0.4)), 0.33, 1.6))
    plan = Plan(size, scale, rich)
    columns, rows = max(1, round(width / 300)), max(1, round(height / 300))
    reach = max(width / columns, height / rows)
    places = [
        Neighbourhood(rng, plan, ((column + 0.5) * width / columns, (row + 0.5) * height / rows), reach)
        for row in range(rows)
        for column in range(columns)
    ]
    for place in places:
        styles.settle(place) if rich else place.settle()
    for place in (place for place in places if rng.random() < change):
        if rich:
            styles.change(place)
            continue
        for event in rng.choice(EVENTS, size=1 + (rng.random() < 0.3), p=ODDS, replace=False):
            happen(place, str(event))
    return plan
