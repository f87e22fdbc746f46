"""The colours of scores: their order can be seen by their lightness alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from deltavlm.report.colours import CLASS_COLOURS, RAMP, ramp

# sRGB as people without one kind of cone see it (Machado, Oliveira and Fernandes 2009, severity 1)
VISIONS = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lightness(colour: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("vision", VISIONS)
def test_classes_differ_from_scores_and_from_each_other(vision: str) -> None:
    """A building had the yellow of a high score."""
    colours = [*CLASS_COLOURS.values(), *(ramp(step / 50) for step in range(51))]
    linear = (np.array(colours) / 255) ** 2.2
    seen = 255 * np.clip(linear @ np.transpose(VISIONS[vision]), 0, 1) ** (1 / 2.2)
    classes = seen[: len(CLASS_COLOURS)]
    distances = np.linalg.norm(classes[:, None] - seen[None], axis=2)
    distances[np.eye(*distances.shape, dtype=bool)] = np.inf
    assert distances.min() > 40


def test_higher_scores_are_lighter() -> None:
    steps = [lightness(ramp(step / 50)) for step in range(51)]
    assert all(low < high for low, high in pairwise(steps))
    assert (ramp(-1), ramp(0.5), ramp(2)) == (RAMP[0], RAMP[2], RAMP[-1])
