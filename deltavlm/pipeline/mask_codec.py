"""Encode and decode the change mask of a chip: three classes, 8 bit, zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ConfigError
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.interface import Masks

__all__ = [
    *("CLASSES", "check_mask_head", "decode_mask", "decode_valid", "encode_masks", "encode_valid"),
    "peak_score",
]

CLASSES = ("building", "road", "other")
"""Classes of a mask: the model's classes of buildings or roads, built or removed, and all others."""

_NO_MASK_HEAD = (
    "model {name} has no mask head, so there is nothing to draw polygons or rasters of change from; leave "
    "--polygons, --mask and --probability out, or ask a model that has one, such as --model nano "
    "(docs/polygons.md says how another gets one)"
)
_SHAPE = struct.Struct("<BHH")  # classes, rows, columns
_ZLIB_LEVEL = 6


def check_mask_head(config: DeltaVLMConfig) -> None:
    """Raises: ConfigError where a model of this configuration has no mask head."""
    if config.dense is None:
        raise ConfigError(_NO_MASK_HEAD.format(name=config.name))


def encode_masks(masks: Masks | None, name: str) -> list[bytes]:
    """Masks of a batch: the probabilities of CLASSES in 8 bit, compressed.

    Raises: ConfigError where the model `name` has no mask head.
    """
    if masks is None:
        raise ConfigError(_NO_MASK_HEAD.format(name=name))
    indices = np.array([_class_index(label) for label in masks.classes[1:]])
    probabilities = np.stack(
        [masks.probabilities[:, 1:][:, indices == index].sum(axis=1) for index in range(len(CLASSES))], axis=1
    )
    scaled = np.rint(probabilities.clip(0, 1) * 255).astype(np.uint8)
    return [_SHAPE.pack(*mask.shape) + zlib.compress(mask.tobytes(), _ZLIB_LEVEL) for mask in scaled]


def _class_index(label: str) -> int:
    """Index into CLASSES of a class of the model, such as `road_built`."""
    prefix = label.partition("_")[0]
    return CLASSES.index(prefix) if prefix in CLASSES else CLASSES.index("other")


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """(classes, rows, columns) of 0 to 255; inverse of `encode_masks`."""
    flat = np.frombuffer(zlib.decompress(data[_SHAPE.size :]), np.uint8)
    return flat.reshape(_SHAPE.unpack(data[: _SHAPE.size]))


def peak_score(data: bytes, pixels: int) -> float:
    """Highest threshold at which at least `pixels` pixels of an encoded mask have changed, 0 to 1."""
    probabilities = np.sort(decode_mask(data).sum(axis=0, dtype=np.uint16), axis=None)
    return round(min(1.0, float(probabilities[-pixels:][0]) / 255), 4)


def encode_valid(valid: NDArray[np.bool_]) -> bytes:
    """Valid pixels (size, size) of a chip, 1 bit each; empty where all are valid."""
    return b"" if valid.all() else zlib.compress(np.packbits(valid).tobytes(), _ZLIB_LEVEL)


def decode_valid(data: bytes, size: int) -> NDArray[np.bool_]:
    """(size, size); inverse of `encode_valid`."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(data), np.uint8), count=size * size)
    return bits.astype(bool).reshape(size, size)
