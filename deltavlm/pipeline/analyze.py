"""The tool itself: cut the pair into chips, ask the model about each, write down what it says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Protocol

from deltavlm.errors import ModelError, RasterError
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import ChipPixels, PairReader
from deltavlm.geo.strips import read_chips
from deltavlm.model.interface import ChangeModel
from deltavlm.pipeline.ahead import made_ahead
from deltavlm.pipeline.answers import read_answer, unchanged
from deltavlm.pipeline.batches import Replies, ask_all
from deltavlm.pipeline.layers import ChipResult, Status
from deltavlm.pipeline.repeats import Repeats, picture_of
from deltavlm.pipeline.summary import ChangedChip, Progress, Stages, Summary
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "AnalyzeOptions",
    "Book",
    "ChangedChip",
    "Look",
    "Progress",
    "Stages",
    "Summary",
    "analyze",
    "answer_all",
    "looks_at",
    "scale_warning",
]

logger = logging.getLogger(__name__)

FAR_SCALE = 2.02  # a pixel this many times larger or smaller than those of the training is worth a warning
_LONGEST_GROUP = 256  # chips written together, where most of them are nodata


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeOptions:
    """How the raster is cut and what happens to chips that fail."""

    chip_px: int = 256
    overlap_px: int = 0
    max_nodata: float = 0.5  # a chip with a larger invalid share is not asked
    batch_size: int = 16  # chips in one call of the model; halved where they do not fit
    limit: int | None = None  # only the first chips of the grid
    on_error: Literal["skip", "fail"] = "skip"
    cascade: bool = False  # ask whether it changed, and the rest only of chips that say yes


def scale_warning(gsd_m: float | None, training_gsd_m: float, shrink: float = 1.0) -> str | None:
    """What to tell the user where pixels are far from the size that the model learned on, metres.

    `shrink` is how many times larger than the model's own chips are: it sees them made smaller.
    """
    if gsd_m is None:
        return f"the size of a pixel is not known; the model learned on {training_gsd_m:g} m"
    seen_m = gsd_m * shrink
    if training_gsd_m / FAR_SCALE <= seen_m <= training_gsd_m * FAR_SCALE:
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


@dataclass(frozen=True, slots=True)
class Look:
    """A chip after reading; pixels only if it will be asked, a picture also where it repeats one."""

    chip: Chip
    status: Status
    valid_fraction: float | None = None
    pixels: ChipPixels | None = None
    reason: str = ""
    pair: str = ""  # of a run over many pairs, the id of the chip's
    picture: str = ""


def analyze(
    reader: PairReader,
    model: ChangeModel,
    specs: Sequence[QuestionSpec],
    book: Book,
    options: AnalyzeOptions,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Ask every question about every chip that the book does not know, and write the results into it.

    Chips are read by other threads, at most two batches ahead; until this returns, the reader is theirs.

    Raises: with `on_error="fail"` the RasterError or ModelError of the first chip that fails.
    """
    chips = islice(reader.grid(options.chip_px, options.overlap_px), options.limit)
    stages = Stages()
    looks = looks_at(reader, (chip for chip in chips if not book.known(chip)), options)
    with made_ahead(looks, 2 * options.batch_size, stages) as ready:
        return answer_all(ready, model, specs, book, options, watch, stages=stages)


def answer_all(
    looks: Iterable[Look],
    model: ChangeModel,
    specs: Sequence[QuestionSpec],
    book: Results,
    options: AnalyzeOptions,
    watch: Callable[[Progress], None] = lambda progress: None,
    tally: Callable[[ChipResult], None] = lambda result: None,
    stages: Stages | None = None,
) -> Summary:
    """Ask every question about the chips, of whichever pair they are, and write the results into the book.

    `tally` sees each result once, those of an earlier run first. `stages` has the seconds of the reading.
    """
    started = time.monotonic()
    summary = Summary(batch_size=options.batch_size, stages=stages or Stages())
    repeats = Repeats()
    for result in book.earlier():
        if result.picture and repeats.is_new(result.picture):
            repeats.answered(result)
        summary.add(result)
        tally(result)
    summary.earlier = summary.chips
    for group in _groups(looks, options.batch_size, repeats):
        results = _answered_group(group, model, specs, options, summary, repeats)
        with summary.stages.timed("write"):
            book.add(results, summary.batch_size)
        for result in results:
            summary.add(result)
            tally(result)
        summary.seconds = time.monotonic() - started
        watch(summary.progress)
    summary.seconds = time.monotonic() - started
    return summary


def looks_at(
    reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
) -> Generator[Look, None, None]:
    """Read chips of the pair, and see whether there is enough of each to ask about."""
    with closing(read_chips(reader, chips)) as found:
        for chip, pixels in found:
            if isinstance(pixels, RasterError):
                yield Look(chip, "unreadable", reason=str(pixels), pair=pair)
                continue
            valid = pixels.valid_fraction
            if 1 - valid > options.max_nodata or valid == 0:
                yield Look(chip, "nodata", valid, pair=pair)
            else:
                yield Look(chip, "answered", valid, pixels, pair=pair, picture=picture_of(pixels))


def _groups(looks: Iterable[Look], batch_size: int, repeats: Repeats) -> Iterator[list[Look]]:
    """Chips in order, in groups that hold a batch to ask; of pictures that come again the first is asked."""
    group: list[Look] = []
    to_ask = 0
    for look in looks:
        if look.picture and not repeats.is_new(look.picture):
            look = replace(look, pixels=None)
        group.append(look)
        to_ask += look.pixels is not None
        if to_ask == batch_size or len(group) == _LONGEST_GROUP:
            yield group
            group, to_ask = [], 0
    if group:
        yield group


def _answered_group(
    group: Sequence[Look],
    model: ChangeModel,
    specs: Sequence[QuestionSpec],
    options: AnalyzeOptions,
    summary: Summary,
    repeats: Repeats,
) -> list[ChipResult]:
    """Results in the order of the chips; `summary.batch_size` follows the halving."""
    asked = [look.pixels for look in group if look.pixels is not None]
    replies, summary.batch_size = ask_all(
        model, specs, asked, summary.batch_size, options.cascade, summary.stages
    )
    next_reply = iter(replies)
    results = []
    for look in group:
        result = ChipResult(look.chip, look.status, look.valid_fraction, reason=look.reason, pair=look.pair)
        if look.pixels is not None:
            result = _answered(look, specs, next(next_reply))
            repeats.answered(result)
        elif look.picture:
            result = repeats.again(look.picture, look.chip, look.valid_fraction, look.pair)
            summary.repeated += 1
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
        for spec, reply in zip(specs, replies, strict=True)
        if (answer := unchanged(spec) if reply is None else read_answer(spec, reply)) is not None
    }
    return replace(result, status="cascaded" if None in replies else "answered", answers=answers)
