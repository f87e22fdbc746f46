"""Random augmentation (crop, date swap, flip, warp, color jitter) and batches of labeled image pairs.

Shape legend: B pairs, P side of an image in pixels, G side in ViT patches, U mask pixels per side of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deltavlm.data.synthetic.facts import SWAPPED, Facts, facts_of
from deltavlm.data.synthetic.ground_truth import CHANGE_CODE
from deltavlm.data.synthetic.imaging import color_jitter

__all__ = ["Augmentation", "LabeledBatch", "LabeledPair", "Warp", "augment", "random_warp", "stack_pairs"]

PATCH_PX, UPSAMPLE = 16, 4

Pixels = npt.NDArray[np.uint8]
Rng = np.random.Generator
LabeledPair = tuple[Pixels, Pixels]
"""Images (2, P, P, 3), before first, and truth (3, P / 2, P / 2): change codes, instance ids, cover."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Options of `augment`; rotation by quarters and flipping are always random."""

    crop_px: int | None = None  # side of a square crop; None keeps the whole image
    change_centered: float = 0.75  # share of crops that are placed around a changed pixel
    swap_dates: float = 0.15  # probability of exchanging before and after: built becomes removed
    color_jitter: float = 0.0  # probability of new colors, each date for itself


@dataclass(frozen=True, slots=True)
class Warp:
    """Crop and rotation of an image about the center of the crop, the same for both dates and for labels."""

    angle_deg: float
    scale: float  # side of the crop as a share of the image's
    shift: tuple[float, float]  # center of the crop from that of the image: columns, rows, as shares

    def __call__(self, image: Pixels, *, nearest: bool = False) -> Pixels:
        """Warp (H, W) or (H, W, 3) to the same shape; pixels from outside the image are 0.

        nearest: nearest neighbor in place of bicubic, for codes that must not be mixed.
        """
        rows, cols = image.shape[:2]
        angle = math.radians(self.angle_deg)
        cos, sin = self.scale * math.cos(angle), self.scale * math.sin(angle)
        center_x, center_y = cols * (0.5 + self.shift[0]), rows * (0.5 + self.shift[1])
        coefficients = (
            *(cos, -sin, center_x - cos * cols / 2 + sin * rows / 2),
            *(sin, cos, center_y - sin * cols / 2 - cos * rows / 2),
        )
        source = Image.fromarray(np.ascontiguousarray(image))
        resampling = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
        return np.asarray(source.transform((cols, rows), Image.Transform.AFFINE, coefficients, resampling))


def random_warp(rng: Rng, max_crop: float, max_angle_deg: float) -> Warp:
    """Draw a warp that crops up to the share `max_crop` of a side and rotates up to `max_angle_deg` either
    way."""
    crop = rng.uniform(0, max_crop)
    shift = rng.uniform(-crop / 2, crop / 2, size=2)
    angle_deg = float(rng.uniform(-max_angle_deg, max_angle_deg))
    return Warp(angle_deg, 1 - crop, (float(shift[0]), float(shift[1])))


def augment(
    rng: Rng, images: Pixels, truth: Pixels, options: Augmentation, warp: Warp | None = None
) -> LabeledPair:
    """Randomly crop, swap, rotate and flip one labeled pair, then `warp` it and jitter its colors.

    Crops begin at even pixels, so that the ground truth at half the resolution still fits.
    """
    if crop_px := options.crop_px:
        max_offset = images.shape[1] - crop_px
        row, col = rng.integers(max_offset // 2 + 1, size=2) * 2
        changed = np.flatnonzero(truth[0])
        if len(changed) and rng.random() < options.change_centered:
            center = np.asarray(divmod(int(changed[rng.integers(len(changed))]), truth.shape[2])) * 2
            jittered = center - crop_px // 2 + rng.integers(-24, 25, 2)
            row, col = np.clip(jittered, 0, max_offset) // 2 * 2
        images = images[:, row : row + crop_px, col : col + crop_px]
        truth = truth[:, row // 2 : (row + crop_px) // 2, col // 2 : (col + crop_px) // 2]
    if rng.random() < options.swap_dates:
        images = images[::-1]
        truth = np.stack([SWAPPED[truth[0]], truth[1], truth[2]])
    quarters = int(rng.integers(4))
    images, truth = np.rot90(images, quarters, (1, 2)), np.rot90(truth, quarters, (1, 2))
    if rng.random() < 0.5:
        images, truth = images[:, :, ::-1], truth[:, :, ::-1]
    if warp is not None:
        images = np.stack([warp(image) for image in images])
        truth = np.stack([warp(codes, nearest=True) for codes in truth])
    if options.color_jitter and rng.random() < options.color_jitter:
        images = np.stack([color_jitter(rng, image) for image in images])
    return images, truth


@dataclass(frozen=True, slots=True)
class LabeledBatch:
    """Arrays of B labeled pairs, and their facts."""

    before: npt.NDArray[np.uint8]  # (B, 3, P, P)
    after: npt.NDArray[np.uint8]  # (B, 3, P, P)
    mask: npt.NDArray[np.int64]  # (B, G U, G U) change codes
    density: npt.NDArray[np.float32]  # (B, 2, G, G) new roads, new buildings; each instance sums to 1
    facts: tuple[Facts, ...]


def stack_pairs(pairs: Sequence[LabeledPair]) -> LabeledBatch:
    """Stack labeled pairs of one size to a batch; derive masks, densities and facts from the ground truth."""
    facts = tuple(facts_of(truth[0], truth[1], truth[2]) for _, truth in pairs)
    dates = np.stack([images for images, _ in pairs]).transpose(1, 0, 4, 2, 3)
    step = PATCH_PX // UPSAMPLE // 2
    return LabeledBatch(
        np.ascontiguousarray(dates[0]),
        np.ascontiguousarray(dates[1]),
        np.stack([truth[0][::step, ::step] for _, truth in pairs]).astype(np.int64),
        np.stack(
            [density_maps(truth[0], truth[1], fact) for (_, truth), fact in zip(pairs, facts, strict=True)]
        ),
        facts,
    )


def density_maps(change: Pixels, instances: Pixels, facts: Facts) -> npt.NDArray[np.float32]:
    """Density per patch of new roads and new buildings, (2, G, G), whose sums are their counts.

    change, instances: ground truth at half the resolution of the images.
    """
    side = change.shape[0] // (PATCH_PX // 2)
    maps = np.zeros((2, side, side), np.float32)
    for index, kind in enumerate(("road_built", "building_built")):
        if facts.counts[kind]:
            ids = np.where(change == CHANGE_CODE[kind], instances, 0)
            sizes = np.bincount(ids.ravel(), minlength=256).astype(np.float32)
            weight = np.zeros_like(sizes)
            counted = np.argsort(-sizes[1:])[: facts.counts[kind]] + 1  # the largest instances are counted
            weight[counted] = 1 / sizes[counted]
            maps[index] = weight[ids].reshape(side, PATCH_PX // 2, side, PATCH_PX // 2).sum(axis=(1, 3))
    return maps
