"""Read tensors of foreign files: safetensors, pickles without running code, folders of shards."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltavlm.errors import InputError
from deltavlm.files import parse_json, read_text


def unpickle(path: Path) -> Any:
    """Load a file of torch, memory-mapped. Raises: InputError.

    Only tensors and plain values are accepted: a pickle that would run code is refused.
    """
    if not path.is_file():
        is_folder = path.is_dir()
        raise InputError(f"{path} is a folder; name the file in it" if is_folder else f"no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported operand" not in str(error) and "GLOBAL" in str(error):
            raise InputError(
                f"{path} holds code, not only weights, and was not opened; get the file from its source"
            ) from error
        raise InputError(f"{path} is not a file of torch, or it is truncated; fetch it again") from error
    except (EOFError, RuntimeError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a file of torch, or it is truncated; fetch it again") from error


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Iterate over names and tensors of a file, or of all shards of a folder. Raises: InputError."""
    for shard in shards(path):
        if shard.suffix == ".safetensors":
            yield from _safetensors(shard)
        else:
            state_dict = unpickle(shard)
            if isinstance(state_dict, dict) and isinstance(state_dict.get("model"), dict):
                state_dict = state_dict["model"]
            if not isinstance(state_dict, dict):
                raise InputError(f"{shard} has no state dict")
            yield from ((name, tensor) for name, tensor in state_dict.items() if isinstance(tensor, Tensor))


def shards(path: Path) -> list[Path]:
    """Weight files: `path` itself, or those of a folder, by its index if it has one; safetensors rather than
    pickles. Raises: InputError."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"no file or folder {path}")
    for index in sorted(path.glob("*.index.json"), key=lambda p: "safetensors" not in p.name):
        try:
            names = sorted(set(parse_json(read_text(index))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{index} is not an index of shards; fetch the folder again") from error
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise InputError(f"{path} lacks {', '.join(missing)}; fetch the folder again")
        return [path / name for name in names]
    for pattern in ("*.safetensors", "*.bin", "*.pth"):
        files = sorted(file for file in path.glob(pattern) if file.is_file())
        if files:
            return files
    raise InputError(f"{path} has no weights (.safetensors, .bin or .pth); fetch the folder again")


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; fetch the file again") from error


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_source(path: Path) -> str:
    """Name of a file or folder and the start of its (first shard's) sha256, for the provenance record."""
    return f"{source_name(path)} sha256:{sha256_of(shards(path)[0])[:16]}"


def source_name(path: Path) -> str:
    """Name of a file or folder; in the Hub's cache, where files are named by checksum, repository and commit.

    >>> source_name(Path("/cache/models--lmsys--vicuna-7b-v1.5/snapshots/0123456789abcdef0123/config.json"))
    'lmsys/vicuna-7b-v1.5@0123456789ab/config.json'
    """
    parents = path.absolute().parts
    if "snapshots" not in parents[:-1]:
        return path.absolute().name
    index = parents.index("snapshots")
    repository = parents[index - 1].removeprefix("models--").replace("--", "/")
    return "/".join((f"{repository}@{parents[index + 1][:12]}", *parents[index + 2 :]))
