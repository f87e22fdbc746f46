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

__all__ = ["Footprint", "LanguageSizes", "Sizes", "Stored", "check_fits", "footprint_of", "sizes_of"]

Quantize = Literal["int8", "int4"] | None

LIBRARIES = 600_000_000  # resident memory of a process that has imported torch, transformers and rasterio
GPU_LIBRARIES = 500_000_000  # of CUDA's context
ITEMSIZE: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a number
DTYPES: Mapping[str, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}  # as safetensors names them
QUANTIZED: Mapping[str, float] = {"int8": 1.0, "int4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes of a number of a quantized layer: 8 bit; 4 bit with NF4's scales, which are quantized themselves. The
scale of a row of int8 is less than a thousandth of it."""
MAX_HINTS = 3  # options that a message names
BLOCK = 64  # weights of NF4 that share a scale; the width of each layer is a multiple of it
LANGUAGE_LINEAR = re.compile(
    r"(language\.|language_model\.)?model\.(language_model\.)?layers\.\d+\.\w+\.\w+_proj\.weight"
)
"""Names of the tensors that are quantized: linear layers inside the blocks of a language model."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensor of a weight file."""

    numbers: int
    length: int  # bytes in the file
    dtype: str  # as safetensors names it
    quantizable: bool = False
    width: int = BLOCK  # inputs of a layer

    def loaded(self, dtype: str, quantize: Quantize) -> int:
        """Bytes when loaded."""
        if quantize and self.quantizable:
            return int(QUANTIZED[quantize] * self.numbers)
        return ITEMSIZE[dtype] * self.numbers if self.dtype in DTYPES.values() else self.length

    def is_converted(self, dtype: str, quantize: Quantize) -> bool:
        """True if loading makes other bytes of it."""
        if self.dtype not in DTYPES.values():
            return False
        return bool(quantize and self.quantizable) or self.dtype != DTYPES[dtype]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tensors of weight files, in the order in which they are read."""

    files: tuple[tuple[Stored, ...], ...]
    fixed: int = 0  # bytes of further tensors, which keep their dtype

    def quantizations(self, device: str) -> tuple[Quantize, ...]:
        """Quantizations that the layers can have on a device."""
        widths = {tensor.width for file in self.files for tensor in file if tensor.quantizable}
        if not widths or device.split(":")[0] not in ("cpu", "cuda"):
            return ()
        return ("int8",) if any(width % BLOCK for width in widths) else ("int8", "int4")

    def weights(self, dtype: str, quantize: Quantize) -> int:
        """Bytes of the tensors when loaded."""
        return self.fixed + sum(tensor.loaded(dtype, quantize) for file in self.files for tensor in file)

    def loading(self, dtype: str, quantize: Quantize, device: str) -> int:
        """Bytes beside the weights while they are read.

        On a CPU a file stays mapped until all of its tensors are converted or quantized, so what counts is
        what the weights read so far and the open file take together; on a GPU it is the largest layer that
        is quantized.
        """
        if device.startswith("cuda"):
            layers = (tensor for file in self.files for tensor in file if tensor.quantizable)
            return max((tensor.length for tensor in layers), default=0) if quantize else 0
        read, peak = self.fixed, 0
        for file in self.files:
            read += sum(tensor.loaded(dtype, quantize) for tensor in file)
            converted = sum(tensor.length for tensor in file if tensor.is_converted(dtype, quantize))
            peak = max(peak, read + converted)
        return max(0, peak - self.weights(dtype, quantize))


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
    stored = [
        tuple(
            Stored(
                *(math.prod(slot.shape), slot.length, slot.dtype),
                *((True, slot.shape[1]) if _is_quantizable(name, slot) else (False,)),
            )
            for name, slot in tensor_slots(path).items()
        )
        for path in files
    ]
    return Sizes(tuple(stored), sum(slot.length for path in keeps for slot in tensor_slots(path).values()))


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

    footprint = of(dtype, quantize)
    return with_smaller(footprint, sizes, lambda *form: of(*form).needed)


def with_smaller(footprint: Footprint, sizes: Sizes, needed: Callable[[str, Quantize], int]) -> Footprint:
    """Footprint with the options that need less; `needed(dtype, quantize)` is what must be free with them.

    A quantized model keeps the dtype of the run for all that is not quantized.
    """
    dtypes = {footprint.dtype: ""} | ({"bf16": "`dtype='bf16'`"} if footprint.dtype == "fp32" else {})
    choices = []
    for quantize in (None, *sizes.quantizations(footprint.device)):
        for dtype, label in dtypes.items():
            words = [f"`quantize='{quantize}'`"] * (quantize is not None) + [label] * bool(label)
            choices.append((" with ".join(words), needed(dtype, quantize)))
    return replace(
        footprint, smaller=tuple((label, size) for label, size in choices if size < footprint.needed)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSizes:
    """Sizes of a language model; `keys` is the width of the keys of a layer."""

    layers: int
    hidden: int
    intermediate: int
    vocab: int
    keys: int

    def cache_bytes(self, tokens: int, itemsize: int) -> int:
        """Memory of the keys and values of so many tokens, in bytes; `itemsize` is that of a number."""
        return 2 * self.layers * self.keys * tokens * itemsize

    def row_bytes(self, tokens: int, itemsize: int) -> int:
        """Memory of a row of so many tokens, with its answer, in bytes: keys and values, the activations of
        one block, and a handful of copies of the scores of the last token in float32."""
        block = tokens * (8 * self.hidden + 4 * self.intermediate) * itemsize
        return self.cache_bytes(tokens, itemsize) + block + 6 * self.vocab * 4


def check_fits(name: str, footprint: Footprint, free: int | None) -> None:
    """Check a model against the free memory, in bytes; nothing is checked where that is not known.

    Raises: InputError that says what is needed, what is free, and which options would fit.
    """
    if free is None or footprint.needed <= free:
        return
    memory = "on the GPU" if footprint.device.startswith("cuda") else "of memory"
    form = footprint.quantize or footprint.dtype
    fitting = [f"{option} ({format_bytes(size)})" for option, size in footprint.smaller if size <= free]
    fitting = fitting[:MAX_HINTS]
    if fitting:
        hint = f"{' or '.join(fitting)} would fit"
    elif footprint.smaller:
        option, size = min(footprint.smaller, key=lambda each: each[1])
        hint = f"even {option} needs {format_bytes(size)}; free more, or use another machine"
    else:
        hint = "free more, or use another machine"
    raise InputError(
        f"{name} needs about {format_bytes(footprint.needed)} {memory} in {form}, and {format_bytes(free)}"
        f" are free; {hint}"
    )
