"""Memory that a model takes, told before its weights are read; imports no torch.

    weights     the tensors, in the dtype and quantization of the run
    loading     beside them while they are read: a shard whose numbers are converted; on a GPU a layer that is
                quantized, in 16 bit
    pair        a pair in a batch with its questions: features, caches and activations
    libraries   the process without a model

Beside the weights either loading or a batch takes its share, whichever is more. The sizes of tensors come
from the headers of the files; the others are compared with processes by `benchmarks/full_size.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deltavlm.errors import InputError
from deltavlm.files import format_bytes
from deltavlm.model.folder import TensorSlot, tensor_slots

__all__ = ["Footprint", "Sizes", "check_fits", "footprint_of", "language_bytes", "sizes_of"]

Quantize = Literal["int8", "int4"] | None

LIBRARIES = 650_000_000  # resident memory of a process that has imported torch, transformers and rasterio
GPU_LIBRARIES = 500_000_000  # of CUDA's context
ITEMSIZE: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a number
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
QUANTIZED: Mapping[str, float] = {"int8": 1.0, "int4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes of a number of a quantized layer: 8 bit; 4 bit with NF4's scales, which are quantized themselves. The
scale of a row of int8 is less than a thousandth of it."""
LANGUAGE_LINEAR = re.compile(
    r"(language\.|language_model\.)?model\.(language_model\.)?layers\.\d+\.\w+\.\w+_proj\.weight"
)
"""Names of the tensors that are quantized: linear layers inside the blocks of a language model."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of a model's tensors, before a dtype is chosen."""

    floats: int  # in the dtype of the run
    quantizable: int  # of these
    fixed: int  # bytes of tensors whose dtype is kept
    shards: tuple[tuple[tuple[int, int, bool], ...], ...] = ()  # by file: numbers, stored bytes, quantizable

    def weights(self, dtype: str, quantize: Quantize) -> int:
        """Bytes of the tensors when loaded."""
        quantized = self.quantizable if quantize else 0
        size = QUANTIZED[quantize] * quantized if quantize else 0.0
        return int(size + ITEMSIZE[dtype] * (self.floats - quantized)) + self.fixed

    def loading(self, dtype: str, quantize: Quantize, device: str) -> int:
        """Bytes beside the weights while they are read: on a CPU the largest shard of the tensors that do not
        stay as they are stored, on a GPU the largest layer that is quantized."""
        largest = 0
        for shard in self.shards:
            converted = [
                stored
                for count, stored, is_quantizable in shard
                if (quantize and is_quantizable)
                or (not device.startswith("cuda") and stored != ITEMSIZE[dtype] * count)
            ]
            largest = max(largest, max(converted, default=0) if device.startswith("cuda") else sum(converted))
        return largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory of a model on a device, in bytes."""

    device: str
    dtype: str  # of the weights: fp32, bf16 or fp16
    quantize: Quantize
    weights: int
    loading: int
    pair: int
    pairs: int = 1  # most of them in a batch by default
    smaller: tuple[tuple[str, int], ...] = ()  # other options, and the bytes that must be free with each

    @property
    def libraries(self) -> int:
        """Memory of the process without the model, or of CUDA on a GPU."""
        return GPU_LIBRARIES if self.device.startswith("cuda") else LIBRARIES

    @property
    def needed(self) -> int:
        """Bytes that must be free once the libraries are there, to load the model and to ask about a pair."""
        return self.weights + max(self.loading, self.pair)

    def peak(self, pairs: int = 1) -> int:
        """Largest memory of the process, or of the GPU, with batches of so many pairs."""
        return self.libraries + self.weights + max(self.loading, min(pairs, self.pairs) * self.pair)


def sizes_of(files: Iterable[Path], *, keeps: Iterable[Path] = ()) -> Sizes:
    """Sizes of the tensors of safetensors files, by their headers.

    keeps: files of tensors that keep the dtype in which they are stored. Raises: ModelError.
    """
    floats = quantizable = fixed = 0
    shards = []
    for path in files:
        shard = []
        for name, slot in tensor_slots(path).items():
            count = math.prod(slot.shape)
            if slot.dtype not in FLOATS:
                fixed += slot.length
                continue
            is_quantizable = _is_quantizable(name, slot)
            floats += count
            quantizable += count * is_quantizable
            shard.append((count, slot.length, is_quantizable))
        shards.append(tuple(shard))
    fixed += sum(slot.length for path in keeps for slot in tensor_slots(path).values())
    return Sizes(floats, quantizable, fixed, tuple(shards))


def _is_quantizable(name: str, slot: TensorSlot) -> bool:
    return len(slot.shape) == 2 and LANGUAGE_LINEAR.fullmatch(name) is not None


def footprint_of(
    sizes: Sizes,
    pair: Callable[[int], int],
    *,
    device: str,
    dtype: str,
    quantize: Quantize = None,
    pairs: int = 1,
) -> Footprint:
    """Footprint of a model with tensors of these sizes; `pair(bytes of a number)` is that of a pair."""

    def of(dtype: str, quantize: Quantize) -> Footprint:
        return Footprint(
            device=device,
            dtype=dtype,
            quantize=quantize,
            weights=sizes.weights(dtype, quantize),
            loading=sizes.loading(dtype, quantize, device),
            pair=pair(ITEMSIZE[dtype]),
            pairs=pairs,
        )

    half = "bf16" if dtype == "fp32" else dtype
    choices: list[tuple[str, str, Quantize]] = [("`dtype='bf16'`", "bf16", None)] if dtype == "fp32" else []
    if sizes.quantizable:
        choices += [("`quantize='int8'`", half, "int8"), ("`quantize='int4'`", half, "int4")]
    asked = of(dtype, quantize)
    others = [(label, of(other, kind).needed) for label, other, kind in choices]
    return replace(asked, smaller=tuple((label, size) for label, size in others if size < asked.needed))


def language_bytes(
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    vocab: int,
    keys: int,
    tokens: int,
    itemsize: int,
    copies: int = 1,
) -> int:
    """Memory of a row of a language model, in bytes: keys and values of all layers, so many `copies` of them,
    the activations of one block, and the scores of the last token in float32, in a handful of copies.

    keys: width of the keys of a layer. tokens: of prompt and answer together.
    """
    cache = 2 * layers * keys * tokens * itemsize
    return copies * cache + tokens * (8 * hidden + 4 * intermediate) * itemsize + 6 * vocab * 4


def check_fits(name: str, footprint: Footprint, free: int | None) -> None:
    """Check a model against the free memory, in bytes; nothing is checked where that is not known.

    Raises: InputError that says what is needed, what is free, and which options would fit.
    """
    if free is None or footprint.needed <= free:
        return
    where = "on the GPU" if footprint.device.startswith("cuda") else "of memory"
    form = footprint.quantize or footprint.dtype
    fitting = [f"{option} ({format_bytes(size)})" for option, size in footprint.smaller if size <= free]
    if fitting:
        hint = f"{' or '.join(fitting)} would fit"
    elif footprint.smaller:
        option, size = min(footprint.smaller, key=lambda each: each[1])
        hint = f"even {option} needs {format_bytes(size)}; free more, or use another machine"
    else:
        hint = "free more, or use another machine"
    raise InputError(
        f"{name} needs about {format_bytes(footprint.needed)} {where} in {form}, and {format_bytes(free)} are"
        f" free; {hint}"
    )
