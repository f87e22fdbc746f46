"""Engine: reads chips and asks the model, in this process or on a cluster with equal answers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from deltavlm.errors import RasterError
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader
from deltavlm.geo.strips import read_chips
from deltavlm.model.interface import ChangeModel, ModelFacts, PairContext
from deltavlm.pipeline.dedup import CachedResult, context_digest, pixel_digest
from deltavlm.pipeline.inference import BatchReplies, InferenceOptions, run_batches
from deltavlm.pipeline.job import AnalyzeOptions
from deltavlm.pipeline.mask_codec import encode_valid
from deltavlm.pipeline.ordered_map import map_ordered
from deltavlm.pipeline.schema import ChipStatus

__all__ = [
    "Callback",
    "ChipBatch",
    "Engine",
    "LoadedChip",
    "LocalEngine",
    "context_of",
    "load_chips",
    "with_context",
]


@dataclass(frozen=True, slots=True)
class LoadedChip:
    """Chip after reading; with pixels only if the model will be asked about it."""

    chip: Chip
    status: ChipStatus
    valid_fraction: float | None = None
    pixels: Any = None  # ChipPixels, or a reference to them in another process
    reason: str = ""  # error message of an unreadable chip
    pair: str = ""  # id of its pair; empty in a run over one pair
    digest: str = ""  # `dedup.pixel_digest`, also where the pixels equal those of an earlier chip
    cached: CachedResult | None = None  # result of the first chip with these pixels, once it is answered
    valid: bytes = b""  # `mask_codec.encode_valid`, if masks are kept
    shift_px: float | None = None  # length of `ChipPixels.measure_shift`
    cloud_share: float | None = None  # `ChipPixels.cloud_share`
    context: PairContext = field(default_factory=PairContext)
    far_scale: bool = False  # `scale.is_far`: answers that hold only near the training's scale are left out


Callback = Callable[[], None]  # called by the main thread before the chips behind it are answered


@dataclass(slots=True)
class ChipBatch:
    """Chips that are asked and stored together, in order."""

    chips: list[LoadedChip] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)

    @property
    def images(self) -> list[Any]:
        """Pixels of the chips that the model is asked about."""
        return [chip.pixels for chip in self.chips if chip.pixels is not None]

    @property
    def contexts(self) -> list[PairContext]:
        """Contexts of the chips that the model is asked about."""
        return [chip.context for chip in self.chips if chip.pixels is not None]

    @property
    def deduplicated(self) -> int:
        """Number of chips whose pixels equal those of an earlier chip."""
        return sum(chip.cached is not None and chip.pixels is None for chip in self.chips)


class Engine(Protocol):
    """Reader of chips and asker of a model."""

    @property
    def model(self) -> ModelFacts: ...

    @property
    def prefetch_batches(self) -> int:
        """Batches of chips that are read in advance."""
        ...

    @property
    def small_batches(self) -> int:
        """Number of first batches that are small: workers begin before much was read, and share the chips of
        a small pair."""
        ...

    def load(
        self, reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
    ) -> Generator[LoadedChip, None, None]:
        """Read chips of the pair with this id, and decide which of them have enough data to ask about."""
        ...

    def infer(
        self, batches: Iterator[ChipBatch], options: InferenceOptions, batch_size: int
    ) -> Generator[tuple[ChipBatch, BatchReplies], None, None]:
        """Ask about batches and yield each with its replies, in order."""
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Engine of one process: its model answers batch by batch, or as many in parallel as it prefers."""

    model: ChangeModel

    @property
    def prefetch_batches(self) -> int:
        return 2 if self.model.workers == 1 else 1  # with several workers one more waits in `map_ordered`

    @property
    def small_batches(self) -> int:
        return 0 if self.model.workers == 1 else self.model.workers

    def load(
        self, reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
    ) -> Generator[LoadedChip, None, None]:
        for loaded in load_chips(reader, chips, options, pair):
            yield with_context(loaded, reader, self.model)

    def infer(
        self, batches: Iterator[ChipBatch], options: InferenceOptions, batch_size: int
    ) -> Generator[tuple[ChipBatch, BatchReplies], None, None]:
        size = batch_size

        def work(batch: ChipBatch) -> tuple[ChipBatch, BatchReplies]:
            return batch, run_batches(self.model, options, batch.images, size, batch.contexts)

        with closing(map_ordered(work, batches, self.model.workers, self.model.init_worker)) as results:
            for batch, replies in results:
                size = min(size, replies.batch_size)  # no worker tries again what did not fit in another
                yield batch, replace(replies, batch_size=size)


def with_context(loaded: LoadedChip, reader: PairReader, model: ModelFacts) -> LoadedChip:
    """The chip with the dates and the scale of its pair, for a model that reads them."""
    if not model.reads_context or loaded.status != "answered":
        return loaded
    context = context_of(reader)
    digest = context_digest(loaded.digest, context)
    return replace(loaded, context=context, digest=digest)


def context_of(reader: PairReader) -> PairContext:
    """Dates and pixel size of a pair."""
    before, after = reader.dates
    return PairContext(before or "", after or "", reader.gsd_m)


def load_chips(
    reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
) -> Generator[LoadedChip, None, None]:
    """Read chips of the pair with this id, and decide which of them have enough data to ask about."""
    with closing(read_chips(reader, chips)) as results:
        for chip, pixels in results:
            if isinstance(pixels, RasterError):
                yield LoadedChip(chip, "unreadable", reason=str(pixels), pair=pair)
                continue
            fraction = pixels.valid_fraction
            if 1 - fraction > options.max_nodata or fraction == 0:
                yield LoadedChip(chip, "nodata", fraction, pair=pair, cloud_share=pixels.cloud_share)
            else:
                valid = encode_valid(pixels.valid) if options.masks else b""
                shift = pixels.measure_shift()
                yield LoadedChip(
                    chip,
                    "answered",
                    fraction,
                    pixels,
                    pair=pair,
                    digest=pixel_digest(pixels),
                    valid=valid,
                    shift_px=None if shift is None else round(shift.length, 2),
                    cloud_share=pixels.cloud_share,
                )
