"""Pictures read from disk, and Pillow's errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from deltavlm.errors import InputError

__all__ = ["image_size", "open_image", "read_image"]

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")  # Pillow would hand others, as EPS, to other programs


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """A picture, open inside the `with`; pixels are decoded where they are asked for.

    Raises: InputError naming the file, also for what goes wrong while it is decoded.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} cannot be read: not a picture") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """uint8 RGB (3, H, W). Raises: InputError naming the file."""
    with open_image(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height), from the header. Raises: InputError naming the file."""
    with open_image(path) as image:
        return image.size
