"""LoRA adapters of peft (arXiv 2106.09685): read from their folder, and merged into weights.

Tensors are named `base_model.model.LAYER.lora_A.weight`. Where transformers nests the language model, LAYER
begins with `model.language_model.layers`, in older files with `model.layers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deltavlm.errors import InputError
from deltavlm.files import parse_json, read_text
from deltavlm.upstream.read import tensors

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PLAIN = {
    "bias": ("none",),
    "use_rslora": (False,),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "layer_replication": ([],),
    "use_qalora": (False,),
    "alora_invocation_tokens": ([],),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the base's weights
}
"""Setting of peft -> values (or none) of a plain LoRA; others change more than its matrices say."""
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_LANGUAGE = re.compile(r"^(model\.language_model\.|language_model\.model\.|model\.)(?=layers\.)")


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapter: matrices by layer, whose weight (out, in) becomes W + scaling * B @ A."""

    path: Path
    rank: int
    alpha: float
    matrices: Mapping[str, tuple[Tensor, Tensor]]  # layer -> A (rank, in), B (out, rank)

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def merge(self, layer: str, weight: Tensor) -> Tensor:
        """The weight of a layer with the adapter, in its dtype; as it is where the adapter has no such layer.

        Raises: InputError if the shapes do not fit.
        """
        if layer not in self.matrices:
            return weight
        down, up = self.matrices[layer]
        if weight.shape != (up.shape[0], down.shape[1]):
            raise InputError(
                f"{self.path}: the adapter of {layer} is for a weight {(up.shape[0], down.shape[1])}, the"
                f" base has {tuple(weight.shape)}; give the base that it was made for"
            )
        return (weight.float() + self.scaling * (up.float() @ down.float())).to(weight.dtype)


def read_adapter(folder: Path) -> Lora:
    """Adapter of a folder that peft wrote; layers of the language model are named `layers.N...`.

    Raises: InputError if it cannot be read, is no plain LoRA, or has one of two matrices, or one twice.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; give the folder of the adapter")
    config = _read_config(folder / CONFIG)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder} has no {WEIGHTS[0]} or {WEIGHTS[1]}; copy the whole adapter")
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors(path):
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise InputError(f"{path}: {name} is no tensor of a LoRA")
        side, layer = sides[match["side"]], _LANGUAGE.sub("", match["layer"])
        if layer in side:
            raise InputError(f"{path} has lora_{match['side']} of {layer} twice, under two names")
        side[layer] = tensor
    down, up = sides["A"], sides["B"]
    alone = sorted(down.keys() ^ up.keys())
    if alone or not down:
        raise InputError(f"{path} has one of two matrices of {alone[0]}" if alone else f"{path} is empty")
    rank, alpha = config["r"], config["lora_alpha"]
    for layer in down:
        if down[layer].shape[0] != rank or up[layer].shape[1] != rank:
            raise InputError(f"{path}: {layer} is not of rank {rank}, as {CONFIG} says")
    return Lora(folder, rank, alpha, {layer: (down[layer], up[layer]) for layer in down})


def check_all_merged(adapter: Lora, layers: frozenset[str]) -> None:
    """Raises: InputError if the adapter has a layer that the base has not."""
    unused = sorted(adapter.matrices.keys() - layers)
    if unused:
        raise InputError(
            f"{adapter.path}: the base has no {unused[0]} (and the adapter has {len(unused)} such layers);"
            " give the base that it was made for"
        )


def _read_config(path: Path) -> Mapping[str, Any]:
    """Settings of a plain LoRA. Raises: InputError."""
    if not path.is_file():
        raise InputError(f"{path.parent} is no adapter of peft: it has no {path.name}")
    try:
        config = parse_json(read_text(path))
        if config["peft_type"] != "LORA" or not config["r"] > 0 or not config["lora_alpha"] > 0:
            raise ValueError("it is no LoRA with a positive rank and alpha")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the configuration of a LoRA: {error}") from error
    for key, values in PLAIN.items():
        value = config.get(key)
        if value is not None and value not in values:
            raise InputError(f"{path}: {key} is {value!r}, and only a plain LoRA can be merged")
    settings: Mapping[str, Any] = config
    return settings


def language_layer(name: str) -> str:
    """Layer of a weight of a language model, as adapters name it.

    >>> language_layer("language.model.layers.0.self_attn.q_proj.weight")
    'layers.0.self_attn.q_proj'
    """
    return name.removeprefix("language.model.").removesuffix(".weight")
