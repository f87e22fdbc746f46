"""Color palettes and textures of land: noise and mosaics of fields.

Textures are random crops of a small bank of periodic noise that is made once per process.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from deltavlm.data.synthetic.plan import Rng

Floats = npt.NDArray[np.float32]
TILE = 512


@cache
def _noise_tile(sigma: float, seed: int = 0) -> Floats:
    """Periodic Gaussian noise of unit variance, (TILE, TILE)."""
    white = np.random.default_rng([seed, int(sigma * 100)]).standard_normal((TILE, TILE))
    freq = np.fft.fftfreq(TILE)
    pass_band = np.exp(-2 * (np.pi * sigma) ** 2 * (freq[:, None] ** 2 + freq[None, :] ** 2))
    field = np.fft.ifft2(np.fft.fft2(white) * pass_band).real
    normalized: Floats = (field / field.std()).astype(np.float32)
    return normalized


def noise(rng: Rng, size: tuple[int, int], sigma: float) -> Floats:
    """Random crop, (height, width), of noise with a grain of about `sigma` pixels."""
    width, height = size
    field = _noise_tile(sigma, int(rng.integers(3)))
    if rng.random() < 0.5:
        field = field.T
    ys = (np.arange(height) + rng.integers(TILE)) % TILE
    xs = (np.arange(width) + rng.integers(TILE)) % TILE
    return np.ascontiguousarray(field[ys[:, None], xs[None, :]])


PALETTE: dict[str, list[tuple[int, int, int]]] = {
    "grass": [(96, 118, 70), (120, 130, 86), (136, 132, 96), (84, 104, 66), (150, 148, 108)],
    "crops": [
        (88, 120, 58),
        (134, 146, 84),
        (168, 152, 104),
        (188, 172, 122),
        (104, 112, 64),
        (142, 118, 84),
    ],
    "soil": [(158, 132, 102), (184, 160, 130), (136, 110, 84), (202, 186, 160), (118, 98, 78)],
    "trees": [(58, 78, 48), (74, 92, 58), (64, 82, 60), (88, 96, 64)],
}
"""Base colors (R, G, B) of ground covers; one is drawn for each parcel, and varies with the season."""
ROOFS = [
    (150, 88, 72), (168, 104, 84), (132, 78, 66), (120, 112, 104), (140, 134, 126),
    (98, 92, 88), (172, 164, 154), (206, 200, 192), (228, 226, 222), (110, 90, 78),
    (136, 116, 98), (88, 96, 110), (122, 138, 158), (84, 78, 76),
]  # fmt: skip
ROADS = {
    "asphalt": [(96, 96, 98), (118, 118, 118), (136, 134, 130), (80, 82, 86)],
    "concrete": [(176, 172, 164), (196, 192, 184), (160, 156, 150)],
    "dirt": [(178, 156, 124), (196, 176, 146), (160, 138, 108)],
    "rail": [(120, 108, 98), (136, 126, 118), (98, 88, 80)],
}
WATER = [(44, 62, 66), (58, 76, 72), (40, 54, 74), (84, 92, 76), (30, 42, 48), (104, 112, 100)]
CARS = [(230, 230, 230), (40, 40, 44), (150, 40, 36), (60, 80, 130), (170, 172, 176)]
COVER_COLORS = {
    "glass": [(206, 214, 216), (178, 190, 192), (224, 226, 220)],
    "pool": [(70, 160, 186), (96, 182, 200), (58, 130, 160)],
}
GROUND_PALETTE = {
    "soil": "soil", "construction": "soil", "lawn": "grass", "parking": "asphalt", "drive": "concrete",
    "glass": "glass", "pool": "pool",
}  # fmt: skip


def random_color(rng: Rng, palette: list[tuple[int, int, int]], spread: float = 10) -> Floats:
    """Random color of a palette with normal noise, (3,)."""
    color = np.asarray(palette[int(rng.integers(len(palette)))], np.float32)
    return color + rng.normal(0, spread, 3).astype(np.float32)


def parcels(rng: Rng, size: tuple[int, int]) -> npt.NDArray[np.intp]:
    """Mosaic of fields as ids, (height, width): rotated strips, divided at random offsets."""
    width, height = size
    angle, pitch = rng.uniform(0, np.pi), float(np.exp(rng.uniform(np.log(22), np.log(400))))
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    along = xs * np.cos(angle) + ys * np.sin(angle) + 0.0
    across = ys * np.cos(angle) - xs * np.sin(angle)
    if rng.random() < 0.4:
        across += noise(rng, size, 40) * 8
    strip = np.floor(across / pitch).astype(int)
    strip -= strip.min()
    shift = rng.uniform(0, 999, strip.max() + 1).astype(np.float32)
    block = np.floor((along + shift[strip]) / (pitch * rng.uniform(0.8, 5))).astype(int)
    block -= block.min()
    ids = strip * (block.max() + 1) + block
    return np.unique(ids, return_inverse=True)[1].reshape(height, width)


def to_rgb(color: npt.NDArray[np.floating[Any]]) -> tuple[int, int, int]:
    """Color as Pillow takes it, clipped to 0 to 255."""
    r, g, b = np.clip(color, 0, 255)
    return int(r), int(g), int(b)
