"""Cache of the beginning of a conversation, up to the second image, shared by all its questions.

Architectures in TESTED_TYPES give the same answers with and without it; others are not asked with it.
P tokens of a prefix, T tokens after it, B rows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, GenerationMixin

TESTED_TYPES = frozenset(
    [
        *("gemma3", "idefics3", "internvl", "lfm2_vl", "llava", "llava_onevision", "mistral3"),
        *("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm"),
    ]
)
"""Architectures (`model_type`) that tests compare with and without the cache."""
TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
CACHE = (  # renamed in transformers 5
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first P tokens of a conversation."""

    ids: tuple[int, ...]  # P token ids
    cache: Any  # DynamicCache of batch 1
    rope_delta: Tensor | None  # (1, 1), of models whose image tokens have positions in three dimensions


def cut_after_images(inputs: Mapping[str, Any], image_token: int) -> dict[str, Any]:
    """Inputs of one row (1, L), up to its last image token."""
    (positions,) = torch.nonzero(inputs["input_ids"][0] == image_token, as_tuple=True)
    length = int(positions[-1]) + 1
    return {name: value[:, :length] if name in TOKEN_INPUTS else value for name, value in inputs.items()}


def run_prefix(model: Any, inputs: Mapping[str, Any], **settings: Any) -> Prefix:
    """Run the model over the inputs of a prefix; `settings` are those of `generate`."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    model.generate(**inputs, **{CACHE: cache}, max_new_tokens=1, **settings)
    return Prefix(tuple(inputs["input_ids"][0].tolist()), cache, getattr(model.model, "rope_deltas", None))


def can_pad(prefix: Prefix) -> bool:
    """True if rows of different lengths may share a batch: every layer sees all earlier tokens, so that
    masked ones between them do not matter."""
    return all(type(layer).__name__ == "DynamicLayer" for layer in prefix.cache.layers)


def continue_from(
    model: Any, prefixes: Sequence[Prefix], tails: Sequence[Sequence[int]], pad: int, device: str
) -> dict[str, Any]:
    """Inputs of `generate` for B rows, each a prefix and the T tokens after it.

    Prefixes are padded on the left and tails too, between prefix and tail; the padding is masked.
    """
    before, after = max(len(prefix.ids) for prefix in prefixes), max(map(len, tails))
    ids = torch.full((len(tails), before + after), pad)
    mask = torch.zeros_like(ids)
    for row, (prefix, tail) in enumerate(zip(prefixes, tails, strict=True)):
        start, end = before - len(prefix.ids), before + after - len(tail)
        ids[row, start:before], mask[row, start:before] = torch.tensor(prefix.ids), 1
        ids[row, end:], mask[row, end:] = torch.tensor(tail), 1
    deltas = [prefix.rope_delta for prefix in prefixes if prefix.rope_delta is not None]
    if deltas:
        model.model.rope_deltas = torch.cat(deltas)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), CACHE: _join(prefixes, before)}


def _join(prefixes: Sequence[Prefix], length: int) -> Any:
    """Cache of batch B, of caches of batch 1; shorter ones are padded on the left to `length`."""
    joined = copy.copy(prefixes[0].cache)
    joined.layers = [
        _join_layers(layers, [length - len(prefix.ids) for prefix in prefixes])
        for layers in zip(*(prefix.cache.layers for prefix in prefixes), strict=True)
    ]
    return joined


def _join_layers(layers: Sequence[Any], paddings: Sequence[int]) -> Any:
    joined = copy.copy(layers[0])
    for name, value in vars(layers[0]).items():
        states = [vars(layer)[name] for layer in layers]
        if name in ("keys", "values") and value is not None:
            padded = [
                functional.pad(state, (0, 0, padding, 0))
                for state, padding in zip(states, paddings, strict=True)
            ]
            setattr(joined, name, torch.cat(padded))
        elif isinstance(value, dict):  # the states of convolutions, and flags
            setattr(joined, name, {key: _cat([state[key] for state in states]) for key in value})
    return joined


def _cat(states: Sequence[Any]) -> Any:
    return torch.cat(list(states)) if isinstance(states[0], Tensor) else states[0]
