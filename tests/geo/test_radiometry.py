"""Equal ground stays equal: one stretch for the whole pair, and none for 8-bit images."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deltavlm.errors import ConfigError
from deltavlm.geo.radiometry import ScaleSpec, Stretch, contrast_warning, parse_scale, plan_stretches
from tests.rasters import noise


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("none", ScaleSpec("none")),
        ("AUTO", ScaleSpec("auto")),
        ("per-date", ScaleSpec("auto", per_date=True)),
        ("0,3000", ScaleSpec("fixed", 0, 3000)),
        ("-0.5, 1e3", ScaleSpec("fixed", -0.5, 1000)),
        ("pct:1,99", ScaleSpec("percent", 1, 99)),
    ],
)
def test_scale_is_read(text: str, spec: ScaleSpec) -> None:
    assert parse_scale(text) == spec


@pytest.mark.parametrize(
    "text", ["", "0", "3000,0", "1,1", "0,nan", "pct:2", "pct:-1,98", "pct:2,101", "a,b", "1,2,3"]
)
def test_scale_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="scale"):
        parse_scale(text)


@given(arrays(np.float32, (3, 4, 5), elements=st.floats(-1e4, 1e4, width=32)))
def test_stretch_keeps_order_and_range(values: np.ndarray) -> None:
    stretched = Stretch((0, 0, 0), (3000, 2000, 1000)).apply(values)
    assert stretched.dtype == np.uint8
    for band, high in enumerate((3000, 2000, 1000)):
        order = np.argsort(values[band], axis=None)
        assert (np.diff(stretched[band].ravel()[order].astype(int)) >= 0).all()
        assert (stretched[band][values[band] <= 0] == 0).all()
        assert (stretched[band][values[band] >= high] == 255).all()


def test_nan_becomes_black() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1]).reshape(1, 1, 4).repeat(3, axis=0)
    assert Stretch((0,) * 3, (1,) * 3).apply(values)[0, 0].tolist() == [0, 255, 0, 255]


def test_absurd_values_are_clipped_without_a_warning() -> None:
    """The nodata value of float rasters is often the least of all numbers; stretching it overflows."""
    for dtype in ("float32", "float64"):
        values = (
            np.array([np.finfo(dtype).min, np.finfo(dtype).max, 0.0], dtype).reshape(1, 1, 3).repeat(3, 0)
        )
        assert Stretch((0,) * 3, (0.1,) * 3).apply(values)[0, 0].tolist() == [0, 255, 0]


def sample(low: int, high: int, dtype: str = "uint16") -> np.ndarray:
    return noise(3, 1, 5000, dtype, low=low, high=high)[:, 0]


def test_8_bit_values_stay() -> None:
    assert plan_stretches(ScaleSpec("auto"), sample(0, 99, "uint8"), sample(0, 99, "uint8")) == (
        (None, None),
        (),
    )


def test_percentiles_are_joint() -> None:
    """The same stretch for both dates, or equal ground would look different."""
    (before, after), notes = plan_stretches(ScaleSpec("auto"), sample(0, 1000), sample(0, 1000))
    assert before is after
    assert before is not None
    assert before.low == pytest.approx((20, 20, 20), abs=5)
    assert before.high == pytest.approx((980, 980, 980), abs=5)
    assert notes == ()


def test_unequal_dates_are_noted_and_can_be_parted() -> None:
    dark, bright = sample(0, 1000), sample(2000, 3000)
    (before, after), notes = plan_stretches(ScaleSpec("auto"), dark, bright)
    assert before == after
    assert before is not None
    assert (before.low[0], before.high[0]) == pytest.approx((40, 2960), abs=10)
    assert any("per-date" in note for note in notes)
    (before, after), notes = plan_stretches(ScaleSpec("auto", per_date=True), dark, bright)
    assert before is not None
    assert after is not None
    assert (before.low[0], after.low[0]) == pytest.approx((20, 2020), abs=5)
    assert notes == ()


def test_dates_of_different_depth_have_a_scale_each() -> None:
    (before, after), notes = plan_stretches(ScaleSpec("auto"), sample(0, 255, "uint8"), sample(0, 9999))
    assert before is None
    assert after is not None
    assert any("8-bit" in note for note in notes)


def test_fixed_and_percent_hold_for_8_bit_too() -> None:
    (fixed, _), _ = plan_stretches(ScaleSpec("fixed", 10, 20), sample(0, 99, "uint8"), sample(0, 99, "uint8"))
    assert fixed == Stretch((10,) * 3, (20,) * 3)
    (percent, _), _ = plan_stretches(ScaleSpec("percent"), sample(0, 99, "uint8"), sample(0, 99, "uint8"))
    assert percent is not None


def test_none_clips_and_says_so() -> None:
    """A 16-bit value put into uint8 wraps round without a word: 256 became 0."""
    (before, _), notes = plan_stretches(ScaleSpec("none"), sample(0, 1000), sample(0, 100))
    assert before is not None
    assert before.apply(np.full((3, 1, 1), 256, np.uint16)).tolist() == [[[255]]] * 3
    assert before.apply(np.full((3, 1, 1), 7, np.uint16)).tolist() == [[[7]]] * 3
    assert any("clipped" in note for note in notes)


@pytest.mark.parametrize("values", [np.empty((3, 0), np.uint16), np.full((3, 9), 7, np.uint16)])
def test_empty_and_flat_samples_have_a_stretch(values: np.ndarray) -> None:
    (before, _), _ = plan_stretches(ScaleSpec("auto"), values, values)
    assert before is not None
    assert (np.array(before.high) > np.array(before.low)).all()


FIXED = Stretch((0,) * 3, (3000,) * 3)
FLAT_BLUE = np.concatenate([sample(0, 3000)[:2], np.full((1, 5000), 9999)])


@pytest.mark.parametrize(
    ("values", "stretch", "scale", "words"),
    [
        (sample(1, 100) / 100, FIXED, "0,3000", r"is black: its values are mostly 0\.\d+ to 0\.\d+; give LO"),
        (sample(8000, 9000), FIXED, "0,3000", r"it is white: .* such as `scale='80[12]\d,89[789]\d'`"),
        (sample(1000, 1010), FIXED, "auto", "of one color: .* `scale='per-date'`"),
        (FLAT_BLUE, FIXED, "pct:2,98", "of one value in blue: .* check the file"),
        (sample(0, 2) * 3000, FIXED, "0,3000", "nothing but black and white"),
        (sample(0, 9, "uint8"), None, "auto", "it is black: its values .* `scale='pct:2,98'` stretches it"),
        (np.zeros((3, 99), "uint8"), None, "auto", "black: nearly all of its values are 0; check the file"),
        (np.empty((3, 0)), FIXED, "auto", "no pixel with data; check its nodata value"),
        (sample(8000, 9000), FIXED, "none", "with `scale='none'` it is white: .* `scale='auto'` stretches"),
        (sample(0, 3000), FIXED, "0,3000", None),
        (sample(0, 99, "uint8"), None, "auto", None),
        (FLAT_BLUE.clip(0, 200).astype("uint8"), None, "auto", None),  # colors as they are
    ],
)  # fmt: skip
def test_a_stretch_that_leaves_nothing_is_told(
    values: np.ndarray, stretch: Stretch | None, scale: str, words: str | None
) -> None:
    """A scale in other units than the file's made both dates black: no change, exit 0."""
    warning = contrast_warning(values, stretch, scale, is_physical=False)
    if words is None:
        assert warning is None
    else:
        assert warning is not None
        assert re.search(words, warning)
