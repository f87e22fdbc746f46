"""Images as a model reads them: resized to the side of its input."""

from __future__ import annotations

import numpy as np

from deltavlm.model.interface import Pixels


def resize_images(images_N3HW: Pixels, size: int) -> Pixels:
    """Images (N, 3, size, size); those of that size as they are."""
    if images_N3HW.shape[-2:] == (size, size):
        return images_N3HW
    return np.stack([resize_image(image, size) for image in images_N3HW])


def resize_image(image_CHW: Pixels, size: int) -> Pixels:
    """Resize to (C, size, size), bicubic with antialiasing by Pillow, the preprocessing of the published
    model; that of transformers differs by a grey level."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0)))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
