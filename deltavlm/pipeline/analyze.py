"""The tool itself: cut the pair into chips, ask the model about each, write down what it says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Protocol

from deltavlm.errors import ModelError, RasterError
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader
from deltavlm.model.interface import ChangeModel
from deltavlm.pipeline.ahead import made_ahead
from deltavlm.pipeline.answers import read_answer, unchanged
from deltavlm.pipeline.batches import Replies
from deltavlm.pipeline.engine import (
    AnalyzeOptions,
    Engine,
    Group,
    Here,
    Look,
    Notice,
    engine_of,
    looks_at,
)
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.repeats import Repeats
from deltavlm.pipeline.sidecar import Ticket
from deltavlm.pipeline.summary import ChangedChip, Progress, Stages, Summary
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "AnalyzeOptions",
    "Book",
    "ChangedChip",
    "Engine",
    "Group",
    "Here",
    "Look",
    "Notice",
    "Progress",
    "Stages",
    "Summary",
    "analyze",
    "answer_all",
    "engine_of",
    "looks_at",
    "scale_warning",
]

logger = logging.getLogger(__name__)

MAX_GSD_RATIO = (
    2.02  # a pixel this many times larger or smaller than those of the training is worth a warning
)
_LONGEST_GROUP = 256  # chips written together, where most of them are nodata


def scale_warning(gsd_m: float | None, training_gsd_m: float, shrink: float = 1.0) -> str | None:
    """What to tell the user where pixels are far from the size that the model learned on, metres.

    `shrink` is how many times larger than the model's own chips are: it sees them made smaller.
    """
    if gsd_m is None:
        return f"the size of a pixel is not known; the model learned on {training_gsd_m:g} m"
    seen_m = gsd_m * shrink
    if training_gsd_m / MAX_GSD_RATIO <= seen_m <= training_gsd_m * MAX_GSD_RATIO:
        return None
    what = f"a pixel is {seen_m:.3g} m" if shrink == 1 else f"chips of this size show {seen_m:.3g} m a pixel"
    text = f"{what}, the model learned on {training_gsd_m:g} m: its answers are less sure here"
    if seen_m > training_gsd_m:
        return text
    return (
        f"{text}; {f'--gsd {training_gsd_m:g} resamples both images' if shrink == 1 else 'cut larger ones'}"
    )


class Results(Protocol):
    """What `answer_all` needs of a place where results are written down."""

    def earlier(self) -> Iterator[ChipResult]:
        """Those of an earlier run, in the order of the grid."""
        ...

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        """A group of chips, asked with this batch size."""
        ...


class Book(Results, Protocol):
    """Where the results of a pair are written down."""

    def known(self, chip: Chip) -> bool:
        """Whether an earlier run has settled this chip; asked while results are added, by another thread."""
        ...


def analyze(
    reader: PairReader,
    model: ChangeModel | Engine,
    specs: Sequence[QuestionSpec],
    book: Book,
    options: AnalyzeOptions,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Ask every question about every chip that the book does not know, and write the results into it.

    Chips are read by other threads, some batches ahead; until this returns, the reader is theirs.

    Raises: with `on_error="fail"` the RasterError or ModelError of the first chip that fails.
    """
    chips = islice(reader.chips(options.chip_px, options.overlap_px), options.limit)
    stages, engine = Stages(), engine_of(model)
    looks = engine.looks(reader, (chip for chip in chips if not book.known(chip)), options)
    with made_ahead(looks, engine.ahead * options.batch_size, stages) as ready:
        return answer_all(ready, engine, specs, book, options, watch, stages=stages)


