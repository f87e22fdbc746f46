"""Sources of models for transformers: folders and repositories of the Hub, files, fingerprints.

    reference = parse("hf:OWNER/NAME@REVISION+ADAPTER")[0]
    planned = plan(reference, hub)      # names and sizes of its files; what is missing in the cache
    folder = fetch(planned)             # downloads what is missing

A repository whose files are all in the cache is used without asking the Hub. Imports no torch.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from deltavlm.errors import InputError, ModelError
from deltavlm.files import format_bytes, free_bytes, parse_json, read_text
from deltavlm.hub import File, Hub, PlannedFiles, Repository, Selection, fetch_files, plan_files

logger = logging.getLogger(__name__)

PREFIX = "hf:"
CARD, CONFIG, ADAPTER_CONFIG = "README.md", "config.json", "adapter_config.json"
TRAINING = "training.json"  # of an adapter that was trained here: its base, and what it was told
WEIGHTS = ".safetensors"
SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model")  # configuration, tokenizer, processor, chat template
MAX_TEXT_BYTES = 2**26
SAMPLES, SAMPLE_BYTES = 64, 2**16  # of a large file in a folder, for its fingerprint
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """Model or adapter as it was named: a folder, or a repository of the Hub at a revision."""

    name: str  # OWNER/NAME, or the name of the folder
    folder: Path | None
    revision: str = ""  # branch, tag or commit of a repository
    is_adapter: bool = False

    @property
    def config(self) -> str:
        """Name of its configuration file."""
        return ADAPTER_CONFIG if self.is_adapter else CONFIG

    @property
    def weights(self) -> str:
        """Name of its weights, without the suffix."""
        return "adapter_model" if self.is_adapter else "model"


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """Files of a model or adapter, perhaps not downloaded yet."""

    reference: Reference
    files: tuple[File, ...]
    hub: Hub  # offline if all files are in its cache
    planned: PlannedFiles | None = None  # None for a folder

    @property
    def commit(self) -> str | None:
        """Commit of a repository; None for a folder."""
        return self.planned.commit if self.planned else None

    @property
    def weights_bytes(self) -> int:
        return sum(file.size for file in self.files if file.name.endswith(WEIGHTS))

    @property
    def missing(self) -> int:
        """Bytes that are to be downloaded."""
        return self.planned.missing if self.planned else 0


def parse(name: str) -> tuple[Reference, Reference | None]:
    """Model and adapter in a name "hf:MODEL" or "hf:MODEL+ADAPTER", each a folder or OWNER/NAME[@REVISION].

    Raises: InputError if one of them is neither.

    >>> model, adapter = parse("hf:Qwen/Qwen3-VL-2B-Instruct@main+me/roads")
    >>> model.name, model.revision, adapter.name, adapter.revision
    ('Qwen/Qwen3-VL-2B-Instruct', 'main', 'me/roads', 'main')
    """
    text = name.removeprefix(PREFIX)
    model, plus, adapter = text.rpartition("+")
    if not plus or Path(text).expanduser().is_dir():  # a folder may have a plus in its name
        return _reference(text), None
    return _reference(model), _reference(adapter, is_adapter=True)


def plan(reference: Reference, hub: Hub, *, with_code: bool = False) -> PlannedSource:
    """Files of a model or adapter; asks the Hub only if one of them is not in the cache.

    with_code: include Python files.

    Raises: InputError if it is not there or lacks a file.
    """
    select = _selection(reference, with_code=with_code)
    if reference.folder is not None:
        names = [path.name for path in reference.folder.iterdir() if path.is_file()]
        selection = select(names, reference.folder.joinpath)
        if selection.missing:
            raise InputError(_missing(reference, selection.missing[0]))
        files = (_local_file(reference.folder / name) for name in selection.names)
        return PlannedSource(reference, tuple(files), hub)
    repository = Repository(
        reference.name,
        reference.revision,
        content=reference.config,
        alternative=f"or give a folder, {PREFIX}FOLDER",
    )
    cache = replace(hub, offline=True)
    try:
        planned = plan_files(cache, repository, [reference.config], select)
    except InputError:
        if hub.offline:
            raise
        planned = plan_files(hub, repository, [reference.config], select)
        return PlannedSource(reference, planned.files, hub, planned)
    return PlannedSource(reference, planned.files, cache, planned)


def fetch(source: PlannedSource) -> Path:
    """Folder of the files, downloaded if necessary; size and licence are logged before.

    Raises: InputError for too little disk space or a failed download; OutputError, WriteError.
    """
    if source.planned is None:
        assert source.reference.folder is not None
        return source.reference.folder
    hub, planned = source.hub, source.planned
    if not planned.missing:
        return fetch_files(hub, planned, check=False)
    free = free_bytes(hub.cache_dir)
    if planned.missing > free:
        raise InputError(
            f"{source.reference.name} needs {format_bytes(planned.missing)} on the disk of"
            f" {hub.cache_dir}, and {format_bytes(free)} are free; free some space, or set HF_HUB_CACHE to"
            " another disk"
        )
    settings = tuple(file for file in planned.files if not file.name.endswith(WEIGHTS))
    folder = fetch_files(hub, replace(planned, files=settings))  # so that nothing lacks where weights are
    logger.warning(
        "downloading %s at %s: %s; licence: %s",
        source.reference.name,
        planned.commit[:12],
        format_bytes(planned.missing),
        _licence(folder / CARD) or "not stated",
    )
    return fetch_files(hub, planned, progress=sys.stderr.isatty())


def read_settings(source: PlannedSource) -> Mapping[str, Any]:
    """Configuration of a model or adapter, downloaded if necessary. Raises: InputError, ModelError."""
    folder = source.reference.folder
    if source.planned is not None:
        files = tuple(file for file in source.files if file.name == source.reference.config)
        folder = fetch_files(source.hub, replace(source.planned, files=files))
    assert folder is not None
    return read_object(folder / source.reference.config)


def read_training(folder: Path) -> Mapping[str, Any]:
    """Facts about the training of an adapter in a folder; empty for one that was not trained here.

    Raises: ModelError.
    """
    path = folder / TRAINING
    return read_object(path) if path.is_file() else {}


def read_object(path: Path) -> Mapping[str, Any]:
    """JSON object in a file. Raises: ModelError."""
    try:
        values = parse_json(read_text(path, MAX_TEXT_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}; copy the model again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is no JSON object; copy the model again")
    return values


def fingerprint(sources: Iterable[tuple[PlannedSource, Path]]) -> str:
    """First 16 hex digits of a sha256 of all files of these sources in their folders, but for the cards.

    A file of the Hub counts by its checksum in the cache, a file in a folder by its content; of one of more
    than 4 MB these are its size and 64 samples of 64 kB, the first with the names and shapes of the tensors.
    """
    total = hashlib.sha256()
    for source, folder in sources:
        for file in sorted(source.files, key=lambda file: file.name):
            if file.name != CARD:
                identity = file.digest or _content_digest(folder / file.name)
                total.update(f"{file.name} {identity}\n".encode())
    return total.hexdigest()[:16]


def _reference(text: str, *, is_adapter: bool = False) -> Reference:
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return Reference(folder.resolve().name, folder.resolve(), is_adapter=is_adapter)
    match = _REPOSITORY.fullmatch(text)
    if match is None:
        kind = "adapter" if is_adapter else "model"
        raise InputError(
            f"no {kind} {text!r}: give an existing folder, or OWNER/NAME[@REVISION] of the Hub; the whole is"
            f" {PREFIX}MODEL or {PREFIX}MODEL+ADAPTER"
        )
    return Reference(match["name"], None, match["revision"] or "main", is_adapter)


def _selection(
    reference: Reference, *, with_code: bool
) -> Callable[[Iterable[str], Callable[[str], Path]], Selection]:
    """Selection of the configuration, tokenizer, processor and safetensors weights of a repository."""

    def select(names: Iterable[str], path_of: Callable[[str], Path]) -> Selection:
        present = {name for name in names if "/" not in name}
        index, single = f"{reference.weights}.safetensors.index.json", f"{reference.weights}.safetensors"
        weights = {single}
        if index in present and single not in present:
            weights = _shards(path_of(index))
        patterns = (*SETTINGS, CARD, *(["*.py"] if with_code else []))
        settings = {
            name
            for name in present
            if any(fnmatch(name, pattern) for pattern in patterns) and not fnmatch(name, "*.bin.index.json")
        }
        required = sorted({reference.config, *weights})
        missing = [name for name in required if name not in present]
        return Selection(sorted(settings | weights), missing=missing)

    return select


def _shards(index: Path) -> set[str]:
    """Names of the weight files in an index. Raises: ModelError."""
    try:
        names = parse_json(read_text(index, MAX_TEXT_BYTES))["weight_map"].values()
        shards = {str(name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot use {index}: {error}; copy the model again") from error
    if not shards or any("/" in name or "\\" in name for name in shards):
        raise ModelError(f"cannot use {index}: it names no files beside it; copy the model again")
    return shards


def _missing(reference: Reference, name: str) -> str:
    """Message about a folder that lacks a file."""
    kind = "adapter (peft)" if reference.is_adapter else "model of transformers"
    weights = "; only weights as safetensors are read" if name.endswith(".safetensors") else ""
    return f"{reference.folder} is no {kind}: it has no {name}{weights}; give the folder that has it"


def _local_file(path: Path) -> File:
    return File(path.name, path.stat().st_size, None, cached=True)


def _content_digest(path: Path) -> str:
    """Hex sha256 of a small file, or of size and samples of a large one."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as stream:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(stream.read())
        else:
            digest.update(str(size).encode())
            for sample in range(SAMPLES):
                stream.seek(sample * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _licence(card: Path) -> str:
    """Licence in the front matter of a model card; empty if it states none."""
    try:
        match = re.match(r"---\s*\n(.*?)\n---\s*\n", read_text(card, MAX_TEXT_BYTES), re.DOTALL)
        values = yaml.safe_load(match[1]) if match else None
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        return ""
    return ", ".join(str(values[key]) for key in ("license", "license_name", "license_link") if key in values)
