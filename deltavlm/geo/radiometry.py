"""Any dtype and band order -> RGB uint8, by one stretch for the whole raster.

A stretch per chip would invent change. 8-bit values stay as they are, since models are trained on 8-bit
images; everything else is stretched between two values per band, measured once over both dates together, so
that equal ground stays equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ConfigError

__all__ = ["ScaleSpec", "Stretch", "choose_bands", "parse_scale", "plan_stretches"]

Values = NDArray[Any]

UNEQUAL_DATES = 0.2
"""Dates whose own limits differ by more than this share of the joint range are worth a note."""


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """What `--scale` asks for. `low`, `high` are values for "fixed", percentiles for "percent"."""

    kind: Literal["none", "auto", "fixed", "percent"]
    low: float = 2.0
    high: float = 98.0
    per_date: bool = False


def parse_scale(text: str) -> ScaleSpec:
    """Read `none`, `auto`, `per-date`, `LO,HI` or `pct:LO,HI`.

    >>> parse_scale("0,3000")
    ScaleSpec(kind='fixed', low=0.0, high=3000.0, per_date=False)

    Raises:
        ConfigError: anything else, or LO not below HI.
    """
    word = text.strip().lower()
    if word == "none":
        return ScaleSpec("none")
    if word == "auto":
        return ScaleSpec("auto")
    if word == "per-date":
        return ScaleSpec("auto", per_date=True)
    kind: Literal["fixed", "percent"] = "percent" if word.startswith("pct:") else "fixed"
    try:
        low, high = (float(part) for part in word.removeprefix("pct:").split(","))
    except ValueError:
        raise ConfigError(
            f"scale {text!r} is not none, auto, per-date, LO,HI or pct:LO,HI; write for example 0,3000"
        ) from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise ConfigError(f"scale {text!r}: the first number must be below the second")
    if kind == "percent" and not 0 <= low < high <= 100:
        raise ConfigError(f"scale {text!r}: percentiles lie between 0 and 100")
    return ScaleSpec(kind, low, high)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The straight line, per band, that takes `low` to 0 and `high` to 255; what lies outside is clipped."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, values: Values) -> NDArray[np.uint8]:
        """`values` (3, rows, cols) of any real dtype -> uint8 of that shape; what is no number becomes 0."""
        low, high = (np.array(edge, dtype=np.float32)[:, None, None] for edge in (self.low, self.high))
        with np.errstate(over="ignore", invalid="ignore"):  # nodata such as -3.4e38; clipped, and masked
            scaled = values.astype(np.float32)
            scaled -= low
            scaled *= 255 / (high - low)
        if values.dtype.kind == "f":
            np.nan_to_num(scaled, copy=False, nan=0)
        np.clip(scaled, 0, 255, out=scaled)
        scaled += 0.5
        return scaled.astype(np.uint8)


AS_IS = Stretch((0.0,) * 3, (255.0,) * 3)


def plan_stretches(
    spec: ScaleSpec, before: Values, after: Values
) -> tuple[tuple[Stretch | None, Stretch | None], tuple[str, ...]]:
    """The stretch of each date, and what to tell the user; None leaves 8-bit values untouched.

    `before`, `after`: (3, N) samples of valid values, in the dtype of their raster.
    """
    is_8bit = [values.dtype == np.uint8 for values in (before, after)]
    if spec.kind == "none":
        over = max((float(values.max()) for values in (before, after) if values.size), default=0.0)
        notes = (f"scale none: values above 255 (up to {over:g}) are clipped",) if over > 255 else ()
        return (None if is_8bit[0] else AS_IS, None if is_8bit[1] else AS_IS), notes
    if spec.kind == "fixed":
        fixed = Stretch((spec.low,) * 3, (spec.high,) * 3)
        return (fixed, fixed), ()
    if spec.kind == "auto" and all(is_8bit):
        return (None, None), ()
    own = [_percentiles(values, spec) for values in (before, after)]
    if spec.per_date or is_8bit[0] != is_8bit[1]:
        notes = (
            ()
            if spec.per_date
            else ("one date is 8-bit, the other is not: each date has a scale of its own",)
        )
        keep = [eight and spec.kind == "auto" for eight in is_8bit]
        return (None if keep[0] else own[0], None if keep[1] else own[1]), notes
    joint = _percentiles(np.concatenate([before, after], axis=1), spec)
    span = np.array(joint.high) - np.array(joint.low)
    gap = np.abs(np.array([own[0].low, own[0].high]) - np.array([own[1].low, own[1].high])).max(axis=0)
    differ = before.size and after.size and (gap > UNEQUAL_DATES * span).any()
    notes = ("the dates differ in brightness: --scale per-date gives each its own scale",) if differ else ()
    return (joint, joint), notes


def _percentiles(values: Values, spec: ScaleSpec) -> Stretch:
    """The stretch between two percentiles of each band; flat or empty bands get a width of 1."""
    if not values.size:
        return Stretch((0.0,) * 3, (1.0,) * 3)
    edges = [np.percentile(band, (spec.low, spec.high), method="nearest").tolist() for band in values]
    low = tuple(float(edge[0]) for edge in edges)
    high = tuple(float(edge[1]) if edge[1] > edge[0] else edge[0] + 1.0 for edge in edges)
    return Stretch(low, high)


def choose_bands(
    labels: Sequence[str], wanted: Sequence[int] | None
) -> tuple[tuple[int, int, int], str | None]:
    """The bands that serve as red, green and blue (from 1), and a note when they are a guess.

    `labels`: what each band says of itself, as `rasterio`'s ColorInterp names ("red", "gray", "alpha", ...).
    `wanted` rules when given: three bands, or one for all three.

    Raises:
        ConfigError: `wanted` names a band that is not there, or is neither one nor three long.
    """
    count = len(labels)
    if wanted is not None:
        if len(wanted) not in (1, 3) or any(not 1 <= band <= count for band in wanted):
            asked = ",".join(str(band) for band in wanted)
            raise ConfigError(f"bands {asked}: give one or three of its bands 1 to {count}")
        return (wanted[0], wanted[len(wanted) // 2], wanted[-1]), None
    if {"red", "green", "blue"} <= set(labels):
        return (labels.index("red") + 1, labels.index("green") + 1, labels.index("blue") + 1), None
    if count < 3:
        note = (
            None
            if count == 1 or labels[1] == "alpha"
            else "one of two bands serves as all three colours: band 1"
        )
        return (1, 1, 1), note
    return (
        1,
        2,
        3,
    ), "no band is labelled red, green, blue: bands 1,2,3 are taken (--bands chooses others)"
