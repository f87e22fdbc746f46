"""Tensors of weight files: written, read, and compared with those of a model, strictly."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deltavlm.errors import ModelError
from deltavlm.model.folder import CONFIG

MAX_NAMED_KEYS = 5  # in an error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], provenance: Mapping[str, str]) -> None:
    """Write a safetensors file of contiguous tensors that share no memory.

    Equal tensors and provenance give equal bytes: the metadata has a single key, because the library writes
    several in arbitrary order. Raises: OSError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"deltavlm": json.dumps(dict(provenance), sort_keys=True)})
    except SafetensorError as error:  # a full disk too
        raise OSError(errno.ENOSPC, str(error)) from error
    path.chmod(0o644)  # the library creates it readable by the owner only


def read_tensors(path: Path, device: str = "cpu", prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file, those with a prefix. Raises: ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {error}; copy the file again") from error


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes of weights with those of a model, both ways.

    Raises: ModelError naming the first faults.
    """
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, should be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    faults = [
        f"{len(names)} {fault}: {_first_names(names)}"
        for fault, names in (
            ("keys missing", sorted(set(expected) - set(weights))),
            ("keys unexpected", sorted(set(weights) - set(expected))),
            ("shapes wrong", wrong),
        )
        if names
    ]
    if faults:
        raise ModelError(f"{source} does not fit its {CONFIG}: {'; '.join(faults)}")


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill a module of meta tensors with weights, which become its own; counters of batches are zeroed.

    Raises: ModelError naming the first tensors that are missing, unexpected or of another shape.
    """
    counters = {name for name in module.state_dict() if name.endswith("num_batches_tracked")}
    expected = {name: tensor for name, tensor in module.state_dict().items() if name not in counters}
    check_weights(weights, expected, source)
    zeros = {name: next(iter(weights.values())).new_zeros((), dtype=torch.long) for name in counters}
    module.load_state_dict({**weights, **zeros}, assign=True)


def _first_names(names: Sequence[str]) -> str:
    return ", ".join([*names[:MAX_NAMED_KEYS], "..."] if len(names) > MAX_NAMED_KEYS else names)
