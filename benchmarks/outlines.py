"""Outlines and polygons of random masks, against OpenCV's.

    python benchmarks/outlines.py --masks 400     # needs opencv-python-headless; compared with 4.10

Noise, blobs of two sizes and rectangles. Counts the outlines, those that differ, polygons that differ, and
areas and cells that do. Exits with 1 where one differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402

from benchmarks.rows import Table, heading  # noqa: E402
from deltavlm.data.outlines import MAX_CORNERS, STEP_PX, TOLERANCE, moments, outlines, polygon_of  # noqa: E402

KINDS = ("noise", "small blobs", "large blobs", "rectangles")


def make_mask(kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind == "noise":
        return rng.random((20, 24)) < 0.35
    if kind == "small blobs":
        return ndimage.gaussian_filter(rng.standard_normal((96, 96)), 3) > 0.05
    if kind == "large blobs":
        return ndimage.gaussian_filter(rng.standard_normal((200, 200)), 6) > 0
    mask = np.zeros((128, 128), bool)
    for _ in range(6):
        (row, col), (height, width) = rng.integers(0, 100, 2), rng.integers(1, 40, 2)
        mask[row : row + height, col : col + width] = True
    return mask


def simplified(contour: np.ndarray) -> np.ndarray:
    """OpenCV's polygon with the tolerance of ChangeIMTI's labels."""
    length = cv2.arcLength(contour, True)
    tolerance = TOLERANCE * length
    polygon = cv2.approxPolyDP(contour, tolerance, True)
    while len(polygon) > MAX_CORNERS and tolerance < length:
        tolerance += STEP_PX
        polygon = cv2.approxPolyDP(contour, tolerance, True)
    return polygon.reshape(-1, 2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=400)
    rng = np.random.default_rng(0)
    totals = {kind: [0, 0, 0, 0, 0] for kind in KINDS}
    for number in range(parser.parse_args().masks):
        kind = KINDS[number % len(KINDS)]
        mask, count = make_mask(kind, rng), totals[kind]
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        ours, theirs = outlines(mask), [contour.reshape(-1, 2) for contour in contours]
        count[0] += 1
        count[1] += len(theirs)
        count[2] += [each.tolist() for each in ours] != [each.tolist() for each in theirs]
        for contour in theirs:
            expected, polygon = simplified(contour.reshape(-1, 1, 2)), polygon_of(contour.astype(np.int64))
            found, whole = moments(polygon), cv2.moments(expected.reshape(-1, 1, 2))
            area = whole["m00"]
            count[3] += expected.tolist() != polygon.tolist()
            is_equal = bool(found.area) == bool(area) and (
                not area
                or (int(found.x), int(found.y)) == (int(whole["m10"] / area), int(whole["m01"] / area))
            )
            count[4] += not is_equal
    print(heading(1, f"OpenCV {cv2.__version__}"), end="\n\n")
    table = Table()
    for kind, counts in totals.items():
        names = (
            "masks",
            "outlines",
            "masks whose outlines differ",
            "polygons that differ",
            "cells that differ",
        )
        table.row({"kind": kind, **dict(zip(names, counts, strict=True))})
    return int(any(sum(counts[2:]) for counts in totals.values()))


if __name__ == "__main__":
    sys.exit(main())
