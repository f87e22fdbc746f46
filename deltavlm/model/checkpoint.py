"""A checkpoint is a folder: config.json, one or more .safetensors, and the tokenizers.

Loading is strict. A missing or an unexpected key, or a wrong shape, is an error that names it.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from deltavlm.config import to_mapping
from deltavlm.errors import ModelError
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import DeltaVLM, build
from deltavlm.model.folder import (
    CONFIG,
    DENSE,
    QUESTION_TOKENIZER,
    SENTENCEPIECE,
    TOKENIZER,
    WEIGHTS,
    read_config,
)
from deltavlm.model.quantize import Kind, quantizable, quantized, replace_layers

SHOWN = 5  # keys named in an error


def save(
    folder: Path, config: DeltaVLMConfig, weights: Mapping[str, Tensor], *, provenance: Mapping[str, str]
) -> None:
    """Writes configuration and weights (float tensors as fp16); each file is whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    small = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in weights.items()
        if is_stored(name, tied=config.language.tied)
    }
    scratch = folder / f".{WEIGHTS}.tmp"
    write_tensors(scratch, small, provenance)
    scratch.replace(folder / WEIGHTS)
    save_config(folder, config)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], provenance: Mapping[str, str]) -> None:
    """A safetensors file of contiguous tensors that share no memory; the same bytes for the same tensors and
    provenance. Raises: OSError.

    Of the header's free part one key is written, because the library writes several in any order.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"deltavlm": json.dumps(dict(provenance), sort_keys=True)})
    except SafetensorError as error:  # a full disk too
        raise OSError(errno.ENOSPC, str(error)) from error
    path.chmod(0o644)  # the library leaves it to the owner alone


def save_config(folder: Path, config: DeltaVLMConfig) -> None:
    """Writes config.json, whole or not at all."""
    scratch = folder / f".{CONFIG}.tmp"
    scratch.write_text(json.dumps(to_mapping(config), indent=1) + "\n")
    scratch.replace(folder / CONFIG)


def is_stored(name: str, *, tied: bool) -> bool:
    """Whether a checkpoint holds this tensor: not the batch counters, and a tied output layer not twice."""
    return not name.endswith("num_batches_tracked") and not (tied and name == "language.lm_head.weight")


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    language_dtype: torch.dtype | None = None,
    quantize: Kind | None = None,
) -> tuple[DeltaVLMConfig, DeltaVLM]:
    """The model of a checkpoint folder, ready to answer. Raises: ModelError.

    With `quantize` the language model's layers become small one by one, as they are read; the device never
    holds them whole. `language_dtype` is that of the language model alone.
    """
    config = read_config(folder)
    files = weight_files(folder, config)
    try:
        with torch.device("meta"):
            model = build(config)
    except (ValueError, TypeError, ArithmeticError, AssertionError, RuntimeError) as error:
        if "torchvision" in str(error):  # a broken installation, not a broken checkpoint
            raise
        raise ModelError(f"{folder / CONFIG}: its numbers make no model ({error}); copy it again") from error
    coarse = quantizable(model) if quantize else frozenset()
    weights: dict[str, Tensor] = {}
    layers: dict[str, nn.Module] = {}
    for path in files:
        for name, tensor in _tensors(path, dtype, language_dtype or dtype, "cpu" if quantize else device):
            weights[name] = tensor
            if quantize and name in coarse and tensor.ndim == 2:
                layers[name] = quantized(tensor, quantize, device)
                weights[name] = torch.empty(tensor.shape, dtype=dtype, device="meta")  # for its shape
    load_weights(model, weights, str(folder / WEIGHTS), tied=config.language.tied)
    replace_layers(model, layers)
    model.eval()
    return config, model.to(device)


def weight_files(folder: Path, config: DeltaVLMConfig) -> list[Path]:
    """The files with weights: those beside the configuration, a mask head's own among them, and those of a
    language model elsewhere.

    Raises: ModelError.
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
    found = sorted(linked.glob("*.safetensors")) or sorted(linked.glob("*.bin"))
    if not found:
        raise ModelError(
            f"{folder / CONFIG} says that the language model is in {linked}, which has no weights; put it"
            f" back, or convert again without --link-llm"
        )
    return [*files, *found]


def _tensors(
    path: Path, own: torch.dtype, language: torch.dtype, device: str
) -> Iterator[tuple[str, Tensor]]:
    """A file's tensors in our names, floats in the dtype of their part. Raises: ModelError."""
    from safetensors import SafetensorError, safe_open

    def wanted(name: str) -> torch.dtype:
        return language if name.startswith("language.") else own

    try:
        if path.suffix == ".bin":
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            for name, tensor in found.items():
                if our := checkpoint_name(name):
                    yield our, tensor.to(device, wanted(our) if tensor.is_floating_point() else None)
            return
        with safe_open(path, framework="pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                if our := checkpoint_name(name):
                    tensor = file.get_tensor(name)
                    yield our, tensor.to(wanted(our)) if tensor.is_floating_point() else tensor
    except (OSError, SafetensorError, RuntimeError, UnpicklingError) as error:
        raise ModelError(f"cannot read {path}: {error}; copy the file again") from error


def checkpoint_name(name: str) -> str | None:
    """Our name of a tensor of ours, or of a Llama's own file; None for a buffer that is computed.

    >>> checkpoint_name("projection.bias"), checkpoint_name("model.norm.weight")
    ('projection.bias', 'language.model.norm.weight')
    """
    name = name.removeprefix("language_model.")  # LLaVA-1.5's
    if name.endswith("rotary_emb.inv_freq") or "vision_tower." in name or "_projector." in name:
        return None
    return f"language.{name}" if name.startswith(("model.", "lm_head.")) else name


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str, *, tied: bool) -> None:
    """Puts weights into a model of meta tensors, strictly. Raises: ModelError naming the first faults."""
    wanted = {name: tensor for name, tensor in model.state_dict().items() if is_stored(name, tied=tied)}
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
    restore_buffers(model, next(t.dtype for t in weights.values() if t.is_floating_point()))
    model.load_state_dict(dict(weights), strict=False, assign=True)
    if tied:
        model.language.tie_weights()  # type: ignore[operator,union-attr]


def restore_buffers(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Buffers that no checkpoint holds (image means, rotary frequencies, position ids, the zero bias of EVA's
    keys) are made anew on the CPU; what meets the weights is of their `dtype`."""
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


def fingerprint(folder: Path) -> str:
    """First 16 hex digits of the sha256 of configuration, weights and tokenizers.

    A converted checkpoint's configuration holds the sums of its large files, which are not read again.
    """
    known = read_config(folder).files
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS, DENSE, TOKENIZER, SENTENCEPIECE, QUESTION_TOKENIZER):
        if name not in known and (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
