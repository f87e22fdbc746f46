"""Encode and decode the change mask of a chip: classes and kinds of change, 8 bit, zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import ConfigError
from deltavlm.model.interface import Masks
from deltavlm.model.kinds import ModelSpec

__all__ = [
    *("CLASSES", "KINDS", "check_mask_head", "class_of_kind", "decode_mask", "decode_planes", "decode_valid"),
    *("encode_masks", "encode_valid", "peak_score"),
]

CLASSES = ("building", "road", "other")
"""Classes of a mask: the model's classes of buildings or roads, built or removed, and all others."""

KINDS = (
    *("building_built", "building_removed", "road_built", "road_removed", "trees_removed", "trees_planted"),
    *("water_new", "water_gone", "ground_opened", "ground_closed"),
)
"""Kinds of change: classes of the model of which a mask keeps the probabilities too; they are nano's."""

_NO_MASK_HEAD = (
    "model {name} has no mask head, so there is nothing to draw polygons or rasters of change from; leave "
    "`polygons`, `mask` and `probability` out, or ask a model that has one, such as nano, or one that reads "
    "text with `evidence='nano'`"
)
_SHAPE = struct.Struct("<BHH")  # classes, rows, columns
_ZLIB_LEVEL = 6


def check_mask_head(spec: ModelSpec) -> None:
    """Raises: ConfigError where a model has no mask head."""
    if not spec.has_masks:
        raise ConfigError(_NO_MASK_HEAD.format(name=spec.name))


def encode_masks(masks: Masks | None, name: str) -> list[bytes]:
    """Masks of a batch: the probabilities of CLASSES and then of KINDS in 8 bit, compressed.

    A class of the model that is none of KINDS adds to its class alone.

    Raises: ConfigError where the model `name` has no mask head.
    """
    if masks is None:
        raise ConfigError(_NO_MASK_HEAD.format(name=name))
    labels = np.array(masks.classes[1:])
    classes = np.array([class_of_kind(label) for label in masks.classes[1:]])
    planes = [*(classes == each for each in CLASSES), *(labels == each for each in KINDS)]
    probabilities = np.stack([masks.probabilities[:, 1:][:, plane].sum(axis=1) for plane in planes], axis=1)
    scaled = np.rint(probabilities.clip(0, 1) * 255).astype(np.uint8)
    return [_SHAPE.pack(*mask.shape) + zlib.compress(mask.tobytes(), _ZLIB_LEVEL) for mask in scaled]


def class_of_kind(kind: str) -> str:
    """Class of a kind of change, or of any class of a model, such as `road` of `road_built`."""
    prefix = kind.partition("_")[0]
    return prefix if prefix in CLASSES else "other"


def decode_planes(data: bytes) -> NDArray[np.uint8]:
    """(classes and kinds, rows, columns) of 0 to 255; inverse of `encode_masks`."""
    flat = np.frombuffer(zlib.decompress(data[_SHAPE.size :]), np.uint8)
    return flat.reshape(_SHAPE.unpack(data[: _SHAPE.size]))


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """(classes, rows, columns) of 0 to 255: the probabilities of CLASSES of an encoded mask."""
    return decode_planes(data)[: len(CLASSES)]


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
