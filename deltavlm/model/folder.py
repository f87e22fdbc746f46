"""Checkpoint folders: finding them by name or path, and reading config.json; imports no torch."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deltavlm.config import from_mapping
from deltavlm.errors import ConfigError, InputError, ModelError
from deltavlm.files import check_regular, parse_json, read_text
from deltavlm.model.config import DeltaVLMConfig

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
SHARD_BYTES = 2 << 30  # of the written files, the amount held in memory at once
DENSE = "dense.safetensors"  # a mask head that was trained on top of a published model
SENTENCEPIECE, QUESTION_TOKENIZER = "tokenizer.model", "question_tokenizer.json"
VOCABULARY = "vocab.json"  # words of a captioner: word -> id
GRAPHS = ("encode.onnx", "query.onnx", "language.onnx")  # for runtimes without torch, see `graphs`
FEATURES = ("masks", "evidence", "keys", "values", "counts")  # outputs of the first of them
CACHE = ("keys", "values")  # inputs of the last, followed by the number of a layer
STEP = ("logits", "step_keys", "step_values")  # its outputs
LAYOUT = "layout"  # key of a graph's metadata: `layout_digest` of the weights that it refers to
MAX_CONFIG_BYTES, MAX_HEADER_BYTES = 2**20, 2**24
SHIPPED = Path(__file__).resolve().parent.parent / "weights"
KIND = "kind"  # key of config.json; a checkpoint without it is of DEFAULT_KIND
DEFAULT_KIND = "deltavlm"

Config = TypeVar("Config")


def home() -> Path:
    """Folder of fetched models: $DELTAVLM_HOME, else deltavlm in the user's data folder.

    Raises: InputError if the user has no home folder, as in some containers and services.
    """
    if path := os.environ.get("DELTAVLM_HOME"):
        return Path(path).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(data) if data else Path.home() / ".local" / "share") / "deltavlm"
    except RuntimeError:
        raise InputError("this user has no home folder; set DELTAVLM_HOME to one for models") from None


def models() -> dict[str, Path]:
    """Folders by name of all fetched models and those that ship with the package."""
    parents = [SHIPPED]
    with suppress(InputError):  # no home folder: only those of the package
        parents.insert(0, home())
    return {path.parent.name: path.parent for parent in parents for path in parent.glob(f"*/{CONFIG}")}


def find_folder(name_or_folder: str) -> Path:
    """Checkpoint folder by the name of a model, or by path. Raises: InputError."""
    folders = models()
    folder = folders.get(name_or_folder, Path(name_or_folder))
    if not folder.is_dir():
        fetch = "run deltavlm weights fetch deltavlm-7b, or " if name_or_folder == "deltavlm-7b" else ""
        raise InputError(
            f"no model {name_or_folder!r}; {fetch}give the name of an installed one"
            f" ({', '.join(sorted(folders)) or 'none'}) or the path of a checkpoint folder;"
            " models of the Hub begin with hf:, those of a server with openai:"
        )
    return folder


def read_values(folder: Path) -> Mapping[str, Any]:
    """Plain values of the config.json of a checkpoint folder, of any kind.

    Raises: InputError if it is missing, or a file of the folder is a pipe or a device; ModelError if broken.
    """
    path = folder / CONFIG
    try:
        for file in folder.iterdir():
            with suppress(FileNotFoundError):  # a link to nothing
                check_regular(file)
        values = parse_json(read_text(path, MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is not a checkpoint: it has no {CONFIG}; give a checkpoint folder or a model's name"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"cannot use {path}: {reason}; copy the checkpoint folder again") from error
    if not isinstance(values, dict):
        raise ModelError(f"cannot use {path}: it is no JSON object; copy the checkpoint folder again")
    return values


def read_kind(folder: Path) -> str:
    """Kind of the model in a checkpoint folder, as its config.json says. Raises: InputError, ModelError."""
    return str(read_values(folder).get(KIND, DEFAULT_KIND))


def read_config_as(config_type: type[Config], folder: Path) -> Config:
    """Configuration of a checkpoint folder, as the dataclass of its kind.

    Raises: InputError if it is missing; ModelError if it is broken.
    """
    try:
        return from_mapping(config_type, read_values(folder), source=str(folder / CONFIG))
    except ConfigError as error:
        raise ModelError(f"{error}; copy the checkpoint folder again") from error


def read_config(folder: Path) -> DeltaVLMConfig:
    """Configuration of a checkpoint folder of a DeltaVLM.

    Raises: InputError if it is missing, of another kind, or a file of the folder is a pipe or a device;
        ModelError if broken.
    """
    kind = read_kind(folder)
    if kind != DEFAULT_KIND:
        raise InputError(f"{folder} is a checkpoint of kind {kind!r}; this needs one of a DeltaVLM")
    return read_config_as(DeltaVLMConfig, folder)


def fingerprint(folder: Path) -> str:
    """First 16 hex digits of the sha256 of configuration, weights and tokenizers.

    The configuration of a converted checkpoint has the checksums of its large files; they are not read.
    """
    listed = read_values(folder).get("files", {})
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS, DENSE, TOKENIZER, SENTENCEPIECE, QUESTION_TOKENIZER, VOCABULARY):
        if name not in listed and (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Place of a tensor in a safetensors file: shape, dtype as the file names it, first byte and length."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    length: int


def tensor_slots(path: Path) -> dict[str, TensorSlot]:
    """Places of all tensors of a safetensors file, by name; reads the header alone. Raises: ModelError."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = parse_json(file.read(size).decode())
        return {
            name: TensorSlot(
                tuple(entry["shape"]),
                entry["dtype"],
                8 + size + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"cannot read {path}: {error}; copy the file again") from error


def layout_digest(path: Path) -> str:
    """16 hex digits of names, shapes, dtypes and places of the tensors of a safetensors file: equal for files
    that differ in their values alone. Raises: ModelError."""
    return hashlib.sha256(repr(sorted(tensor_slots(path).items())).encode()).hexdigest()[:16]


def has_graphs(folder: Path) -> bool:
    """True if a checkpoint folder has graphs for runtimes without torch."""
    return all((folder / name).is_file() for name in GRAPHS)
