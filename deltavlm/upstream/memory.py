"""Memory that the published models will take once they are converted, told before they are fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deltavlm.config import load, shipped_config
from deltavlm.files import format_bytes
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.folder import SHARD_BYTES
from deltavlm.model.footprint import Footprint, Quantize, Sizes, Stored, footprint_of
from deltavlm.model.mci.config import MCIConfig
from deltavlm.model.memory import available_memory, pair_bytes

__all__ = ["PUBLISHED", "published_footprint", "published_memory"]


@dataclass(frozen=True, slots=True)
class Published:
    """Numbers of the tensors of a published model: of all, of its language model, and of those of its layers
    that can be quantized; and the forms to tell about."""

    floats: int
    language: int
    quantizable: int
    forms: tuple[tuple[str, Quantize], ...]


PUBLISHED: Mapping[str, Published] = {
    "mci": Published(117_874_199, 0, 0, (("fp32", None),)),
    "deltavlm-7b": Published(
        7_927_028_992, 6_738_415_616, 6_476_005_376, (("bf16", None), ("bf16", "int8"), ("bf16", "int4"))
    ),
}
"""By name of the model; `tests/upstream/test_memory.py` counts them."""


def published_footprint(name: str, dtype: str, quantize: Quantize = None) -> Footprint:
    """Memory of a published model on a CPU, once it is converted. Raises: KeyError."""
    published = PUBLISHED[name]
    others = published.floats - published.language
    files: list[tuple[Stored, ...]] = [(Stored(others, 4 * others, "F32"),)]
    for start in range(0, published.language, SHARD_BYTES // 2):
        numbers = min(SHARD_BYTES // 2, published.language - start)
        layers = numbers * published.quantizable // published.language
        tables = numbers - layers
        files.append((Stored(layers, 2 * layers, "F16", quantizable=True), Stored(tables, 2 * tables, "F16")))
    return footprint_of(Sizes(tuple(files)), _pair_bytes(name), device="cpu", dtype=dtype, quantize=quantize)


def _pair_bytes(name: str) -> Callable[[int], int]:
    if name == "mci":
        return MCIConfig(name=name).pair_bytes
    config = load(shipped_config(f"{name}.yaml"), DeltaVLMConfig)
    return lambda itemsize: pair_bytes(config, itemsize)


def published_memory(name: str) -> list[str]:
    """Lines that tell the memory of a published model, and what is free here."""
    forms = [
        f"{format_bytes(published_footprint(name, dtype, quantize).peak())} in {quantize or dtype}"
        for dtype, quantize in PUBLISHED[name].forms
    ]
    free = available_memory()
    free_text = "" if free is None else f"; {format_bytes(free)} free here"
    return [f"it will take about {', '.join(forms)} of memory to run on a CPU{free_text}"]
