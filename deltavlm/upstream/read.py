"""Tensors out of files of others: pickles without running their code, safetensors, folders of shards."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltavlm.errors import InputError

PICKLES = (".pth", ".pt", ".bin")


def unpickled(path: Path) -> Any:
    """What torch saved in a file, tensors on disk until they are touched. Raises: InputError.

    Only tensors and plain values are accepted: a pickle that wants to run code is refused.
    """
    if not path.is_file():
        is_folder = path.is_dir()
        raise InputError(f"{path} is a folder; name the file in it" if is_folder else f"no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported operand" not in str(error) and "GLOBAL" in str(error):
            raise InputError(
                f"{path} holds code, not only weights, and was not opened; get the file from its source"
            ) from error
        raise InputError(f"{path} is not a file of torch, or it is cut off; fetch it again") from error
    except (EOFError, RuntimeError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a file of torch, or it is cut off; fetch it again") from error


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file, or of all shards of a folder, shard by shard. Raises: InputError."""
    for shard in shards(path):
        if shard.suffix == ".safetensors":
            yield from _safetensors(shard)
        else:
            found = unpickled(shard)
            if isinstance(found, dict) and isinstance(found.get("model"), dict):
                found = found["model"]
            if not isinstance(found, dict):
                raise InputError(f"{shard} holds no table of tensors")
            yield from ((name, tensor) for name, tensor in found.items() if isinstance(tensor, Tensor))


def shards(path: Path) -> list[Path]:
    """The files with weights: `path` itself, or those of a folder, by its index where it has one; safetensors
    before pickles. Raises: InputError."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"no file or folder {path}")
    for index in sorted(path.glob("*.index.json"), key=lambda p: "safetensors" not in p.name):
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{index} is not an index of shards; fetch the folder again") from error
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise InputError(f"{path} lacks {', '.join(missing)}; fetch the folder again")
        return [path / name for name in names]
    for pattern in ("*.safetensors", "*.bin", "*.pth"):
        found = sorted(path.glob(pattern))
        if found:
            return found
    raise InputError(f"{path} has no weights (.safetensors, .bin or .pth); fetch the folder again")


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; fetch the file again") from error
