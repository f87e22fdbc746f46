"""The colours of scores: their order can be seen by their lightness alone."""

from __future__ import annotations

from itertools import pairwise

from deltavlm.report.colours import RAMP, ramp


def lightness(colour: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_higher_scores_are_lighter() -> None:
    steps = [lightness(ramp(step / 50)) for step in range(51)]
    assert all(low < high for low, high in pairwise(steps))
    assert (ramp(-1), ramp(0.5), ramp(2)) == (RAMP[0], RAMP[2], RAMP[-1])
