"""Quantization of the language model to 8 or 4 bit with bitsandbytes, for GPUs of 12 to 24 GB.

    int8   LLM.int8() (arXiv 2208.07339): one scale per row of the weights and of the activations; columns of
           activations beyond THRESHOLD stay in 16 bit, and which these are depends on the whole batch
    int4   NF4 with double quantization of its scales (QLoRA, arXiv 2305.14314): 4.13 bit per parameter;
           computes in the dtype of the model

Only the linear layers inside the language model's blocks are quantized: 6.5 of the published model's 7.9
billion parameters. Word embeddings, output layer, vision tower and Q-Former keep their dtype. bitsandbytes
is an optional dependency.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltavlm.errors import InputError, ModelError
from deltavlm.extras import require_package
from deltavlm.model.footprint import BLOCK
from deltavlm.model.memory import trim_heap

Kind = Literal["int8", "int4"]
THRESHOLD = 6.0  # of LLM.int8(), as in the paper


def check_quantize(kind: Kind, device: str) -> None:
    """Check that this machine can quantize to `kind` on `device`. Raises: InputError."""
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"`quantize='{kind}'` runs on cuda and cpu, not on {device}; omit it")
    require_package("bitsandbytes", f"`quantize='{kind}'`")


def describe(kind: Kind) -> str:
    """Method and library version, for the provenance record."""
    return f"{kind}, bitsandbytes {metadata.version('bitsandbytes')}"


def quantizable(model: nn.Module) -> frozenset[str]:
    """Names of the weights to quantize: all linear layers inside the language model's blocks."""
    return frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.startswith("language.model.layers.") and isinstance(module, nn.Linear)
    )


def quantize_layer(weight: Tensor, kind: Kind, device: str, bias: Tensor | None = None) -> nn.Module:
    """Quantized linear layer on `device` with this weight, (out, in), and bias, (out,), of unchanged dtype.

    The weight is on the CPU; it is copied to the device and quantized there, so that the device never holds
    more than one layer in 16 bit.

    Raises: InputError if the width does not fit the method, ModelError if bitsandbytes fails.
    """
    outputs, inputs = weight.shape
    if kind == "int4" and inputs % BLOCK:
        raise InputError(
            f"`quantize='int4'` needs layers whose width is a multiple of {BLOCK}, and this language model"
            f" has {inputs}; use int8, or omit it"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about every cast of every product
    import bitsandbytes as bnb

    layer: Any
    try:
        with torch.device("meta"):
            if kind == "int8":
                layer = bnb.nn.Linear8bitLt(
                    inputs, outputs, bias=False, has_fp16_weights=False, threshold=THRESHOLD
                )
            else:
                layer = bnb.nn.Linear4bit(
                    inputs, outputs, bias=False, compute_dtype=weight.dtype, quant_type="nf4"
                )
                if outputs % 32:  # its packing for AVX-512 works on that many rows at once
                    layer.support_avx512bf16_for_cpu = False
        if kind == "int8":
            layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        module: nn.Module = layer.to(device).eval()
        return module
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"bitsandbytes cannot quantize to {kind} on {device}: {reason}; omit `quantize`"
        ) from error


def quantize_weights(
    weights: Iterable[tuple[str, Tensor]], names: frozenset[str], kind: Kind, device: str
) -> tuple[dict[str, Tensor], dict[str, nn.Module]]:
    """Weights by name, and the quantized layers of those with one of `names`, made one by one as `weights`
    are read from files.

    The weight of a quantized layer becomes a meta tensor of its shape, for `tensors.check_weights`; the layer
    is put into its model by `replace_layers`. Raises: as `quantize_layer`.
    """
    kept: dict[str, Tensor] = {}
    layers: dict[str, nn.Module] = {}
    for name, tensor in weights:
        if name in names and tensor.ndim == 2:
            layers[name] = quantize_layer(tensor, kind, device)
            trim_heap()  # on a CPU the float32 copies of a layer are many times its size
            kept[name] = torch.empty_like(tensor, device="meta")
        else:
            kept[name] = tensor
    return kept, layers


def replace_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Replace the layers of `model` by those in `layers`, which are keyed by the names of their weights; one
    without a bias takes that of the layer that it replaces."""
    for name, layer in layers.items():
        parent, _, attribute = name.removesuffix(".weight").rpartition(".")
        owner = model.get_submodule(parent)
        bias = getattr(getattr(owner, attribute), "bias", None)
        if bias is not None and getattr(layer, "bias", None) is None:
            layer.bias = bias
        setattr(owner, attribute, layer)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of a module's tensors, including the scales of quantized layers; shared memory counts once."""
    storages = [tensor.untyped_storage() for tensor in _tensors(module)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for submodule in module.modules():
        yield from submodule.parameters(recurse=False)
        yield from submodule.buffers(recurse=False)
        weight, state = getattr(submodule, "weight", None), getattr(submodule, "state", None)
        scales = [getattr(weight, "SCB", None), getattr(state, "CB", None), getattr(state, "SCB", None)]
        quant_state = getattr(weight, "quant_state", None)
        for level in (quant_state, getattr(quant_state, "state2", None)):
            scales += [getattr(level, name, None) for name in ("absmax", "code", "offset")]
        yield from (tensor for tensor in scales if isinstance(tensor, Tensor))
