"""How many pairs and rows fit into memory at once: measured, where memory is short.

What a batch of pairs takes is found by small probes; what a row of the language model takes follows from the
model's numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from deltavlm.errors import ModelOutOfMemory
from deltavlm.model.config import DeltaVLMConfig

logger = logging.getLogger(__name__)

SHARE = 0.8  # of the free memory; the rest is for what lies scattered, and for what the probes did not see
MAX_PAIRS = 64  # times four questions are 256 rows, beyond which a GPU of today gains nothing


class Meter(Protocol):
    """What is known of a device's memory, in bytes."""

    def free(self) -> int:
        """What can still be taken."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """What `work` takes at its height, beyond what was held before."""
        ...


@dataclass(frozen=True, slots=True)
class CudaMeter:
    """A GPU as torch's allocator sees it, a limit set by `set_per_process_memory_fraction` included."""

    device: str

    def free(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_allocated(self.device)
        kept = torch.cuda.memory_reserved(self.device) - held  # freed by tensors, not given back
        allowed = torch.cuda.get_per_process_memory_fraction(self.device) * total - held
        return max(0, min(free + kept, int(allowed)))

    def peak(self, work: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats(self.device)
        held = torch.cuda.memory_allocated(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - held


@dataclass(frozen=True, slots=True)
class TensorMeter:
    """Tensors on a CPU, against a budget: for tests and benchmarks, since torch's own record is slow."""

    budget: int

    def free(self) -> int:
        return self.budget

    def peak(self, work: Callable[[], object]) -> int:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            work()
        assert seen.profiler is not None
        events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = most = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most


def pairs_that_fit(meter: Meter, probe: Callable[[int], object], most: int = MAX_PAIRS) -> int:
    """How many pairs to look at together; `probe(n)` looks at n. At least 1, and no more than `most`.

    The probes double. The height of a few pairs is in another place than that of many, so that the last two
    foretell best, and only as far as the next one. Raises: what `probe` raises, but ModelOutOfMemory.
    """
    count = 1
    try:
        probe(1)  # what is only taken once, such as the work space of the libraries
        room = int(SHARE * meter.free())
        taken = meter.peak(lambda: probe(1))
        while count < most:
            more = min(2 * count, most)
            before, taken = taken, meter.peak(lambda more=more: probe(more))  # type: ignore[misc]
            each = max(1, (taken - before) // (more - count))
            fit = more + (room - taken) // each
            if fit < 2 * more:
                return _chosen(fit, most, each, room)
            count = more
    except ModelOutOfMemory:
        pass
    return count


def _chosen(fit: int, most: int, each: int, room: int) -> int:
    chosen = min(max(1, fit), most)
    logger.info("a pair takes %.0f MB of %.1f GB: %d pairs at once", each / 1e6, room / 1e9, chosen)
    return chosen


def rows_that_fit(meter: Meter, bytes_each: int, most: int) -> int:
    """How many rows to answer together; at least 1, and no more than `most`."""
    return min(max(1, int(SHARE * meter.free()) // bytes_each), most)


def row_bytes(config: DeltaVLMConfig, tokens: int, beams: int, itemsize: int) -> int:
    """What one row takes at its height, a number having `itemsize` bytes.

    `tokens` are those of the soft prompt, the question and the answer. Keys and values are kept for all of
    them in every layer, and once more for the layer to which a token is being added; the prompt goes through
    one block of the language model at a time. A row holds a copy of its pair's image tokens. Logits are
    float32, a handful of copies.
    """
    language, qformer = config.language, config.qformer
    cache = 2 * (language.layers + 2) * tokens * language.hidden * itemsize
    block = tokens * (8 * language.hidden + 4 * language.intermediate) * itemsize + 2 * tokens**2 * 4
    seen = 2 * (config.vision.grid**2 + config.vision.prefix_tokens)
    query = seen * (2 * config.vision.width + 4 * qformer.hidden) * itemsize
    logits = 6 * language.vocab * 4
    return beams * (cache + block + logits) + query
