"""Save and load checkpoints: a folder of config.json, one or more .safetensors, and tokenizers.

Loading is strict: a missing or unexpected key, or a wrong shape, is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from deltavlm.config import to_mapping
from deltavlm.errors import ModelError
from deltavlm.files import atomic_file, check_regular, write_atomic
from deltavlm.model.config import DeltaVLMConfig, ScopeConfig
from deltavlm.model.deltavlm import DeltaVLM, build
from deltavlm.model.device import meta_device
from deltavlm.model.folder import (
    CONFIG,
    DENSE,
    WEIGHTS,
    read_config,
)
from deltavlm.model.quantize import Kind, quantizable, quantize_weights, replace_layers
from deltavlm.model.scope import QuestionScope
from deltavlm.model.tensors import check_weights, read_tensors, write_tensors

SCOPE = "scope."  # prefix of the tensors of the question scope


def save(
    folder: Path, config: DeltaVLMConfig, weights: Mapping[str, Tensor], *, provenance: Mapping[str, str]
) -> None:
    """Write configuration and weights (float tensors as fp16), each file atomically. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    half_weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in weights.items()
        if is_stored(name, tied=config.language.tied)
    }
    with atomic_file(folder / WEIGHTS) as scratch:
        write_tensors(scratch, half_weights, provenance)
    save_config(folder, config)


def save_config(folder: Path, config: DeltaVLMConfig) -> None:
    """Write config.json atomically. Raises: OSError."""
    write_atomic(folder / CONFIG, json.dumps(to_mapping(config), indent=1) + "\n")


def is_stored(name: str, *, tied: bool) -> bool:
    """True if a checkpoint stores this tensor: not batch counters, and a tied output layer only once."""
    return not name.endswith("num_batches_tracked") and not (tied and name == "language.lm_head.weight")


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    language_dtype: torch.dtype | None = None,
    quantize: Kind | None = None,
) -> tuple[DeltaVLMConfig, DeltaVLM]:
    """Load a checkpoint folder; the model is in evaluation mode.

    Args:
        folder: checkpoint folder.
        dtype: dtype of the weights.
        device: device of the model.
        language_dtype: dtype of the language model, if it differs.
        quantize: quantize the language model's layers one by one as they are read, so that the device never
            holds all of them in 16 bit.

    Raises: ModelError.
    """
    config = read_config(folder)
    files = weight_files(folder, config)
    try:
        with meta_device():
            model = build(config)
    except (ValueError, TypeError, ArithmeticError, AssertionError, RuntimeError) as error:
        if "torchvision" in str(error):  # a broken installation, not a broken checkpoint
            raise
        raise ModelError(
            f"{folder / CONFIG}: no model can be built from its values ({error}); copy the file again"
        ) from error
    stored = (
        (name, tensor)
        for path in files
        for name, tensor in _tensors(path, dtype, language_dtype or dtype, "cpu" if quantize else device)
        if config.scope is None or not name.startswith(SCOPE)  # of `load_scope`
    )
    layers: dict[str, nn.Module] = {}
    if quantize:
        weights, layers = quantize_weights(stored, quantizable(model), quantize, device)
    else:
        weights = dict(stored)
    load_weights(model, weights, str(folder / WEIGHTS), tied=config.language.tied)
    replace_layers(model, layers)
    model.eval()
    return config, model.to(device)


def load_scope(path: Path, config: ScopeConfig) -> QuestionScope:
    """Load a question scope from a weight file, on the CPU in float32. Raises: ModelError."""
    with meta_device():
        scope = QuestionScope(config)
    tensors = _tensors(path, torch.float32, torch.float32, "cpu", prefix=SCOPE)
    weights = {name.removeprefix(SCOPE): tensor for name, tensor in tensors}
    load_weights(scope, weights, str(path), tied=False)
    return scope.eval()


def scope_tensors(scope: QuestionScope) -> dict[str, Tensor]:
    """Tensors of a question scope under their names in a checkpoint."""
    return {f"{SCOPE}{name}": tensor for name, tensor in scope.state_dict().items()}


def weight_files(folder: Path, config: DeltaVLMConfig) -> list[Path]:
    """Weight files: those of the folder, including a mask head's, and those of a linked language model.

    Raises: ModelError if one is missing.
    """
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; copy the whole checkpoint folder again")
    missing = [name for name in config.files if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} has no {missing[0]}; copy the whole checkpoint folder again")
    files = [folder / WEIGHTS, *sorted(folder.glob("language-*.safetensors")), *folder.glob(DENSE)]
    if config.language.folder is None:
        return files
    linked = Path(config.language.folder)
    linked_files = sorted(linked.glob("*.safetensors")) or sorted(linked.glob("*.bin"))
    if not linked_files:
        raise ModelError(
            f"{folder / CONFIG} links to the language model in {linked}, which has no weights; restore it, or"
            f" convert again without `link_llm=True`"
        )
    for file in linked_files:
        check_regular(file)
    return [*files, *linked_files]


def _tensors(
    path: Path, dtype: torch.dtype, language_dtype: torch.dtype, device: str, prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a file by the names of our modules, those with a prefix, floats converted to their dtype.
    Raises: ModelError."""

    def dtype_of(name: str) -> torch.dtype:
        return language_dtype if name.startswith("language.") else dtype

    try:
        if path.suffix == ".bin":
            state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            for key, tensor in state_dict.items():
                if name := checkpoint_name(key):
                    yield name, tensor.to(device, dtype_of(name) if tensor.is_floating_point() else None)
            return
        for key, tensor in read_tensors(path, device, prefix):
            if name := checkpoint_name(key):
                yield name, tensor.to(dtype_of(name)) if tensor.is_floating_point() else tensor
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise ModelError(f"cannot read {path}: {error}; copy the file again") from error


def checkpoint_name(name: str) -> str | None:
    """Name in our model of a tensor of a checkpoint, or of a Llama's files; None for a computed buffer.

    >>> checkpoint_name("projection.bias"), checkpoint_name("model.norm.weight")
    ('projection.bias', 'language.model.norm.weight')
    """
    name = name.removeprefix("language_model.")  # LLaVA-1.5's
    if name.endswith("rotary_emb.inv_freq") or "vision_tower." in name or "_projector." in name:
        return None
    if name.startswith(("dense.fuse.", "dense.ups.", "dense.mask.")):  # of checkpoints before 2026-11-29
        return name.replace("dense.", "dense.decoder.", 1)
    return f"language.{name}" if name.startswith(("model.", "lm_head.")) else name


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str, *, tied: bool) -> None:
    """Load weights into a model of meta tensors, strictly. Raises: ModelError naming the first faults."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if is_stored(name, tied=tied)}
    check_weights(weights, expected, source)
    restore_buffers(model, next(t.dtype for t in weights.values() if t.is_floating_point()))
    model.load_state_dict(dict(weights), strict=False, assign=True)
    if tied:
        model.language.tie_weights()  # type: ignore[operator,union-attr]


def restore_buffers(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Recreate on the CPU the buffers that no checkpoint stores: image mean and deviation, rotary
    frequencies, position ids, the zero bias of EVA's keys. Those that are added to weights get `dtype`."""
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
                value = torch.zeros(buffer.shape, dtype=dtype if buffer.is_floating_point() else buffer.dtype)
            persistent = name not in module._non_persistent_buffers_set
            module.register_buffer(name, value, persistent=persistent)
