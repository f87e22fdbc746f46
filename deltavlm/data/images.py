"""Image files of a data set: open, decode to arrays, read sizes; Pillow's errors as `InputError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from deltavlm.errors import InputError
from deltavlm.files import check_regular

__all__ = ["image_size", "open_image", "read_image", "save_image"]

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")  # others, such as EPS, Pillow hands to external programs


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image for the duration of the `with`; its pixels are decoded on first access.

    Raises: InputError naming the file, also for errors of decoding inside the `with`.
    """
    try:
        check_regular(path)
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} cannot be read: not an image") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image as RGB (3, H, W). Raises: InputError naming the file."""
    with open_image(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def image_size(path: Path, *, decode: bool = False) -> tuple[int, int]:
    """Read (width, height) from the header; with `decode` after decoding all pixels, which a truncated file
    does not survive. Raises: InputError naming the file."""
    with open_image(path) as image:
        if decode:
            image.load()
        return image.size


def save_image(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write (H, W) or (H, W, 3) in the format of the path's suffix; JPEG at Pillow's default quality, 75."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
