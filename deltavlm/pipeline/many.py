"""Many pairs in one run: opened one after the other, ahead, and asked in batches that reach across them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Protocol

from deltavlm.errors import InputError
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions, open_pair
from deltavlm.model.interface import ChangeModel, ModelFacts
from deltavlm.pipeline.ahead import made_ahead
from deltavlm.pipeline.analyze import (
    AnalyzeOptions,
    Engine,
    Look,
    Notice,
    Progress,
    Results,
    Stages,
    Summary,
    answer_all,
    engine_of,
    scale_warning,
)
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.outcomes import Outcome, PairMark, PairRecord, PairStatus
from deltavlm.pipeline.pairs import Pair
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "Outcome",
    "PairBook",
    "PairMark",
    "PairRecord",
    "PairStatus",
    "Run",
    "analyze_pairs",
    "first_crs",
    "logged_notes",
    "opened_pair",
]

logger = logging.getLogger(__name__)


class PairBook(Results, Protocol):
    """Where the results of many pairs are written down. What is known is asked by another thread."""

    def settled(self, pair: Pair) -> str | PairRecord | None:
        """Of a pair that need not be opened: its record, or why it failed in an earlier run; else None."""
        ...

    def opened(self, pair: Pair, record: PairRecord) -> None:
        """The pair is begun, or gone on with."""
        ...

    def refused(self, pair: Pair, reason: str) -> None:
        """The pair cannot be opened."""
        ...

    def knows(self, pair: Pair, chip: Chip) -> bool:
        """Whether an earlier run has settled this chip."""
        ...


@dataclass
class Run:
    """What a run over many pairs has come to; pairs by their id, in the order of the list."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)  # without pairs that the limit kept out
    summary: Summary = field(default_factory=Summary)

    @property
    def failures(self) -> list[Outcome]:
        """Pairs that failed, wholly or in some chips."""
        return [one for one in self.outcomes.values() if one.record is None or one.failed]


def opened_pair(pair: Pair, read: ReadOptions) -> AbstractContextManager[PairReader]:
    """The pair opened; its own area of interest goes before that of all."""
    aoi = read.aoi if pair.aoi is None else pair.aoi
    return open_pair(RasterPair(pair.before, pair.after, pair.id), replace(read, aoi=aoi))


def first_crs(pairs: Sequence[Pair], read: ReadOptions) -> str | None:
    """WKT of the CRS of the first pair that can be opened; None where it has none, or none can."""
    for pair in pairs:
        with suppress(InputError), opened_pair(pair, replace(read, outlines_only=True)) as reader:
            return reader.geobox.crs.to_wkt() if reader.geobox.crs else None
    return None


def analyze_pairs(
    pairs: Sequence[Pair],
    read: ReadOptions,
    model: ChangeModel | Engine,
    specs: Sequence[QuestionSpec],
    book: PairBook,
    options: AnalyzeOptions,
    watch: Callable[[Run, Progress], None] = lambda run, progress: None,
) -> Run:
    """Ask every question about every chip of the pairs, and write the results into the book.

    A pair that cannot be opened is written down with its reason, and the others go on. `watch` sees the run,
    which goes on.

    Raises: with `on_error="fail"` the InputError or ModelError of the first pair or chip that fails.
    """
    run = Run()
    outcomes = {pair.id: Outcome(pair) for pair in pairs}
    stages, engine = Stages(), engine_of(model)

    def tally(result: ChipResult) -> None:
        outcomes[result.pair].add(result)

    found = _found(pairs, read, engine, book, options)
    with made_ahead(found, engine.ahead * options.batch_size, stages) as ready:
        looks = _looks(ready, outcomes, run, engine.model, book, options)
        run.summary = answer_all(
            looks, engine, specs, book, options, lambda done: watch(run, done), tally, stages
        )
    return run


@dataclass(frozen=True, slots=True)
class _Reached:
    """A pair to go on with: opened, or with the reason why it is not, or neither where the book knows it."""

    pair: Pair
    reader: PairReader | None = None  # closed by the time, for its notes
    record: PairRecord | None = None
    reason: str = ""
    earlier: bool = False  # an earlier run has come to this


def _found(
    pairs: Sequence[Pair], read: ReadOptions, engine: Engine, book: PairBook, options: AnalyzeOptions
) -> Generator[_Reached | Look, None, None]:
    """The pairs, and behind each its chips that are left to ask, up to the limit; one pair is open at a time.

    What is found is not told to anyone here, for it is made ahead.
    """
    seen = 0
    for pair in pairs:
        if options.limit is not None and seen >= options.limit:
            return
        known = book.settled(pair)
        if isinstance(known, PairRecord):
            yield _Reached(pair, record=known, earlier=True)
            seen += known.chips
            continue
        if known is not None:
            yield _Reached(pair, reason=known, earlier=True)
            continue
        with ExitStack() as stack:
            try:
                reader = stack.enter_context(opened_pair(pair, read))
                grid = reader.chips(options.chip_px, options.overlap_px)
                record = PairRecord.of(pair, reader, grid)
            except InputError as error:
                if options.on_error == "fail":
                    raise
                yield _Reached(pair, reason=str(error))
                continue
            yield _Reached(pair, reader, record)
            left = len(grid) if options.limit is None else min(len(grid), options.limit - seen)
            chips = islice(grid, left)
            seen += left
            yield from engine.looks(
                reader, (chip for chip in chips if not book.knows(pair, chip)), options, pair.id
            )


def _looks(
    found: Iterable[_Reached | Look],
    outcomes: Mapping[str, Outcome],
    run: Run,
    model: ModelFacts,
    book: PairBook,
    options: AnalyzeOptions,
) -> Iterator[Look | Notice]:
    """The chips, and before those of a pair what is to be done about it."""
    told = set[str]()

    def begin(one: _Reached) -> None:
        pair, outcome = one.pair, outcomes[one.pair.id]
        run.outcomes[pair.id] = outcome
        outcome.record, outcome.reason = one.record, one.reason or outcome.reason
        if one.reason:
            when = " in the run before" if one.earlier else ""
            logger.warning("pair %s failed%s: %s", pair.id, when, one.reason, extra={"pair": pair.id})
            if not one.earlier:
                book.refused(pair, one.reason)
        elif one.reader is not None and one.record is not None:
            logged_notes(pair, one.reader, model, options, told)
            book.opened(pair, one.record)

    for one in found:
        yield one if isinstance(one, Look) else partial(begin, one)


def logged_notes(
    pair: Pair, reader: PairReader, model: ModelFacts, options: AnalyzeOptions, told: set[str]
) -> None:
    """Log what was found of a pair; a warning once only, for many pairs have the same, and one of scale too,
    though its number differs."""
    scale = scale_warning(reader.gsd_m, model.training_gsd_m, options.chip_px / model.chip_px)
    found = [(note, note, note in reader.warnings) for note in reader.notes]
    for kind, note, is_warning in [*found, *([("scale", scale, True)] if scale else [])]:
        if is_warning and kind not in told:
            told.add(kind)
            logger.warning("%s: %s (not told again of other pairs)", pair.id, note, extra={"pair": pair.id})
        else:
            logger.info("%s: %s", pair.id, note, extra={"pair": pair.id})
