"""A checkpoint is a folder: config.json, model.safetensors, tokenizer.json (both text sides share it).

Loading is strict. A missing or an unexpected key, or a wrong shape, is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deltavlm.config import to_mapping
from deltavlm.errors import ModelError
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import DeltaVLM, build
from deltavlm.model.folder import CONFIG, TOKENIZER, WEIGHTS, read_config

SHOWN = 5  # keys named in an error


def save(
    folder: Path, config: DeltaVLMConfig, weights: Mapping[str, Tensor], *, provenance: Mapping[str, str]
) -> None:
    """Writes configuration and weights (float tensors as fp16); each file is whole or not there."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    small = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in weights.items()
        if stored(name, tied=config.language.tied)
    }
    scratch = folder / f".{WEIGHTS}.tmp"
    save_file(small, scratch, metadata=dict(provenance))
    scratch.replace(folder / WEIGHTS)
    scratch = folder / f".{CONFIG}.tmp"
    scratch.write_text(json.dumps(to_mapping(config), indent=1) + "\n")
    scratch.replace(folder / CONFIG)


def stored(name: str, *, tied: bool) -> bool:
    """Whether a checkpoint holds this tensor: not the batch counters, and a tied output layer not twice."""
    return not name.endswith("num_batches_tracked") and not (tied and name == "language.lm_head.weight")


def load(folder: Path) -> tuple[DeltaVLMConfig, DeltaVLM]:
    """The model of a checkpoint folder, on the CPU in float32, ready to answer. Raises: ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no {WEIGHTS}; copy the whole checkpoint folder again") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {folder / WEIGHTS}: {error}; copy the file again") from error
    try:
        with torch.device("meta"):
            model = build(config)
    except (ValueError, TypeError, ArithmeticError, AssertionError, RuntimeError) as error:
        if "torchvision" in str(error):  # a broken installation, not a broken checkpoint
            raise
        raise ModelError(f"{folder / CONFIG}: its numbers make no model ({error}); copy it again") from error
    fill(model, weights, str(folder / WEIGHTS), tied=config.language.tied)
    model.eval()
    return config, model


def fill(model: nn.Module, weights: Mapping[str, Tensor], where: str, *, tied: bool) -> None:
    """Puts weights into a model of meta tensors, strictly, in float32. Raises: ModelError naming the first
    differences."""
    wanted = {name: tensor for name, tensor in model.state_dict().items() if stored(name, tied=tied)}
    missing, unexpected = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, should be {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for what, names in (
            ("keys missing", missing),
            ("keys unexpected", unexpected),
            ("shapes wrong", wrong),
        )
        if names
    ]
    if faults:
        raise ModelError(f"{where} does not fit its {CONFIG}: {'; '.join(faults)}")
    restore_buffers(model)
    ready = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    model.load_state_dict(ready, strict=False, assign=True)
    if tied:
        model.language.tie_weights()  # type: ignore[operator,union-attr]


def restore_buffers(model: nn.Module) -> None:
    """Buffers that no checkpoint holds (image means, rotary frequencies, position ids) are made anew on
    the CPU."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for module in model.modules():
        if isinstance(module, LlamaRotaryEmbedding):
            module.__init__(module.config)  # type: ignore[misc]
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_meta:
                continue
            if name in ("mean", "std"):
                value = torch.tensor(getattr(module.config, name)).view(1, 3, 1, 1)
            elif name == "position_ids":
                value = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
            else:
                value = torch.zeros(
                    buffer.shape, dtype=buffer.dtype
                )  # running statistics, filled by the checkpoint
            persistent = name not in module._non_persistent_buffers_set
            module.register_buffer(name, value, persistent=persistent)


def fingerprint(folder: Path) -> str:
    """First 16 hex digits of the sha256 of configuration, weights and tokenizer."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
