"""Writing of converted checkpoints: a new folder, its tensors, and their comparison with a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from deltavlm.errors import InputError, OutputError
from deltavlm.files import atomic_folder, format_bytes, free_bytes
from deltavlm.model.folder import SHARD_BYTES
from deltavlm.model.memory import available_memory
from deltavlm.model.tensors import write_tensors
from deltavlm.upstream.read import shards


def check_new(folder: Path) -> None:
    """Raises: OutputError for a folder that exists and has files, or a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already; give another folder, or delete it")


def check_resources(folder: Path, *sources: Path | None, copied: int = 0) -> None:
    """Check that the disk has room for a copy of the weights in `sources`, and memory for a shard of them, or
    for `copied` bytes if these are more.

    Raises: InputError that says what is needed and what is free.
    """
    size = sum(file.stat().st_size for source in sources if source is not None for file in shards(source))
    disk, memory = free_bytes(folder), available_memory()
    if size > disk:
        raise InputError(
            f"converting needs up to {format_bytes(size)} on the disk of {folder}, and {format_bytes(disk)}"
            " are free; free more, or give a folder on another disk"
        )
    needed = max(min(size, SHARD_BYTES), copied)
    if memory is not None and needed > memory:
        raise InputError(
            f"converting needs about {format_bytes(needed)} of memory, and {format_bytes(memory)} are free;"
            " free more, or convert on another machine"
        )


@contextmanager
def new_checkpoint(folder: Path) -> Iterator[Path]:
    """Scratch folder that becomes `folder` when it is complete. Raises: OutputError."""
    check_new(folder)
    try:
        with atomic_folder(folder) as scratch:
            yield scratch
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror}; check the folder and the free disk space"
        ) from error


def save_tensors(path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises: OSError."""
    copies = {name: tensor.detach().contiguous().clone() for name, tensor in weights.items()}
    write_tensors(path, copies, provenance)


def split_tensors(weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Tensors by name, about SHARD_BYTES at a time."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        shard[name] = tensor
        size += tensor.numel() * tensor.element_size()
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def check_shapes(shapes: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], source: Path) -> None:
    """Compare names and shapes both ways. Raises: InputError naming the first fault."""
    missing, unknown = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    wrong = [name for name in expected if name in shapes and shapes[name] != expected[name]]
    if missing:
        raise InputError(
            f"{source}: nothing fills {missing[0]}{_and_others(missing)}; a file is missing or wrong"
        )
    if unknown:
        raise InputError(f"{source}: {unknown[0]}{_and_others(unknown)} is no tensor of the model")
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{source}: {name} is {tuple(shapes[name])}, should be {tuple(expected[name])}"
            f"{_and_others(wrong)}; the files are of different models"
        )


def _and_others(names_: list[str]) -> str:
    return f" (and {len(names_) - 1} others)" if len(names_) > 1 else ""
