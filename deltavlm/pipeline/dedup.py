"""Deduplicate identical chips (sea, fill): a cache from the pixels of both dates to the chip's result."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import astuple, dataclass, replace

from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import ChipPixels
from deltavlm.model.interface import PairContext
from deltavlm.pipeline.journal.blobs import Blob
from deltavlm.pipeline.results import ChipResult

__all__ = ["CachedResult", "ResultCache", "context_digest", "pixel_digest"]

CACHE_SIZE = 1024  # results


def pixel_digest(pixels: ChipPixels) -> str:
    """SHA-256 of the pixels of both dates, 32 hex digits: equal for chips that the model sees as equal."""
    digest = hashlib.sha256(pixels.before.tobytes())
    digest.update(pixels.after.tobytes())
    return digest.hexdigest()[:32]


def context_digest(digest: str, context: PairContext) -> str:
    """Digest of pixels and context: equal for chips about which a model reads the same."""
    return hashlib.sha256(f"{digest} {astuple(context)}".encode()).hexdigest()[:32]


@dataclass(slots=True)
class CachedResult:
    """Result of the first chip with some pixels; None until it is answered."""

    result: ChipResult | None = None

    def copy_for(
        self, chip: Chip, valid_fraction: float | None, pair: str, valid: Blob | None = None
    ) -> ChipResult:
        """The same result for another chip with these pixels, whose nodata may lie elsewhere."""
        assert self.result is not None
        return replace(self.result, chip=chip, valid_fraction=valid_fraction, pair=pair, valid=valid)


class ResultCache:
    """LRU cache of results by pixel digest.

    The chips that are asked depend on the digests in their order alone. So they are the same in a resumed
    run, whose earlier results are put in first, and with batches that are asked in parallel.
    """

    def __init__(self) -> None:
        self._results: OrderedDict[str, CachedResult] = OrderedDict()

    def lookup(self, digest: str) -> tuple[CachedResult, bool]:
        """Entry of the digest, and True if it is new."""
        if digest in self._results:
            self._results.move_to_end(digest)
            return self._results[digest], False
        entry = self._results[digest] = CachedResult()
        if len(self._results) > CACHE_SIZE:
            self._results.popitem(last=False)
        return entry, True
