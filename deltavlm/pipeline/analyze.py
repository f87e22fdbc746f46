"""The tool itself: cut the pair into chips, ask the model about each, write down what it says."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np

from deltavlm.errors import ModelError, ModelOutOfMemory, RasterError
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import ChipPixels, PairReader
from deltavlm.model.interface import ChangeModel, Reply
from deltavlm.pipeline.answers import question_of, read_answer, unchanged
from deltavlm.pipeline.layers import ChipResult, Status
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "AnalyzeOptions",
    "Book",
    "ChangedChip",
    "Progress",
    "Summary",
    "analyze",
    "analyzed",
    "scale_warning",
]

logger = logging.getLogger(__name__)

FAR_SCALE = 2.02  # a pixel this many times larger or smaller than those of the training is worth a warning
_MOST_CHANGED = 10
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, after each group of chips."""

    done: int
    changed: int
    failed: int
    chips_per_s: float


@dataclass(frozen=True, slots=True)
class ChangedChip:
    """A chip that the model calls changed, and the middle of its footprint in the raster's CRS."""

    score: float
    chip_id: str
    x: float
    y: float
    caption: str


@dataclass(slots=True)
class Summary:
    """What a run has come to; `first_failure` says why the first failed chip failed."""

    statuses: Counter[Status] = field(default_factory=Counter)
    earlier: int = 0  # of the chips, those that an earlier run had answered
    changed: int = 0
    unread: int = 0  # chips whose answer is neither yes nor no
    seconds: float = 0.0
    batch_size: int = 0
    first_failure: str = ""
    most_changed: list[ChangedChip] = field(default_factory=list)  # largest score first

    @property
    def chips(self) -> int:
        return self.statuses.total()

    @property
    def failed(self) -> int:
        return self.statuses["unreadable"] + self.statuses["error"]

    @property
    def chips_per_s(self) -> float:
        return (self.chips - self.earlier) / self.seconds if self.seconds > 0 else 0.0


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


class Book(Protocol):
    """Where results are written down."""

    def earlier(self) -> Iterator[ChipResult]:
        """Those of an earlier run, in the order of the grid."""
        ...

    def known(self, chip: Chip) -> bool:
        """Whether an earlier run has settled this chip."""
        ...

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        """A group of chips, asked with this batch size."""
        ...


