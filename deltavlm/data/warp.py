"""A small crop and turn, the same for both dates of a pair and for its truth maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Warp:
    """Which square of a picture is shown, in shares of its side: turned about its own centre."""

    angle_deg: float
    scale: float  # side of the square
    shift: tuple[float, float]  # of its centre from the picture's: columns, rows

    def __call__(self, picture: Pixels, *, nearest: bool = False) -> Pixels:
        """The picture (H, W) or (H, W, 3) warped, of the same size; what lies outside of it is 0.

        nearest: for codes, which must not be mixed.
        """
        rows, cols = picture.shape[:2]
        turn = math.radians(self.angle_deg)
        cos, sin = self.scale * math.cos(turn), self.scale * math.sin(turn)
        middle_x, middle_y = cols * (0.5 + self.shift[0]), rows * (0.5 + self.shift[1])
        place = (
            *(cos, -sin, middle_x - cos * cols / 2 + sin * rows / 2),
            *(sin, cos, middle_y - sin * cols / 2 - cos * rows / 2),
        )
        image = Image.fromarray(np.ascontiguousarray(picture))
        how = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
        return np.asarray(image.transform((cols, rows), Image.Transform.AFFINE, place, how))


def draw_warp(rng: np.random.Generator, cut: float, turn_deg: float) -> Warp:
    """A crop of up to `cut` of the side, anywhere, and a turn of up to `turn_deg` either way."""
    lost = rng.uniform(0, cut)
    shift = rng.uniform(-lost / 2, lost / 2, size=2)
    return Warp(float(rng.uniform(-turn_deg, turn_deg)), 1 - lost, (float(shift[0]), float(shift[1])))
