"""Matching of the colors of `after` to those of `before`, by a gain and an offset for each band.

They make the mean and standard deviation of unchanged ground equal on both dates, as a linear histogram
matching does. Unchanged is what fits best: from all of the ground, the blocks of pixels with the largest
residuals are trimmed and the rest is fitted again (least trimmed squares, Rousseeuw 1984). Blocks are means,
so that a shift of a few pixels and noise do not weigh in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ConfigError
from deltavlm.geo.radiometry import IDENTITY, Stretch

__all__ = ["ColorMatch", "Matching", "block_means", "check_matching", "fit_colors"]

Matching = Literal["none", "histogram"]

BLOCK_PX = 8
MIN_BLOCKS = 100
KEPT = 0.7  # share of the blocks that counts as unchanged
ROUNDS = 10
MAX_GAIN = 3.0
MIN_SPREAD = 1.0  # standard deviation of 255 levels, below which a band says nothing about its gain

Samples = NDArray[np.float64]  # (3, N)


@dataclass(frozen=True, slots=True)
class ColorMatch:
    """Map of the 8-bit values of `after` to those of `before`: value * gain + offset, for each band."""

    gain: tuple[float, ...]
    offset: tuple[float, ...]

    def of_stretch(self, stretch: Stretch | None) -> Stretch:
        """Stretch that does both: from stored values to matched ones, without rounding in between."""
        stretch = stretch or IDENTITY
        low, high, gain, offset = (
            np.array(each) for each in (stretch.low, stretch.high, self.gain, self.offset)
        )
        to_0, to_255 = (low + (high - low) * (value - offset) / gain / 255 for value in (0, 255))
        return Stretch(tuple(to_0.tolist()), tuple(to_255.tolist()))

    @property
    def note(self) -> str:
        """Note for the user."""
        gains = ", ".join(f"{value:.2f}" for value in self.gain)
        offsets = ", ".join(f"{value:+.0f}" for value in self.offset)
        return f"after: red, green, blue are matched to before (times {gains}, then {offsets} of 255)"

    def record(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"method": "histogram", "gain": list(self.gain), "offset": list(self.offset)}


def check_matching(name: str) -> None:
    """Raises: ConfigError for a method that does not exist."""
    if name not in get_args(Matching):
        raise ConfigError(f"match {name!r} is not one of {', '.join(get_args(Matching))}")


def block_means(images: Iterable[NDArray[np.uint8]], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(images, 3, N): means of the blocks of BLOCK_PX x BLOCK_PX px that are valid as a whole.

    images: (3, rows, cols) each. valid: (rows, cols).
    """
    rows, cols = (side // BLOCK_PX for side in valid.shape)

    def blocks(array: NDArray[Any]) -> NDArray[Any]:
        cropped = array[..., : rows * BLOCK_PX, : cols * BLOCK_PX]
        return cropped.reshape(*array.shape[:-2], rows, BLOCK_PX, cols, BLOCK_PX)

    whole = blocks(valid).all(axis=(1, 3))
    means = np.stack([blocks(image).mean(axis=(2, 4)) for image in images])
    return means[..., whole]


def fit_colors(before: Samples, after: Samples) -> ColorMatch | None:
    """Gains and offsets that make unchanged samples of `after` equal to those of `before`; None with too
    few samples, too little contrast, or an implausible gain."""
    count = before.shape[1]
    if count < MIN_BLOCKS:
        return None
    unchanged = np.arange(count)
    for _ in range(ROUNDS):
        spreads = [samples[:, unchanged].std(axis=1) for samples in (before, after)]
        if min(spreads[0].min(), spreads[1].min()) < MIN_SPREAD:
            return None
        gain = spreads[0] / spreads[1]
        offset = before[:, unchanged].mean(axis=1) - gain * after[:, unchanged].mean(axis=1)
        residuals = np.abs(before - (gain[:, None] * after + offset[:, None])).sum(axis=0)
        unchanged = np.argsort(residuals, kind="stable")[: int(KEPT * count)]
    if not ((gain < MAX_GAIN) & (gain > 1 / MAX_GAIN)).all():
        return None
    return ColorMatch(tuple(gain.round(4).tolist()), tuple(offset.round(2).tolist()))
