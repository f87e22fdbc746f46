"""Memory of a vision-language model of transformers, from its configuration alone, before any download.

The model is built without memory for its weights: counted are the parameters that will be there, and the
layers that will be quantized.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from deltavlm.errors import InputError
from deltavlm.model.device import DTYPES, meta_device
from deltavlm.model.footprint import BLOCK, Footprint, Quantize, Sizes, Stored, with_smaller

__all__ = ["empty_model", "is_quantized", "linear_layers", "read_footprint"]

logger = logging.getLogger(__name__)

SHARE = 0.15  # of the weights: activations and the cache of a pair
LAYER_NUMBER_BYTES = 20  # of the layer that is being quantized: its copies (benchmarks/hf_loading.py)


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """Model of a configuration of transformers in `dtype`, without memory for its tensors.

    Raises: errors of transformers.
    """
    loader: Any = AutoModelForImageTextToText  # its types differ between versions
    with meta_device():
        return loader.from_config(config, dtype=dtype)


def linear_layers(decoder: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Linear layers by name inside the blocks of a language model, those of adapters left out."""
    return {
        name: module
        for name, module in decoder.named_modules()
        if name.startswith("layers.") and type(module) is torch.nn.Linear and "lora_" not in name
    }


def is_quantized(settings: Mapping[str, Any]) -> bool:
    """True if the weights of a configuration are stored quantized."""
    nested = (settings, settings.get("text_config"))
    return any(isinstance(each, dict) and bool(each.get("quantization_config")) for each in nested)


def read_footprint(
    model: str,
    settings: Mapping[str, Any],
    files_bytes: int,
    *,
    device: str,
    dtype: torch.dtype,
    quantize: Quantize = None,
    adapter_bytes: int = 0,
) -> Footprint:
    """Footprint of a model with this configuration, of an adapter with it, by their parameters; where the
    model cannot be built without its files, by the bytes of its weight files.

    Raises: InputError for a quantization that its layers cannot have.
    """
    if quantize and is_quantized(settings):
        raise InputError(f"the weights of {model} are quantized already; omit `quantize`")
    name = next(name for name, value in DTYPES.items() if value == dtype)
    sizes = _sizes(settings)
    if sizes is not None and quantize and quantize not in sizes.quantizations(device):
        reason = "none" if quantize == "int8" else f"no layers, or some whose width is no multiple of {BLOCK}"
        raise InputError(
            f"`quantize={quantize!r}` needs linear layers in the language model, and {model} has {reason};"
            f" {'use int8, or ' if quantize == 'int4' and sizes.quantizations(device) else ''}omit it"
        )
    largest = _largest_layer(sizes)
    sizes = sizes or Sizes(((_in_files(settings, files_bytes),),))

    def of(dtype: str, quantize: Quantize) -> Footprint:
        weights = sizes.weights(dtype, quantize) + adapter_bytes
        return Footprint(
            device=device,
            dtype=dtype,
            quantize=quantize,
            weights=weights,
            loading=LAYER_NUMBER_BYTES * largest if quantize else 0,
            pair=int(SHARE * weights),
        )

    return with_smaller(of(name, quantize), sizes, lambda *form: of(*form).needed)


def _sizes(settings: Mapping[str, Any]) -> Sizes | None:
    """Sizes of the parameters of a configuration; None where transformers cannot build its model alone: its
    code or its quantization is in the repository, or it is broken."""
    if is_quantized(settings):
        return None
    try:
        config = CONFIG_MAPPING[settings["model_type"]].from_dict(dict(settings))
        model = empty_model(config, torch.float32)
        linear = {
            id(layer.weight): layer.in_features for layer in linear_layers(model.get_decoder()).values()
        }
        parameters = [*model.parameters()]
    except Exception as error:  # each architecture has its own
        logger.debug("the parameters of %s cannot be counted: %s", settings.get("model_type"), error)
        return None
    return Sizes(
        (
            tuple(
                Stored(each.numel(), 4 * each.numel(), "F32", id(each) in linear, linear.get(id(each), 0))
                for each in parameters
            ),
        )
    )


def _largest_layer(sizes: Sizes | None) -> int:
    """Numbers of the largest layer that is quantized; 0 where that is not known."""
    files = () if sizes is None else sizes.files
    return max((each.numbers for file in files for each in file if each.quantizable), default=0)


def _in_files(settings: Mapping[str, Any], files_bytes: int) -> Stored:
    """All weights as one tensor: in the dtype that the configuration names, or as they are if quantized."""
    if is_quantized(settings):
        return Stored(files_bytes, files_bytes, "I8")
    text = settings.get("text_config")
    nested = text if isinstance(text, dict) else {}
    stored = settings.get("dtype") or settings.get("torch_dtype") or nested.get("dtype") or "bfloat16"
    itemsize = getattr(torch, str(stored), torch.bfloat16).itemsize
    return Stored(files_bytes // itemsize, files_bytes, "BF16")
