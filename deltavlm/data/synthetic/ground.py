"""Synthetic changes on real ground: tiles at both dates, drawn objects at one.

Distractors, which are no change, appear in changed and unchanged pairs alike: plants that grow, surfaces that
weather and are lit anew, recolored fields, vegetation tone, lengthened shadows, retoned roofs, cars, and
drawn and cut out buildings that exist at both dates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from deltavlm.data.synthetic.ground_layout import Ground, add_hidden, lay_out
from deltavlm.data.synthetic.ground_renderer import GroundRenderer
from deltavlm.data.synthetic.ground_truth import rasterize_ground_truth
from deltavlm.data.synthetic.imaging import photograph, random_light
from deltavlm.data.synthetic.plan import Plan, Rng
from deltavlm.data.synthetic.scene import MARGIN, Scene, SceneOptions
from deltavlm.data.synthetic.tiles import (
    GroundTiles,
    TileWindow,
)

__all__ = ["GroundTiles", "make_georeferenced_scene", "make_ground_scene"]


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
    strength = rng.uniform(0.15, 1.3) if options.strength is None else options.strength
    has_artifacts, softness = bool(rng.random() < 0.3), float(rng.choice([0.3, 1.0], p=[0.6, 0.4]))
    images = []
    for date in (0, 1):
        clean = Image.fromarray(renderer.render(rng, date, random_light(rng))).reduce(downsample)
        shift = options.misregistration_px * (date == 1) * rng.random()
        images.append(
            photograph(rng, np.asarray(clean), MARGIN, shift, strength, rich=has_artifacts, softness=softness)
        )
    change, instances, cover = add_hidden(hidden, *rasterize_ground_truth(plan, ground.cover))
    inner = tuple(
        slice(MARGIN * downsample, side - MARGIN * downsample, downsample) for side in (height, width)
    )
    return Scene(images[0], images[1], change[inner].copy(), instances[inner].copy(), cover[inner].copy())
