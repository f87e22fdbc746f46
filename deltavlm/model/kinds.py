"""Kinds of models by their name, and what is known of a model before it is loaded; imports no torch.

    nano, deltavlm-7b, FOLDER    a checkpoint folder; its config.json has the kind, by default DeltaVLM
    hf:OWNER/NAME, hf:FOLDER     a vision-language model for transformers, perhaps with +ADAPTER
    openai:URL#MODEL             a model behind an OpenAI-compatible server; its URL may be in OPENAI_BASE_URL

Each kind is a module with `read_spec(name, options)` and `load(name, options)`; one of checkpoints also has
`read_footprint(name, options)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from deltavlm.errors import ConfigError, ModelError
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.folder import DEFAULT_KIND, find_folder, read_kind
from deltavlm.model.footprint import Footprint
from deltavlm.model.interface import ChangeModel

CHECKPOINTS: Mapping[str, str] = {
    DEFAULT_KIND: "deltavlm.model.runtime",
    "mci": "deltavlm.model.mci",
    "changechat": "deltavlm.model.changechat",
    "changevg": "deltavlm.model.changevg",
}
"""`kind` in the config.json of a checkpoint folder -> module of the kind."""
KINDS: Mapping[str, str] = {"hf": "deltavlm.model.huggingface", "openai": "deltavlm.model.openai"}
"""Prefix of a name, before its first colon -> module of the kind."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known of a model before it is loaded."""

    name: str
    chip_px: int  # side of the training images
    training_gsd_m: float | None  # ground size of their pixels; None for a model of any scale
    has_masks: bool
    weights_bytes: int  # on this machine, 0 for a model on a server
    sends_to: str = ""  # address of another machine that gets the pictures; empty where none does


GREEDY_ON_TORCH: Mapping[str, tuple[Any, ...]] = {
    "decode": (None, "fast"),
    "beams": (None, 1),
    "prompt_style": (None,),
    "runtime": ("auto", "torch"),
}
"""Option -> values that models support which always decode greedily, on torch."""


def check_options(
    kind: str, options: RuntimeOptions, supported: Mapping[str, tuple[Any, ...]] = GREEDY_ON_TORCH
) -> None:
    """Raises: ConfigError for an option that models of a kind do not support."""
    for field, values in supported.items():
        value = getattr(options, field)
        if value not in values:
            raise ConfigError(
                f"models of kind {kind} do not support `{field}={value!r}`; omit it: they decode greedily, "
                "on torch"
            )


def kind_of(name: str) -> str:
    """Prefix of a model's name that says its kind; empty for a checkpoint.

    >>> kind_of("nano"), kind_of("C:/models/nano"), kind_of("hf:OWNER/NAME")
    ('', '', 'hf')
    >>> kind_of("openai:http://localhost:8000/v1#tiny")
    'openai'
    """
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in KINDS else ""


def follows_instructions(name: str) -> bool:
    """True if the model of this name is asked in any words, in those of the phrasebook `generic` or a
    person's."""
    return kind_of(name) in KINDS


def read_spec(name: str, options: RuntimeOptions | None = None) -> ModelSpec:
    """What is known of a model by name or folder, without its weights.

    Raises: InputError if there is no such model; ModelError if its configuration is broken; ConfigError if it
        does not support an option.
    """
    spec: ModelSpec = _module(name).read_spec(name, options or RuntimeOptions())
    return spec


def read_footprint(name: str, options: RuntimeOptions | None = None) -> Footprint | None:
    """Memory that a model will take with these options, before its weights are read; None for models of the
    Hub, which tell it when they are loaded, and of servers.

    Raises: InputError if there is no such model or device; ModelError if its files cannot be read.
    """
    if kind_of(name):
        return None
    footprint: Footprint | None = _module(name).read_footprint(name, options or RuntimeOptions())
    return footprint


def load_model(
    name_or_folder: str = "nano", options: RuntimeOptions | None = None, **fields: Any
) -> ChangeModel:
    """Load a model of any kind.

    Args:
        name_or_folder: name of a shipped or fetched model (see `deltavlm weights list`), a checkpoint
            folder, or a name with the prefix of its kind.
        options: how the model runs.
        fields: single fields of `RuntimeOptions`, in place of those of `options`: device, dtype, threads,
            decode, beams, prompt_style, quantize, calibration, offline, trust_remote_code, requests,
            timeout_s, allow_upload.

    Returns:
        A model with `encode(before, after)` for batches of (N, 3, H, W) uint8 RGB, `answer(encoded,
        questions)` and `masks(encoded)`.

    Raises: InputError if there is no such model or device, or the calibration is of another model; ModelError
        if it cannot be used.
    """
    options = replace(options or RuntimeOptions(), **fields)
    model: ChangeModel = _module(name_or_folder).load(name_or_folder, options)
    return model


def _module(name: str) -> Any:
    prefix = kind_of(name)
    if prefix:
        return import_module(KINDS[prefix])
    folder = find_folder(name)
    kind = read_kind(folder)
    if kind not in CHECKPOINTS:
        raise ModelError(
            f"{folder} holds a model of kind {kind!r}, which this version does not know; known are "
            f"{', '.join(CHECKPOINTS)}"
        )
    return import_module(CHECKPOINTS[kind])