def analyze(
    reader: PairReader,
    model: ChangeModel,
    specs: Sequence[QuestionSpec],
    book: Book,
    options: AnalyzeOptions,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Ask every question about every chip that the book does not know, and write the results into it.

    Raises: with `on_error="fail"` the RasterError or ModelError of the first chip that fails.
    """
    started = time.monotonic()
    summary = Summary()
    for result in book.earlier():
        _tally(summary, result)
    summary.earlier = summary.chips
    chips = islice(reader.grid(options.chip_px, options.overlap_px), options.limit)
    left = (chip for chip in chips if not book.known(chip))
    for group in analyzed(reader, model, specs, options, summary, left):
        book.add(group, summary.batch_size)
        for result in group:
            _tally(summary, result)
        summary.seconds = time.monotonic() - started
        watch(Progress(summary.chips, summary.changed, summary.failed, summary.chips_per_s))
    summary.seconds = time.monotonic() - started
    return summary


def analyzed(
    reader: PairReader,
    model: ChangeModel,
    specs: Sequence[QuestionSpec],
    options: AnalyzeOptions,
    summary: Summary,
    chips: Iterable[Chip],
) -> Iterator[list[ChipResult]]:
    """Results in the order of the chips, a group at a time; `summary.batch_size` follows the halving."""
    summary.batch_size = options.batch_size
    for group in _groups(reader, chips, options):
        asked = [look.pixels for look in group if look.pixels is not None]
        replies = iter(_ask(model, specs, asked, summary, options.cascade))
        results = []
        for look in group:
            result = ChipResult(look.chip, look.status, look.valid_fraction, reason=look.reason)
            if look.pixels is not None:
                result = _answered(look, specs, next(replies))
            if result.status in ("unreadable", "error"):
                logger.info("%s: %s: %s", result.chip.chip_id, result.status, result.reason)
                if options.on_error == "fail":
                    raise (
                        RasterError(result.reason)
                        if result.status == "unreadable"
                        else ModelError(result.reason)
                    )
            results.append(result)
        yield results


_Replies = list[Reply | None]  # in the order of the questions; None for one that was not asked


@dataclass(frozen=True, slots=True)
class _Look:
    """A chip after reading; pixels only if it will be asked."""

    chip: Chip
    status: Status
    valid_fraction: float | None = None
    pixels: ChipPixels | None = None
    reason: str = ""


def _look(reader: PairReader, chip: Chip, options: AnalyzeOptions) -> _Look:
    try:
        pixels = reader.read(chip)
    except RasterError as error:
        return _Look(chip, "unreadable", reason=str(error))
    valid = pixels.valid_fraction
    if 1 - valid > options.max_nodata or valid == 0:
        return _Look(chip, "nodata", valid)
    return _Look(chip, "answered", valid, pixels)


def _groups(reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions) -> Iterator[list[_Look]]:
    """Chips read in order, in groups that hold a batch to ask."""
    group: list[_Look] = []
    to_ask = 0
    for chip in chips:
        look = _look(reader, chip, options)
        group.append(look)
        to_ask += look.pixels is not None
        if to_ask == options.batch_size or len(group) == _LONGEST_GROUP:
            yield group
            group, to_ask = [], 0
    if group:
        yield group


def _ask(
    model: ChangeModel,
    specs: Sequence[QuestionSpec],
    asked: Sequence[ChipPixels],
    summary: Summary,
    cascade: bool,
) -> list[_Replies | ModelError]:
    """Replies for each chip, or why there are none.

    Where a batch does not fit into memory it is halved, and stays so; where it fails otherwise, each of its
    chips is asked alone, so that one bad chip takes no other with it.
    """
    replies: list[_Replies | ModelError] = []
    alone_until = 0
    while len(replies) < len(asked):
        size = 1 if len(replies) < alone_until else summary.batch_size
        batch = asked[len(replies) : len(replies) + size]
        before = np.stack([pixels.before for pixels in batch])
        after = np.stack([pixels.after for pixels in batch])
        try:
            replies += _replies(model, specs, model.encode(before, after), len(batch), cascade)
        except ModelError as error:
            if len(batch) == 1:
                replies.append(error)
            elif isinstance(error, ModelOutOfMemory):
                summary.batch_size = len(batch) // 2
                logger.info(
                    "%d chips do not fit into memory at once; going on with %d", len(batch), len(batch) // 2
                )
            else:
                alone_until = len(replies) + len(batch)
    return replies


def _replies(
    model: ChangeModel, specs: Sequence[QuestionSpec], encoded: Any, count: int, cascade: bool
) -> list[_Replies]:
    """Replies for each of `count` encoded pairs, in the order of the questions.

    With `cascade` the yes/no question comes first, and only pairs that say yes are asked the rest; an
    answer that cannot be read counts as yes.
    """
    questions = [question_of(spec) for spec in specs]
    first = next((index for index, spec in enumerate(specs) if spec.task == "change"), None)
    if not cascade or first is None:
        return [list(row) for row in model.answer(encoded, questions)]
    rest = [index for index in range(len(specs)) if index != first]
    replies: list[_Replies] = []
    for (said,) in model.answer(encoded, [questions[first]]):
        replies.append([said if index == first else None for index in range(len(specs))])
    changed = [
        index
        for index, row in enumerate(replies)
        if read_answer(specs[first], row[first]).value is not False  # type: ignore[arg-type]
    ]
    if changed and rest:
        more = model.answer(encoded, [questions[index] for index in rest], changed)
        for pair, row in zip(changed, more, strict=True):
            for index, reply in zip(rest, row, strict=True):
                replies[pair][index] = reply
    return replies


def _answered(look: _Look, specs: Sequence[QuestionSpec], replies: _Replies | ModelError) -> ChipResult:
    if isinstance(replies, ModelError):
        return ChipResult(look.chip, "error", look.valid_fraction, reason=str(replies))
    answers = {
        spec.name: answer
        for spec, reply in zip(specs, replies, strict=True)
        if (answer := unchanged(spec) if reply is None else read_answer(spec, reply)) is not None
    }
    status: Status = "cascaded" if None in replies else "answered"
    return ChipResult(look.chip, status, look.valid_fraction, answers)


def _tally(summary: Summary, result: ChipResult) -> None:
    summary.statuses[result.status] += 1
    if result.status in ("unreadable", "error") and not summary.first_failure:
        summary.first_failure = result.reason
    change, caption = result.of_task("change"), result.of_task("caption")
    summary.unread += change is not None and change.value is None
    if change is None or change.value is not True:
        return
    summary.changed += 1
    middle = result.chip.footprint.centroid
    said = caption.text if caption else ""
    score = change.score if change.score is not None else 0.0
    found = ChangedChip(score, result.chip.chip_id, middle.x, middle.y, said)
    summary.most_changed = sorted([*summary.most_changed, found], key=lambda chip: -chip.score)[
        :_MOST_CHANGED
    ]
