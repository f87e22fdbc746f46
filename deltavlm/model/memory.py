"""How many pairs and rows fit into memory at once: measured, where memory is short.

A batch of pairs costs something fixed and something for each pair; two small probes tell both. What a row of
the language model takes follows from the model's numbers.
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
MOST_PAIRS = 64  # times four questions are 256 rows, beyond which a GPU of today gains nothing


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


def pairs_that_fit(meter: Meter, probe: Callable[[int], object], most: int = MOST_PAIRS) -> int:
    """How many pairs to look at together; `probe(n)` looks at n. At least 1, and no more than `most`."""
    try:
        probe(1)  # what is only taken once, such as the work space of the libraries
        one, two = (meter.peak(lambda n=n: probe(n)) for n in (1, 2))  # type: ignore[misc]
    except ModelOutOfMemory:
        return 1
    each = max(1, two - one)
    fixed = max(0, one - each)
    free = meter.free()
    fit = int(SHARE * free - fixed) // each
    chosen = min(max(1, fit), most)
    logger.info("a pair takes %.0f MB, %.1f GB are free: %d pairs at once", each / 1e6, free / 1e9, chosen)
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
