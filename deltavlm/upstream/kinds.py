"""Kinds of published models: conversion, inspection and verification by the kind; imports no torch.

The module of a kind beside DeltaVLM's has a dataclass `Sources` of paths, and the functions

    convert(sources, folder, notify) -> Converted
    inspect(path) -> Contents
    verify(folder, expected, dtype, device) -> list[Check]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deltavlm.errors import ConfigError, InputError
from deltavlm.files import parse_json, read_text
from deltavlm.model.folder import DEFAULT_KIND, KIND, read_kind

if TYPE_CHECKING:
    from deltavlm.upstream.checks import Check

KINDS: Mapping[str, str] = {
    "mci": "deltavlm.upstream.mci",
    "changechat": "deltavlm.upstream.changechat",
    "changevg": "deltavlm.upstream.changevg",
}
"""Kind of a model, beside that of DeltaVLM -> module that converts its published files."""

Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class Converted:
    """Result of a conversion."""

    folder: Path
    tensors: int
    ignored: tuple[str, ...]  # names of published tensors that nothing reads
    bytes: int
    sources: Mapping[str, str]  # files that it was made from


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of a published file."""

    path: Path
    size: int  # bytes
    parts: tuple[tuple[str, int, int, str], ...]  # name, tensors, parameters, dtypes
    ignored: tuple[str, ...]  # names of tensors that nothing reads
    unknown: tuple[str, ...]  # names of tensors that are no part of the model
    dims: Mapping[str, Any]  # sizes, as far as they can be read from the shapes


def make_sources(sources_type: Any, kind: str, paths: Mapping[str, Path | None]) -> Any:
    """Sources of a conversion from the paths that were given, by the names of their options.

    Raises: ConfigError where one is missing, or does not belong to the kind.
    """
    known = {field.name: field.default is MISSING for field in fields(sources_type)}
    given = {name: path for name, path in paths.items() if path is not None}
    required = [name for name, is_required in known.items() if is_required]
    needs = f"a model of kind {kind} is converted from {', '.join(f'`{name}`' for name in required)}"
    for name in given:
        if name not in known:
            raise ConfigError(f"`{name}` is no file of kind {kind}; {needs}")
    for name in required:
        if name not in given:
            raise ConfigError(f"`{name}` is missing; {needs}")
    return sources_type(**given)


def convert(
    kind: str,
    paths: Mapping[str, Path | None],
    folder: Path,
    notify: Callable[[str], None] = lambda text: None,
) -> Converted:
    """Convert the published files of a kind into the checkpoint `folder`, atomically.

    Raises: ConfigError for files that the kind does not need or lacks, InputError for files that do not fit
        together, OutputError if `folder` exists or cannot be written.
    """
    module = _module(kind)
    converted: Converted = module.convert(make_sources(module.Sources, kind, paths), folder, notify)
    return converted


def inspect(kind: str, path: Path) -> Contents:
    """Contents of a published file of a kind. Raises: InputError."""
    contents: Contents = _module(kind).inspect(path)
    return contents


def verify(
    folder: Path,
    expected: Path,
    *,
    dtype: Dtype = "fp32",
    device: str = "cpu",
    quantize: Literal["int8", "int4"] | None = None,
) -> list[Check]:
    """Compare all stages of a converted model with results of the original.

    Raises: InputError if the expected results cannot be read or are of another kind; ModelError if the
        checkpoint cannot.
    """
    kind = check_same_kind(folder, expected)
    if kind == DEFAULT_KIND:
        from deltavlm.upstream import verify as of_deltavlm

        return of_deltavlm.verify(folder, expected, dtype=dtype, device=device, quantize=quantize)
    if quantize is not None:
        raise ConfigError(f"`quantize={quantize!r}` is not compared for models of kind {kind}; omit it")
    checks: list[Check] = _module(kind).verify(folder, expected, dtype, device)
    return checks


def check_same_kind(folder: Path, expected: Path) -> str:
    """Kind of a checkpoint. Raises: InputError if the expected results are of another, or missing."""
    kind, path = read_kind(folder), expected / "expected.json"
    if not path.is_file():
        raise InputError(f"no file {path}; give the folder of the original's results")
    try:
        other = parse_json(read_text(path)).get(KIND, DEFAULT_KIND)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a file of expected results: {error!r}") from error
    if other != kind:
        raise InputError(f"{folder} is of kind {kind}, and {path} has results of kind {other}")
    return kind


def _module(kind: str) -> Any:
    if kind not in KINDS:
        raise InputError(f"no published model of kind {kind!r} is known; known are {', '.join(KINDS)}")
    return import_module(KINDS[kind])
