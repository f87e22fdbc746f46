"""Distractors: light, weather, sensor and registration effects that alter images without any change."""

from __future__ import annotations

import io
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from deltavlm.data.synthetic.plan import Rng
from deltavlm.data.synthetic.render import Bytes, Light
from deltavlm.data.synthetic.texture import noise

Pixels = TypeVar("Pixels", Bytes, npt.NDArray[np.float32])


def random_light(rng: Rng) -> Light:
    """Random sun and view direction of one date."""
    azimuth, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.5)
    lean = (0.0, 0.0) if rng.random() < 0.4 else tuple((rng.normal(0, 0.22, 2)).tolist())
    return Light(
        float(np.cos(azimuth) * reach), float(np.sin(azimuth) * reach), float(rng.uniform(0.25, 0.65)), lean
    )


def misregister(rng: Rng, image: Image.Image, margin: int, max_px: float) -> Image.Image:
    """Crop the margin with a random shift of up to `max_px`, and a trace of rotation and scale."""
    width, height = image.size[0] - 2 * margin, image.size[1] - 2 * margin
    dx, dy = rng.uniform(-max_px, max_px, 2)
    angle, zoom = 0.0, 1.0
    if max(width, height) <= 512:
        angle, zoom = rng.normal(0, 0.002), 1 + rng.normal(0, 0.002)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    x, y = width / 2, height / 2
    coefficients = (
        *(cos, -sin, margin + dx + x - cos * x + sin * y),
        *(sin, cos, margin + dy + y - sin * x - cos * y),
    )
    return image.transform((width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def expose(rng: Rng, pixels: npt.NDArray[np.float32], strength: float) -> npt.NDArray[np.float32]:
    """Random light color, gamma, contrast and haze; values from 0 to 255 in and out."""
    gray = pixels.mean(axis=2, keepdims=True)
    pixels = gray + (pixels - gray) * max(0.0, 1 + rng.normal(-0.05, 0.2 * strength))
    if rng.random() < 0.04:  # old panchromatic film
        pixels = np.repeat(gray, 3, axis=2)
    gain = np.exp(rng.normal(0, 0.16 * strength) + rng.normal(0, 0.045 * strength, 3))
    pixels = 255 * np.clip(pixels / 255, 0, 1) ** np.exp(rng.normal(0, 0.15 * strength)) * gain
    pixels = (pixels - 110) * np.exp(rng.normal(0, 0.15 * strength)) + 110 + rng.normal(0, 12 * strength)
    if rng.random() < 0.25 * strength:
        haze = rng.uniform(0, 0.35)
        pixels = pixels * (1 - haze) + rng.uniform(150, 220) * haze
    return pixels.astype(np.float32)


def color_jitter(rng: Rng, image: Bytes) -> Bytes:
    """Random gain, gamma and offset of each band of a finished image, by one table of 256 values: brightness
    and color cast."""
    gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.12, 3))
    gamma = np.exp(rng.normal(0, 0.2) + rng.normal(0, 0.08, 3))
    curve = (np.arange(256)[:, None] / 255) ** gamma * gain * 255 + rng.normal(0, 10) + rng.normal(0, 8, 3)
    table = np.clip(curve, 0, 255).astype(np.uint8)
    return np.stack([table[:, band][image[..., band]] for band in range(3)], axis=-1)


def warp_elastically(rng: Rng, image: Pixels, max_px: float, grain: float = 40.0) -> Pixels:
    """Shift pixels by a smooth random field of about `max_px`, as terrain and mosaicking do.

    grain: of the field, in pixels; one of those that `texture.noise` is made for.
    """
    height, width = image.shape[:2]
    field = [noise(rng, (width, height), grain) * max_px / 2 for _ in range(2)]
    ys, xs = np.mgrid[0:height, 0:width]
    rows = np.clip(np.rint(ys + field[0]), 0, height - 1).astype(int)
    cols = np.clip(np.rint(xs + field[1]), 0, width - 1).astype(int)
    warped: Pixels = image[rows, cols]
    return warped


def add_artifacts(rng: Rng, image: Image.Image) -> Image.Image:
    """Add rare artifacts at random: color cast, lost colors, contrast, seam, cloud or its shadow, softness,
    sharpening halos."""
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    if rng.random() < 0.5:  # color cast: each band has its own curve
        gain, gamma = np.exp(rng.normal(0, 0.13, 3)), np.exp(rng.normal(0, 0.18, 3))
        pixels = 255 * (np.clip(pixels / 255, 0, 1) ** gamma * gain).astype(np.float32)
    if rng.random() < 0.07:  # black and white
        weights = rng.dirichlet([2, 2, 2]).astype(np.float32)
        pixels = np.repeat((pixels @ weights)[..., None], 3, axis=2)
    if rng.random() < 0.3:  # high contrast, as in old prints
        pixels = (pixels - 110) * rng.uniform(1.1, 1.9) + rng.uniform(95, 140)
    if rng.random() < 0.15:  # seam between two flights
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3) * width
        ys, xs = np.mgrid[0:height, 0:width]
        beyond = (xs - width / 2) * np.cos(angle) + (ys - height / 2) * np.sin(angle) > offset
        pixels[beyond] = pixels[beyond] * np.exp(rng.normal(0, 0.12)) + rng.normal(0, 8, 3)
    if rng.random() < 0.1:  # cloud, or its shadow
        opacity = np.clip(noise(rng, (width, height), 40.0) - rng.uniform(0.6, 1.6), 0, 1)[..., None]
        target = 235.0 if rng.random() < 0.5 else 25.0
        pixels = pixels + opacity * rng.uniform(0.5, 1.0) * (target - pixels)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:  # coarser pixels, upsampled again
        share = rng.uniform(0.35, 0.85)
        coarse = image.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        methods = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
        image = coarse.resize((width, height), methods[int(rng.choice(3, p=[0.45, 0.45, 0.1]))])
    if rng.random() < 0.3:  # sharpened
        image = image.filter(ImageFilter.UnsharpMask(rng.uniform(0.6, 2), int(rng.integers(50, 220)), 1))
    return image


def photograph(
    rng: Rng,
    clean: Bytes,
    margin: int,
    misregistration_px: float,
    strength: float,
    *,
    rich: bool,
    softness: float = 1.0,
) -> Bytes:
    """Image of a clean rendering as a sensor delivers it, (height, width, 3), without the margin.

    strength: of the differences of light, haze and contrast. rich: also elastic warps and `add_artifacts`.
    softness: factor of blur and noise.
    """
    if rich and rng.random() < 0.3:
        clean = warp_elastically(rng, clean, misregistration_px)
    image = misregister(rng, Image.fromarray(clean), margin, misregistration_px)
    if rich:
        image = add_artifacts(rng, image)
    blur = (abs(rng.normal(0, 0.7)) + 0.35) * softness
    image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = expose(rng, np.asarray(image, np.float32), strength)
    size = (pixels.shape[1], pixels.shape[0])
    if rng.random() < 0.3:
        pixels *= 1 + 0.05 * noise(rng, size, 40.0)[..., None]
    grain = noise(rng, size, 0.5) if rng.random() < 0.7 else noise(rng, size, 1.0)
    pixels += (grain * abs(rng.normal(0, 4)) * softness)[..., None]
    output = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.5 and max(size) <= 512:
        buffer = io.BytesIO()
        Image.fromarray(output).save(buffer, "JPEG", quality=int(rng.integers(35, 95)))
        output = np.asarray(Image.open(buffer).convert("RGB"))
    return output
