"""Conversion of any dtype to RGB uint8, with one linear stretch per raster.

A stretch per chip would invent change. 8-bit values stay as they are, since models are trained on 8-bit
images; everything else is stretched between two values per band, measured once over both dates together, so
that equal ground stays equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ConfigError

__all__ = [
    "ScaleSpec",
    "Stretch",
    "Stretches",
    "contrast_warning",
    "parse_scale",
    "plan_stretches",
    "to_uint8",
]

Values = NDArray[Any]

UNEQUAL_DATES = 0.2
"""Dates whose own limits differ by more than this share of the joint range are worth a note."""

RGB = ("red", "green", "blue")
OUTLIERS = (0.5, 99.5)  # percentiles: a date is of one color even if a hundredth of its pixels are not
FLAT_SPREAD, NEARLY_BLACK = 2, 12  # of 255
CLIPPED = 0.99  # share of values that are 0 or 255


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """Parsed `--scale`. `low`, `high` are values for "fixed", percentiles for "percent" and "auto"."""

    kind: Literal["none", "auto", "fixed", "percent"]
    low: float = 2.0
    high: float = 98.0
    per_date: bool = False


def parse_scale(text: str) -> ScaleSpec:
    """Parse `none`, `auto`, `per-date`, `LO,HI` or `pct:LO,HI`.

    >>> parse_scale("0,3000")
    ScaleSpec(kind='fixed', low=0.0, high=3000.0, per_date=False)

    Raises:
        ConfigError: any other text, or LO not below HI.
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
        low, high = (float(number) for number in word.removeprefix("pct:").split(","))
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
    """Linear map, per band, from `low` to 0 and `high` to 255; values outside are clipped."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, values: Values) -> NDArray[np.uint8]:
        """Map `values` (3, rows, cols) of any real dtype to uint8 of that shape; NaN becomes 0."""
        dtype = np.result_type(values.dtype, np.float32)  # float64 for 32-bit integers, which need it
        low, high = (np.array(limit, dtype)[:, None, None] for limit in (self.low, self.high))
        with np.errstate(over="ignore", invalid="ignore"):  # nodata such as -3.4e38; clipped, and masked
            scaled = values.astype(dtype)
            scaled -= low
            scaled *= 255 / (high - low)
        if values.dtype.kind == "f":
            np.nan_to_num(scaled, copy=False, nan=0)
        np.clip(scaled, 0, 255, out=scaled)
        scaled += 0.5
        return scaled.astype(np.uint8)


Stretches = tuple[Stretch | None, Stretch | None]
"""Stretches of before and after; None keeps 8-bit values."""

IDENTITY = Stretch((0.0,) * 3, (255.0,) * 3)


def to_uint8(values: Values, stretch: Stretch | None) -> NDArray[np.uint8]:
    """Apply a stretch, or none, to (3, rows, cols) values."""
    return values.astype(np.uint8, copy=False) if stretch is None else stretch.apply(values)


def plan_stretches(spec: ScaleSpec, before: Values, after: Values) -> tuple[Stretches, tuple[str, ...]]:
    """Stretch of each date, and notes for the user.

    `before`, `after`: (3, N) samples of valid values, in the dtype of their raster.
    """
    is_8bit = [values.dtype == np.uint8 for values in (before, after)]
    if spec.kind == "none":
        highest = max((float(values.max()) for values in (before, after) if values.size), default=0.0)
        notes = (f"scale none: values above 255 (up to {highest:g}) are clipped",) if highest > 255 else ()
        return (None if is_8bit[0] else IDENTITY, None if is_8bit[1] else IDENTITY), notes
    if spec.kind == "fixed":
        fixed = Stretch((spec.low,) * 3, (spec.high,) * 3)
        return (fixed, fixed), ()
    if spec.kind == "auto" and all(is_8bit):
        return (None, None), ()
    per_date = [_percentile_stretch(values, spec) for values in (before, after)]
    if spec.per_date or is_8bit[0] != is_8bit[1]:
        notes = () if spec.per_date else ("one date is 8-bit, the other is not: each date has its own scale",)
        keep = [eight and spec.kind == "auto" for eight in is_8bit]
        return (None if keep[0] else per_date[0], None if keep[1] else per_date[1]), notes
    joint = _percentile_stretch(np.concatenate([before, after], axis=1), spec)
    span = np.array(joint.high) - np.array(joint.low)
    first, second = (np.array([stretch.low, stretch.high]) for stretch in per_date)
    gap = np.abs(first - second).max(axis=0)
    differ = before.size and after.size and (gap > UNEQUAL_DATES * span).any()
    notes = ("the dates differ in brightness: `scale='per-date'` gives each its own scale",) if differ else ()
    return (joint, joint), notes


def _percentile_stretch(values: Values, spec: ScaleSpec) -> Stretch:
    """Stretch between two percentiles of each band; flat or empty bands get a width of 1."""
    if not values.size:
        return Stretch((0.0,) * 3, (1.0,) * 3)
    limits = [np.percentile(band, (spec.low, spec.high), method="nearest").tolist() for band in values]
    low = tuple(float(limit[0]) for limit in limits)
    high = tuple(float(limit[1]) if limit[1] > limit[0] else limit[0] + 1.0 for limit in limits)
    return Stretch(low, high)


def contrast_warning(values: Values, stretch: Stretch | None, scale: str, is_physical: bool) -> str | None:
    """Warning where a stretch leaves nothing to see of a date: one color, black, white, or no data at all.

    values: (3, N) sample of its valid values. scale: text of `--scale`. is_physical: True where the scale and
    offset of the file have been applied to them.
    """
    if not values.shape[1]:
        return (
            "a sample of it has no pixel with data; check its nodata value, mask, alpha band and cloud mask"
        )
    image = to_uint8(values[:, None], stretch)[:, 0]
    low, high = np.percentile(image, OUTLIERS, axis=1, method="nearest").astype(int)
    flat = high - low <= FLAT_SPREAD
    if (high <= NEARLY_BLACK).all():
        appearance = "black"
    elif (low >= 255 - NEARLY_BLACK).all():
        appearance = "white"
    elif flat.all():
        appearance = "of one color"
    elif flat.any() and stretch is not None:
        names = [name for name, is_flat in zip(RGB, flat, strict=True) if is_flat]
        appearance = f"of one value in {' and '.join(names)}"
    elif np.isin(image, (0, 255)).mean() > CLIPPED:
        appearance = "nothing but black and white"
    else:
        return None
    lowest, highest = (f"{limit:.4g}" for limit in np.percentile(values, (2, 98), method="nearest").tolist())
    unit = " after the scale and offset of the file" if is_physical else ""
    spec = parse_scale(scale)
    if lowest == highest:
        return f"it is {appearance}: nearly all of its values are {lowest}{unit}; check the file"
    if spec.kind == "fixed":
        advice = f"give LO,HI in these units, such as `scale='{lowest},{highest}'`"
    elif spec.kind == "none":
        advice = "`scale='auto'` stretches it"
    elif spec.per_date or spec.kind == "percent":
        advice = "check the file, or set limits with `scale`"
    else:
        advice = (
            "`scale='per-date'` gives each date its own limits"
            if stretch
            else "`scale='pct:2,98'` stretches it"
        )
    values_text = f"its values are mostly {lowest} to {highest}{unit}"
    return f"with `scale='{scale}'` it is {appearance}: {values_text}; {advice}"