def answer_all(
    looks: Iterable[Look | Notice],
    engine: Engine,
    specs: Sequence[QuestionSpec],
    book: Results,
    options: AnalyzeOptions,
    watch: Callable[[Progress], None] = lambda progress: None,
    tally: Callable[[ChipResult], None] = lambda result: None,
    stages: Stages | None = None,
) -> Summary:
    """Ask every question about the chips, of whichever pair they are, and write the results into the book.

    `tally` sees each result once, those of an earlier run first. A notice is called when all chips before it
    are written, up to the group that the next one is in. `stages` has the seconds of the reading.
    """
    started = time.monotonic()
    summary = Summary(batch_size=options.batch_size, stages=stages or Stages())
    repeats = Repeats()
    for result in book.earlier():
        if result.picture:
            said, is_new = repeats.of(result.picture)
            said.result = result if is_new else said.result
        summary.add(result)
        tally(result)
    summary.earlier = summary.chips
    groups = _groups(looks, options.batch_size, repeats)
    with closing(engine.replies(groups, specs, options, summary.stages)) as answered:
        for group, replies, summary.batch_size in answered:
            for notice in group.notices:
                notice()
            results = _results(group.looks, replies, specs, options)
            if results:
                with summary.stages.timed("write"):
                    book.add(results, summary.batch_size)
            for result in results:
                summary.add(result)
                tally(result)
            summary.repeated += group.repeated
            summary.seconds = time.monotonic() - started
            watch(summary.progress)
    summary.seconds = time.monotonic() - started
    return summary


def _groups(looks: Iterable[Look | Notice], batch_size: int, repeats: Repeats) -> Iterator[Group]:
    """Chips in order, in groups that hold a batch to ask; of pictures that come again the first is asked."""
    group = Group()
    to_ask = 0
    for look in looks:
        if not isinstance(look, Look):
            group.notices.append(look)
            if not group.looks:  # nothing to wait for
                yield group
                group = Group()
            continue
        if look.picture:
            said, is_new = repeats.of(look.picture)
            look = replace(look, said=said, pixels=look.pixels if is_new else None)
        group.looks.append(look)
        to_ask += look.pixels is not None
        if to_ask == batch_size or len(group.looks) == _LONGEST_GROUP:
            yield group
            group, to_ask = Group(), 0
    if group.looks or group.notices:
        yield group


def _results(
    looks: Sequence[Look],
    replies: Sequence[Replies | ModelError],
    specs: Sequence[QuestionSpec],
    options: AnalyzeOptions,
) -> list[ChipResult]:
    """Results in the order of the chips."""
    next_reply = iter(replies)
    results = []
    for look in looks:
        result = ChipResult(look.chip, look.status, look.valid_fraction, reason=look.reason, pair=look.pair)
        if look.pixels is not None:
            result = _answered(look, specs, next(next_reply))
            if look.said is not None:
                look.said.result = result
        elif look.said is not None:
            result = look.said.again(look.chip, look.valid_fraction, look.pair, _ticket(look.holes))
        if result.status in ("unreadable", "error"):
            name = f"{result.pair} {result.chip.chip_id}".strip()
            known = {"pair": result.pair or None, "chip": result.chip.chip_id, "status": result.status}
            logger.info("%s: %s: %s", name, result.status, result.reason, extra=known)
            if options.on_error == "fail":
                raise (
                    RasterError(result.reason) if result.status == "unreadable" else ModelError(result.reason)
                )
        results.append(result)
    return results


def _answered(look: Look, specs: Sequence[QuestionSpec], replies: Replies | ModelError) -> ChipResult:
    result = ChipResult(look.chip, "error", look.valid_fraction, pair=look.pair, picture=look.picture)
    if isinstance(replies, ModelError):
        return replace(result, reason=str(replies))
    answers = {
        spec.name: answer
        for spec, reply in zip(specs, replies.said, strict=True)
        if (answer := unchanged(spec) if reply is None else read_answer(spec, reply)) is not None
    }
    return replace(
        result,
        status="cascaded" if None in replies.said else "answered",
        answers=answers,
        mask=_ticket(replies.mask),
        holes=_ticket(look.holes),
    )


def _ticket(data: bytes) -> Ticket | None:
    return Ticket(data) if data else None
