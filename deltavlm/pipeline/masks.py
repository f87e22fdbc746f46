"""A chip's mask on its way from the model to the map: three classes, in bytes that a journal can keep."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ConfigError
from deltavlm.model.interface import Masks

__all__ = ["KINDS", "NO_MASKS", "packed_holes", "packed_masks", "read_holes", "read_mask"]

KINDS = ("building", "road", "other")
"""What the classes of a model come to: those named after buildings or roads, built or gone, and the rest."""

NO_MASKS = (
    "model {name} has no mask head, so there is nothing to draw polygons or rasters of change from; leave "
    "--polygons, --mask and --probability out, or ask a model that has one, such as --model nano "
    "(docs/polygons.md says how another gets one)"
)
_SHAPE = struct.Struct("<BHH")  # classes, rows, columns
_LEVEL = 6  # of zlib


def packed_masks(masks: Masks | None, name: str) -> list[bytes]:
    """The masks of a batch, each 8 bit a share of KINDS, compressed.

    Raises: ConfigError where the model `name` has none.
    """
    if masks is None:
        raise ConfigError(NO_MASKS.format(name=name))
    kinds = np.array([_kind(one) for one in masks.classes[1:]])
    shares = np.stack(
        [masks.probabilities[:, 1:][:, kinds == kind].sum(axis=1) for kind in range(len(KINDS))], axis=1
    )
    whole = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return [_SHAPE.pack(*one.shape) + zlib.compress(one.tobytes(), _LEVEL) for one in whole]


def _kind(name: str) -> int:
    """The place in KINDS of a class of the model, such as `road_built`."""
    first = name.partition("_")[0]
    return KINDS.index(first) if first in KINDS else KINDS.index("other")


def read_mask(data: bytes) -> NDArray[np.uint8]:
    """(classes, rows, columns) of 0 to 255, as `packed_masks` has packed them."""
    flat = np.frombuffer(zlib.decompress(data[_SHAPE.size :]), np.uint8)
    return flat.reshape(_SHAPE.unpack(data[: _SHAPE.size]))


def packed_holes(valid: NDArray[np.bool_]) -> bytes:
    """Where a chip, (size, size), has data; nothing where it has data everywhere."""
    return b"" if valid.all() else zlib.compress(np.packbits(valid).tobytes(), _LEVEL)


def read_holes(data: bytes, size: int) -> NDArray[np.bool_]:
    """(size, size), as `packed_holes` has packed it."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(data), np.uint8), count=size * size)
    return bits.astype(bool).reshape(size, size)
