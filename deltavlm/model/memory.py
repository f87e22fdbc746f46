"""Batch sizes that fit into memory: measured with small probes on a GPU, fixed numbers on a CPU.

The memory of encoding a batch of pairs is measured; that of a row of the language model is computed from
the model's configuration.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from deltavlm.errors import ModelOutOfMemory
from deltavlm.messages import pluralize
from deltavlm.model.config import DeltaVLMConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Pairs per batch, and rows of (pair, question) per generated batch. On a CPU, enough to fill it and few
# enough to stay in its caches; on a GPU, enough that reading the weights is no longer the bottleneck of a
# step, if they fit.
PAIRS = {"cpu": 32, "mps": 64, "cuda": 64}
ROWS = {"cpu": 64, "mps": 64, "cuda": 256}
CPU_ENCODE_PAIRS = 8  # pairs that a CPU encodes at once: more are no faster, and their maps fill the memory

QUESTIONS, ROW_TOKENS = 4, 128  # standard questions; tokens of a row of them, with its answer
FREE_SHARE = 0.8  # of the free memory; the remainder covers fragmentation, and what probes did not measure
CGROUP = Path("/sys/fs/cgroup")  # limits of the container
MAX_PAIRS = 64  # times four questions are 256 rows, beyond which a GPU of today gains nothing


class Meter(Protocol):
    """Memory of one device, in bytes."""

    def free(self) -> int:
        """Bytes that can still be allocated."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """Peak memory of calling `work`, beyond what was allocated before."""
        ...


@dataclass(frozen=True, slots=True)
class CudaMeter:
    """Memory of a GPU as torch's allocator sees it, within the limit of `set_per_process_memory_fraction`."""

    device: str

    def free(self) -> int:
        import torch

        free, total = torch.cuda.mem_get_info(self.device)
        allocated = torch.cuda.memory_allocated(self.device)
        cached = torch.cuda.memory_reserved(self.device) - allocated  # free, in the allocator
        allowed = torch.cuda.get_per_process_memory_fraction(self.device) * total - allocated
        return max(0, min(free + cached, int(allowed)))

    def peak(self, work: Callable[[], object]) -> int:
        import torch

        torch.cuda.reset_peak_memory_stats(self.device)
        allocated = torch.cuda.memory_allocated(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - allocated


@dataclass(frozen=True, slots=True)
class TensorMeter:
    """Memory of CPU tensors against a budget: for tests and benchmarks, since torch's profiler is slow."""

    budget: int

    def free(self) -> int:
        return self.budget

    def peak(self, work: Callable[[], object]) -> int:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            work()
        assert profiled.profiler is not None
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        allocated = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            allocated += event.nbytes()
            peak = max(peak, allocated)
        return peak


def pairs_that_fit(meter: Meter, probe: Callable[[int], object], limit: int = MAX_PAIRS) -> int:
    """Number of pairs, 1 to `limit`, that can be encoded at once; `probe(n)` encodes n pairs.

    The number of pairs doubles from probe to probe. The peak of a few pairs occurs elsewhere in the model
    than that of many, so only the last two probes are extrapolated, and no further than the next one.

    Raises: errors of `probe`, except ModelOutOfMemory.
    """
    count = 1
    try:
        probe(1)  # allocations that happen once, such as the workspaces of libraries
        available = int(FREE_SHARE * meter.free())
        peak = meter.peak(lambda: probe(1))
        while count < limit:
            doubled = min(2 * count, limit)
            previous, peak = peak, meter.peak(lambda doubled=doubled: probe(doubled))  # type: ignore[misc]
            bytes_each = max(1, (peak - previous) // (doubled - count))
            fit = doubled + (available - peak) // bytes_each
            if fit < 2 * doubled:
                count = min(max(1, fit), limit)
                logger.info(
                    "a pair takes %.0f MB of %.1f GB: batches of %s",
                    bytes_each / 1e6,
                    available / 1e9,
                    pluralize(count, "pair"),
                )
                return count
            count = doubled
    except ModelOutOfMemory:
        pass
    return count


def rows_that_fit(meter: Meter, bytes_each: int, limit: int) -> int:
    """Number of rows, 1 to `limit`, that can be generated at once."""
    return min(max(1, int(FREE_SHARE * meter.free()) // bytes_each), limit)


def row_bytes(config: DeltaVLMConfig, tokens: int, beams: int, itemsize: int) -> int:
    """Peak memory of one row of the language model, in bytes.

    The key-value cache holds all `tokens` in every layer, and one layer's twice while a token is appended;
    the prompt runs through one block at a time. Each row has a copy of its pair's image tokens. Logits are
    float32, in a handful of copies.

    Args:
        config: sizes of the model.
        tokens: length of soft prompt, question and answer together.
        beams: beams of each row; everything but the image tokens exists once per beam.
        itemsize: bytes of one number of the model's dtype.
    """
    language, qformer = config.language, config.qformer
    cache = 2 * (language.layers + 2) * tokens * language.hidden * itemsize
    block = tokens * (8 * language.hidden + 4 * language.intermediate) * itemsize + 2 * tokens**2 * 4
    image_tokens = 2 * (config.vision.grid**2 + config.vision.prefix_tokens)
    query = image_tokens * (2 * config.vision.width + 4 * qformer.hidden) * itemsize
    logits = 6 * language.vocab * 4
    return beams * (cache + block + logits) + query


def pair_bytes(config: DeltaVLMConfig, itemsize: int) -> int:
    """Memory of a pair in a batch, in bytes: the rows of the standard questions about it."""
    return QUESTIONS * row_bytes(config, ROW_TOKENS, config.decoding.beams, itemsize)


def run_in_batches(
    order: Sequence[int],
    size: int,
    run: Callable[[Sequence[int]], Sequence[T]],
    key: Callable[[int], Hashable] | None = None,
) -> dict[int, T]:
    """Results of `run` by item, over batches of at most `size` items in this order.

    With `key`, a batch holds only items of equal key, and is smaller where the key changes. If a batch does
    not fit into memory, batches of half its size are tried from there on.

    Raises: ModelOutOfMemory if a single item does not fit.
    """
    results: dict[int, T] = {}
    start = 0
    while start < len(order):
        batch = order[start : start + size]
        if key is not None:
            batch = [item for item in batch if key(item) == key(batch[0])]
        try:
            results.update(zip(batch, run(batch), strict=True))
        except ModelOutOfMemory:
            if len(batch) == 1:
                raise
            size = len(batch) // 2
            continue
        start += len(batch)
    return results


def available_memory() -> int | None:
    """Bytes of main memory that a process can still use, within the limit of its container; None where the
    system does not tell (others than Linux)."""
    fields = _fields(Path("/proc/meminfo"))
    if "MemAvailable" not in fields:
        return None
    available = fields["MemAvailable"] * 1024
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        reclaimable = _fields(CGROUP / "memory.stat").get("inactive_file", 0)
        available = min(available, max(0, limit - used + reclaimable))
    return available


def free_memory(device: str) -> int | None:
    """Bytes that a model can still take on a device; None where the system does not tell."""
    return CudaMeter(device).free() if device.startswith("cuda") else available_memory()


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library can: glibc keeps what lies between others."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _fields(path: Path) -> dict[str, int]:
    """Names and numbers of a file with lines such as "MemAvailable:  123 kB"; empty if it cannot be read."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _number(path: Path) -> int | None:
    """Number in a file; None where there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
