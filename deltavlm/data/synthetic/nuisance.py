"""What the weather and the camera do to a clean view: everything that changes although nothing has
changed."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from deltavlm.data.synthetic.paint import Bytes, Light
from deltavlm.data.synthetic.plan import Rng
from deltavlm.data.synthetic.texture import noise


def sun(rng: Rng) -> Light:
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


def retone(rng: Rng, picture: Bytes) -> Bytes:
    """A finished picture developed anew: gain, gamma and offset of each band, by one table of 256 values."""
    gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, 3))
    curve = (np.arange(256)[:, None] / 255) ** np.exp(rng.normal(0, 0.2)) * gain * 255 + rng.normal(0, 10)
    table = np.clip(curve, 0, 255).astype(np.uint8)
    return np.stack([table[:, band][picture[..., band]] for band in range(3)], axis=-1)


def photograph(
    rng: Rng, view: Bytes, margin: int, *, misregistration_px: float = 2.0, strength: float = 1.0
) -> Bytes:
    """A clean view as a sensor hands it out: (height, width, 3) uint8, smaller by the margin on each side."""
    image = misregister(rng, Image.fromarray(view), margin, misregistration_px)
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
