"""Who reads chips and puts them to a model: one process, or something with the same answers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from deltavlm.errors import ModelError, RasterError
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader
from deltavlm.geo.strips import read_chips
from deltavlm.model.interface import ChangeModel, ModelFacts
from deltavlm.pipeline.batches import Replies, ask_all
from deltavlm.pipeline.lanes import side_by_side
from deltavlm.pipeline.layers import Status
from deltavlm.pipeline.masks import packed_holes
from deltavlm.pipeline.repeats import Said, picture_of
from deltavlm.pipeline.summary import Stages
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "AnalyzeOptions",
    "Answered",
    "Engine",
    "Group",
    "Here",
    "Look",
    "Notice",
    "engine_of",
    "looks_at",
]


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
    masks: bool = False  # keep what the model's mask head says of each chip


@dataclass(frozen=True, slots=True)
class Look:
    """A chip after reading; pixels only if it will be asked, a picture also where it repeats one."""

    chip: Chip
    status: Status
    valid_fraction: float | None = None
    pixels: Any = None  # what the engine asks about: ChipPixels, or where they lie
    reason: str = ""
    pair: str = ""  # of a run over many pairs, the id of the chip's
    picture: str = ""
    said: Said | None = None  # what was said of the picture, or will be
    holes: bytes = b""  # where the chip has no data, if masks are kept


Notice = Callable[[], None]  # what is to be told or written before the chips behind it are


@dataclass(slots=True)
class Group:
    """Chips that are asked and written together, in order."""

    looks: list[Look] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    @property
    def asked(self) -> list[Any]:
        """The pixels of those that are asked."""
        return [look.pixels for look in self.looks if look.pixels is not None]

    @property
    def repeated(self) -> int:
        """How many show a picture that came before."""
        return sum(look.said is not None and look.pixels is None for look in self.looks)


Answered = tuple[Group, list[Replies | ModelError], int]  # of each that was asked; and what fits at once


@runtime_checkable
class Engine(Protocol):
    """Who reads chips and puts them to a model."""

    @property
    def model(self) -> ModelFacts: ...

    @property
    def ahead(self) -> int:
        """Batches that are read before they are wanted."""
        ...

    def looks(
        self, reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
    ) -> Generator[Look, None, None]:
        """Read chips of the pair, and see whether there is enough of each to ask about."""
        ...

    def replies(
        self,
        groups: Iterator[Group],
        specs: Sequence[QuestionSpec],
        options: AnalyzeOptions,
        stages: Stages,
    ) -> Generator[Answered, None, None]:
        """The groups in their order, and what was said to each."""
        ...


@dataclass(frozen=True)
class Here:
    """The engine of one process: the model that it holds is asked group by group, or side by side in as many
    lanes as it likes best."""

    model: ChangeModel

    @property
    def ahead(self) -> int:
        return 2 if self.model.workers == 1 else 1  # then one more waits before its lane

    def looks(
        self, reader: PairReader, chips: Iterable[Chip], options: AnalyzeOptions, pair: str = ""
    ) -> Generator[Look, None, None]:
        return looks_at(reader, chips, options, pair)

    def replies(
        self,
        groups: Iterator[Group],
        specs: Sequence[QuestionSpec],
        options: AnalyzeOptions,
        stages: Stages,
    ) -> Generator[Answered, None, None]:
        size = options.batch_size

        def ask(group: Group) -> tuple[Group, list[Replies | ModelError], int, Stages]:
            spent = Stages()
            said, fits = ask_all(self.model, specs, group.asked, size, options.cascade, spent, options.masks)
            return group, said, fits, spent

        with closing(side_by_side(ask, groups, self.model.workers, self.model.init_worker)) as done:
            for group, said, fits, spent in done:
                size = min(size, fits)  # what does not fit in one lane is not tried in another
                stages.include(spent)
                yield group, said, size


def engine_of(asked: ChangeModel | Engine) -> Engine:
    """The engine itself, or that of one process for a model."""
    return asked if isinstance(asked, Engine) else Here(asked)


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
                holes = packed_holes(pixels.valid) if options.masks else b""
                yield Look(
                    chip, "answered", valid, pixels, pair=pair, picture=picture_of(pixels), holes=holes
                )
