"""The language model's weights in 8 or 4 bit, for GPUs of 12 to 24 GB; bitsandbytes does it, an extra.

    int8   LLM.int8() (arXiv 2208.07339): a scale for each row of the weights and of the activations, and
           columns of activations beyond THRESHOLD in 16 bit; which these are depends on the whole batch
    int4   NF4 with its scales quantised again (QLoRA, arXiv 2305.14314): 4.13 bit a number; computes in the
           model's own dtype

Only the products inside the language model's blocks are quantised: 6.5 of the published model's 7.9 billion
numbers. Its word embeddings and output layer, the vision tower and the Q-Former stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import metadata, util
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltavlm.errors import InputError, ModelError

Kind = Literal["int8", "int4"]
THRESHOLD = 6.0  # of LLM.int8(): the paper's
BLOCK = 64  # numbers of NF4 that share a scale


def check_quantize(kind: Kind, device: str) -> None:
    """Whether it can be done here. Raises: InputError."""
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--quantize {kind} runs on cuda and cpu, not on {device}; leave it out")
    if util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"--quantize {kind} needs the library bitsandbytes; pip install 'deltavlm[quantize]'"
        )


def describe(kind: Kind) -> str:
    """What was done and by which version, for the record."""
    return f"{kind}, bitsandbytes {metadata.version('bitsandbytes')}"


def quantizable(model: nn.Module) -> frozenset[str]:
    """Names of the weights that are quantised: all products inside the language model's blocks."""
    return frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.startswith("language.model.layers.") and isinstance(module, nn.Linear)
    )


def quantized(weight: Tensor, kind: Kind, device: str) -> nn.Module:
    """A layer with this weight (out, in), on `device`. Raises: InputError, ModelError.

    The weight is on the CPU; it goes to the device as it is and becomes small there, so that never more than
    one layer is there in 16 bit.
    """
    outputs, inputs = weight.shape
    if kind == "int4" and inputs % BLOCK:
        raise InputError(
            f"--quantize int4 takes layers whose width is a multiple of {BLOCK}, and this language model has"
            f" {inputs}; take int8, or leave it out"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of every cast of every product
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
                if outputs % 32:  # its packing for AVX-512 takes so many rows at once
                    layer.support_avx512bf16_for_cpu = False
        if kind == "int8":
            layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
        small: nn.Module = layer.to(device).eval()
        return small
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"bitsandbytes cannot make {kind} on {device}: {reason}; leave --quantize out"
        ) from error


def replace_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Quantised layers in the places of those whose weights have these names."""
    for name, layer in layers.items():
        path, _, own = name.removesuffix(".weight").rpartition(".")
        setattr(model.get_submodule(path), own, layer)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of a module's numbers, those of a quantised layer's scales too; what is shared counts once."""
    sizes = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _held(module)
    }
    return sum(sizes.values())


def _held(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        yield from part.parameters(recurse=False)
        yield from part.buffers(recurse=False)
        weight, state = getattr(part, "weight", None), getattr(part, "state", None)
        scales = [getattr(weight, "SCB", None), getattr(state, "CB", None), getattr(state, "SCB", None)]
        quant = getattr(weight, "quant_state", None)
        for known in (quant, getattr(quant, "state2", None)):
            scales += [getattr(known, name, None) for name in ("absmax", "code", "offset")]
        yield from (tensor for tensor in scales if isinstance(tensor, Tensor))
