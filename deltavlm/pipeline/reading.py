"""Chips of the pairs of a job in order, each pair opened when its first chip is needed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np

from deltavlm.errors import InputError
from deltavlm.geo.pair import ChipPixels, PairReader, RasterPair, ReadOptions, open_pair
from deltavlm.model.interface import ModelFacts
from deltavlm.pipeline.engine import Callback, Engine, LoadedChip
from deltavlm.pipeline.evidence import scales_of
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.pair_record import PairRecord
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.result_store import ResultStore
from deltavlm.pipeline.scale import Scale

__all__ = [
    "PairChange",
    "PairStart",
    "first_crs",
    "log_notes",
    "open_listed_pair",
    "read_chips_of_pairs",
    "sample_chips",
    "with_callbacks",
]

logger = logging.getLogger(__name__)

SAMPLE_VALID = 0.98  # share of a sampled chip that both dates must have data for
SAMPLE_TRIES = 4  # chips that are read for each one that is wanted, at most

NUMBER_OR_PATH = re.compile(r"\S*[\d/\\]\S*")

_CHANGED = (
    "{file}: was written over or replaced while it was read, so answers about it may be of two images; "
    "analyze it again when it is complete"
)


def open_listed_pair(pair: Pair, read: ReadOptions) -> AbstractContextManager[PairReader]:
    """Open a pair; its own area of interest and cloud masks replace those of `read`."""
    rasters = RasterPair(pair.before, pair.after, pair.id, pair.before_date, pair.after_date)
    read = replace(
        read,
        aoi=read.aoi if pair.aoi is None else pair.aoi,
        before_cloud_mask=pair.before_cloud_mask or read.before_cloud_mask,
        after_cloud_mask=pair.after_cloud_mask or read.after_cloud_mask,
    )
    return open_pair(rasters, read)


def first_crs(pairs: Sequence[Pair], read: ReadOptions) -> str | None:
    """WKT of the CRS of the first pair that can be opened; None where it has none, or none can."""
    for pair in pairs:
        with suppress(InputError), open_listed_pair(pair, replace(read, outlines_only=True)) as reader:
            return reader.geobox.crs.to_wkt() if reader.geobox.crs else None
    return None


def log_notes(pair: Pair, reader: PairReader, model: ModelFacts, job: AnalyzeJob, warned: set[str]) -> None:
    """Log the notes of an opened pair, and a warning where its scale is far from that of the training.

    Of a kind of warning only the first pair is logged at warning level; `warned` collects these kinds, which
    are texts without numbers and paths.
    """
    scales = scales_of(reader.gsd_m, model, job.options.chip_px)
    warnings = [(each.kind, each.warning(limited=not job.options.any_scale), True) for each in scales]
    if not pair.id:  # a single pair: its other notes were logged when it was opened
        for _, warning, _ in warnings:
            if warning:
                logger.warning("%s", warning)
        return
    notes = [(NUMBER_OR_PATH.sub("", note), note, note in reader.warnings) for note in reader.notes]
    for kind, note, is_warning in [*notes, *warnings]:
        if note is None:
            continue
        if is_warning and kind not in warned:
            warned.add(kind)
            logger.warning("%s: %s (not repeated for other pairs)", pair.id, note, extra={"pair": pair.id})
        else:
            logger.info("%s: %s", pair.id, note, extra={"pair": pair.id})


@dataclass(frozen=True, slots=True)
class PairStart:
    """Start of a pair in the stream of chips: opened, failed with a reason, or complete in the store."""

    pair: Pair
    reader: PairReader | None = None  # closed by the time it is received; for its notes
    record: PairRecord | None = None
    reason: str = ""
    is_earlier: bool = False  # from an earlier run


@dataclass(frozen=True, slots=True)
class PairChange:
    """End of a pair in the stream of chips, one of whose files is another than when it was opened."""

    pair: Pair
    reason: str


def read_chips_of_pairs(
    job: AnalyzeJob, engine: Engine, store: ResultStore, opened: PairReader | None = None
) -> Generator[PairStart | PairChange | LoadedChip, None, None]:
    """Yield the start of each pair and then its chips that are still to be asked, up to the limit.

    A pair whose files have changed when its chips are read ends with a `PairChange`.

    One pair is open at a time. It runs in the prefetch thread and has no effect on the store. `opened` is the
    reader of the only pair, if the caller has opened it.

    Raises: InputError of a pair that cannot be opened, if it is the only one or with `on_error="fail"`.
    """
    options, count = job.options, 0
    for pair in job.pairs.pairs:
        if options.limit is not None and count >= options.limit:
            return
        earlier = store.record_of(pair)
        if isinstance(earlier, PairRecord):
            yield PairStart(pair, record=earlier, is_earlier=True)
            count += earlier.chips
            continue
        if earlier is not None:
            yield PairStart(pair, reason=earlier, is_earlier=True)
            continue
        with ExitStack() as stack:
            try:
                reader = opened or stack.enter_context(open_listed_pair(pair, job.read))
                grid = reader.chips(*options.grid)
                record = PairRecord.of(pair, reader, grid)
            except InputError as error:
                if options.on_error == "fail" or job.one_pair_per_output:
                    raise
                yield PairStart(pair, reason=str(error))
                continue
            yield PairStart(pair, reader, record)
            remaining = len(grid) if options.limit is None else min(len(grid), options.limit - count)
            chips = islice(grid, remaining)
            count += remaining
            pending = (chip for chip in chips if not store.is_done(pair, chip))
            far = Scale.of(record.gsd_m, engine.model, options.chip_px).is_far and not options.any_scale
            yield from _marked(engine.load(reader, pending, options, pair.id), far_scale=far)
            if (file := reader.changed_file()) is not None:
                yield PairChange(pair, _CHANGED.format(file=file))


def _marked(chips: Generator[LoadedChip, None, None], *, far_scale: bool) -> Iterator[LoadedChip]:
    """The chips with this mark, and with digests of their own if it is set: their answers are fewer."""
    with closing(chips):
        if not far_scale:
            yield from chips
        for chip in chips:
            yield replace(chip, far_scale=True, digest=chip.digest and f"{chip.digest}-far")


def sample_chips(
    pairs: Sequence[Pair], read: ReadOptions, model: ModelFacts, limit: int, seed: int
) -> Iterator[tuple[Pair, ChipPixels, float | None]]:
    """Yield up to `limit` random full chips of the model's size with the pixel size in metres, None if it is
    not known: about as many of each pair, the pairs in random order. A pair that cannot be read is left out
    with a warning.

    Raises: InputError for a pair whose pixel size is far from that of the model's training.
    """
    rng, count, warned = np.random.default_rng(seed), 0, set[str]()
    for index, pair in enumerate(pairs[number] for number in rng.permutation(len(pairs))):
        if count == limit:
            return
        name = pair.id or pair.after
        try:
            with open_listed_pair(pair, read) as reader:
                gsd_m = reader.gsd_m
                chips = _random_chips(reader, model.chip_px, -(-(limit - count) // (len(pairs) - index)), rng)
        except InputError as error:
            logger.warning("%s: left out: %s", name, error)
            continue
        scale = Scale.of(gsd_m, model, model.chip_px)
        warning = scale.warning()
        if scale.is_far:
            raise InputError(f"{name}: {warning}; leave the pair out")
        if warning is not None and scale.kind not in warned:
            warned.add(scale.kind)
            logger.warning("%s: %s (not repeated for other pairs)", name, warning)
        count += len(chips)
        yield from ((pair, chip, gsd_m) for chip in chips)


def _random_chips(reader: PairReader, chip_px: int, count: int, rng: np.random.Generator) -> list[ChipPixels]:
    """Up to `count` random chips of a pair that are full, and have data at both dates nearly everywhere."""
    grid = reader.chips(chip_px)
    drawn = set(rng.permutation(len(grid))[: SAMPLE_TRIES * count].tolist())
    chips = [chip for index, chip in enumerate(grid) if index in drawn]
    pixels = (reader.read(chips[index]) for index in rng.permutation(len(chips)))
    return list(islice((chip for chip in pixels if chip.valid.mean() >= SAMPLE_VALID), count))


def with_callbacks(
    items: Iterable[PairStart | PairChange | LoadedChip],
    begin: Callable[[PairStart], None],
    end: Callable[[PairChange], None],
) -> Iterator[LoadedChip | Callback]:
    """Replace the start of each pair, and the end of one that changed, by a callback for the main thread,
    which calls `begin` or `end` with it."""
    for item in items:
        if isinstance(item, LoadedChip):
            yield item
        else:
            yield partial(begin, item) if isinstance(item, PairStart) else partial(end, item)
