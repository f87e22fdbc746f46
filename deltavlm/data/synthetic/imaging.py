"""What the weather and the camera do to a clean view: everything that changes although nothing has
changed."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from deltavlm.data.synthetic.plan import Rng
from deltavlm.data.synthetic.render import Bytes, Light
from deltavlm.data.synthetic.texture import noise


def random_light(rng: Rng) -> Light:
    """The light and the view of one date."""
    turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.5)
    lean = (0.0, 0.0) if rng.random() < 0.4 else tuple((rng.normal(0, 0.22, 2)).tolist())
    return Light(
        float(np.cos(turn) * reach), float(np.sin(turn) * reach), float(rng.uniform(0.25, 0.65)), lean
    )


def misregister(rng: Rng, image: Image.Image, margin: int, most_px: float) -> Image.Image:
    """Cuts the margin away, off by up to `most_px`, with a trace of rotation and of scale."""
    width, height = image.size[0] - 2 * margin, image.size[1] - 2 * margin
    dx, dy = rng.uniform(-most_px, most_px, 2)
    turn, grow = (rng.normal(0, 0.002), 1 + rng.normal(0, 0.002)) if max(width, height) <= 512 else (0.0, 1.0)
    cos, sin = np.cos(turn) * grow, np.sin(turn) * grow
    x, y = width / 2, height / 2
    data = (cos, -sin, margin + dx + x - cos * x + sin * y, sin, cos, margin + dy + y - sin * x - cos * y)
    return image.transform((width, height), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def expose(rng: Rng, pixels: npt.NDArray[np.float32], strength: float) -> npt.NDArray[np.float32]:
    """Light colour, gamma, contrast and haze; floats 0..255 in and out."""
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * max(0.0, 1 + rng.normal(-0.05, 0.2 * strength))
    if rng.random() < 0.04:  # old panchromatic film
        pixels = np.repeat(grey, 3, axis=2)
    gain = np.exp(rng.normal(0, 0.16 * strength) + rng.normal(0, 0.045 * strength, 3))
    pixels = 255 * np.clip(pixels / 255, 0, 1) ** np.exp(rng.normal(0, 0.15 * strength)) * gain
    pixels = (pixels - 110) * np.exp(rng.normal(0, 0.15 * strength)) + 110 + rng.normal(0, 12 * strength)
    if rng.random() < 0.25 * strength:
        veil = rng.uniform(0, 0.35)
        pixels = pixels * (1 - veil) + rng.uniform(150, 220) * veil
    return pixels.astype(np.float32)


def color_jitter(rng: Rng, picture: Bytes) -> Bytes:
    """A finished picture developed anew: gain, gamma and offset of each band, by one table of 256 values."""
    gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, 3))
    curve = (np.arange(256)[:, None] / 255) ** np.exp(rng.normal(0, 0.2)) * gain * 255 + rng.normal(0, 10)
    table = np.clip(curve, 0, 255).astype(np.uint8)
    return np.stack([table[:, band][picture[..., band]] for band in range(3)], axis=-1)


def shift_smoothly(rng: Rng, view: Bytes, most_px: float) -> Bytes:
    """Shifted by a smooth field, as terrain and mosaicking do."""
    height, width = view.shape[:2]
    field = [noise(rng, (width, height), 40.0) * most_px / 2 for _ in range(2)]
    ys, xs = np.mgrid[0:height, 0:width]
    rows = np.clip(np.rint(ys + field[0]), 0, height - 1).astype(int)
    cols = np.clip(np.rint(xs + field[1]), 0, width - 1).astype(int)
    moved: Bytes = view[rows, cols]
    return moved


def add_artifacts(rng: Rng, image: Image.Image) -> Image.Image:
    """What film, optics, sky and mosaicking do on top: colour casts, lost colours, softness, halos, cloud and
    its shadow, a seam. Each is rare by itself."""
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    if rng.random() < 0.5:  # a cast: each band has its own curve
        gain, gamma = np.exp(rng.normal(0, 0.13, 3)), np.exp(rng.normal(0, 0.18, 3))
        pixels = 255 * (np.clip(pixels / 255, 0, 1) ** gamma * gain).astype(np.float32)
    if rng.random() < 0.07:  # black and white
        weights = rng.dirichlet([2, 2, 2]).astype(np.float32)
        pixels = np.repeat((pixels @ weights)[..., None], 3, axis=2)
    if rng.random() < 0.3:  # harder than life, as old prints are
        pixels = (pixels - 110) * rng.uniform(1.1, 1.9) + rng.uniform(95, 140)
    if rng.random() < 0.15:  # two flights side by side
        turn, off = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3) * width
        ys, xs = np.mgrid[0:height, 0:width]
        beyond = (xs - width / 2) * np.cos(turn) + (ys - height / 2) * np.sin(turn) > off
        pixels[beyond] = pixels[beyond] * np.exp(rng.normal(0, 0.12)) + rng.normal(0, 8, 3)
    if rng.random() < 0.1:  # cloud, or its shadow
        veil = np.clip(noise(rng, (width, height), 40.0) - rng.uniform(0.6, 1.6), 0, 1)[..., None]
        target = 235.0 if rng.random() < 0.5 else 25.0
        pixels = pixels + veil * rng.uniform(0.5, 1.0) * (target - pixels)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:  # coarser pixels, enlarged again
        share = rng.uniform(0.35, 0.85)
        small = image.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        kinds = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
        image = small.resize((width, height), kinds[int(rng.choice(3, p=[0.45, 0.45, 0.1]))])
    if rng.random() < 0.3:  # sharpened
        image = image.filter(ImageFilter.UnsharpMask(rng.uniform(0.6, 2), int(rng.integers(50, 220)), 1))
    return image


def photograph(
    rng: Rng,
    view: Bytes,
    margin: int,
    *,
    misregistration_px: float = 2.0,
    strength: float = 1.0,
    rich: bool = False,
) -> Bytes:
    """A clean view as a sensor hands it out: (height, width, 3) uint8, smaller by the margin on each side.

    `rich` adds `add_artifacts` and a smooth shift.
    """
    if rich and rng.random() < 0.3:
        view = shift_smoothly(rng, view, misregistration_px)
    image = misregister(rng, Image.fromarray(view), margin, misregistration_px)
    if rich:
        image = add_artifacts(rng, image)
    blur = abs(rng.normal(0, 0.7)) + 0.35
    image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = expose(rng, np.asarray(image, np.float32), strength)
    size = (pixels.shape[1], pixels.shape[0])
    if rng.random() < 0.3:
        pixels *= 1 + 0.05 * noise(rng, size, 40.0)[..., None]
    grain = noise(rng, size, 0.5) if rng.random() < 0.7 else noise(rng, size, 1.0)
    pixels += (grain * abs(rng.normal(0, 4)))[..., None]
    sharp = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.5 and max(size) <= 512:
        buffer = io.BytesIO()
        Image.fromarray(sharp).save(buffer, "JPEG", quality=int(rng.integers(35, 95)))
        sharp = np.asarray(Image.open(buffer).convert("RGB"))
    return sharp
