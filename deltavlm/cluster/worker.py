"""What runs on the workers: chips are read, and put to the model. Nothing here knows Ray."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import DeltaVLMError, InputError
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions, open_pair
from deltavlm.model.config import RuntimeOptions
from deltavlm.model.interface import ChangeModel, Labelled
from deltavlm.pipeline.engine import load_chips
from deltavlm.pipeline.inference import BatchReplies, InferenceOptions, run_batches
from deltavlm.pipeline.job import AnalyzeOptions
from deltavlm.pipeline.schema import ChipStatus
from deltavlm.version import __version__

__all__ = ["Asker", "Known", "Load", "Pixels", "Place", "Seen", "Unit", "loaded", "mark_of", "read_unit"]

Place = tuple[int, int]  # a piece of a unit, and a chip in it
Pixels = NDArray[np.uint8]  # (chips, 2, 3, size, size): before and after of each
Seen = tuple[ChipStatus, float | None, str, Place | None, str, bytes]
"""What came of a chip: status, valid fraction, reason; if it is asked, place and name of its pixels, and
where it has no data."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Chips of a pair that are read together, in order."""

    pair: RasterPair
    read: ReadOptions
    mark: dict[str, Any]  # what the pair must look like when it is opened
    chips: tuple[tuple[int, int], ...]  # row and column of each in the grid
    piece: int  # as many chips' pixels lie together, to be sent together

    @property
    def pieces(self) -> int:
        """How many there are if every chip is asked."""
        return -(-len(self.chips) // self.piece)


@dataclass(frozen=True, slots=True)
class Known(Labelled):
    """What a model is that is held elsewhere."""

    name: str
    fingerprint: str
    device: str
    details: dict[str, Any]
    chip_px: int
    training_gsd_m: float
    batch_size: int  # what suits it
    version: str  # of deltavlm

    def auto_batch_size(self) -> int:
        """Pairs to ask about at once when nobody says how many."""
        return self.batch_size


def mark_of(reader: PairReader) -> dict[str, Any]:
    """By what a pair is known again on another machine, under whatever path."""
    told: dict[str, Any] = {**reader.provenance(), "bbox": None, "bbox_crs": None, "aoi": None}
    return told | {date: {**told[date], "path": None} for date in ("before", "after")}


class _LastPair:
    """The pair that was read last stays open, for the next unit is mostly of the same."""

    def __init__(self) -> None:
        self.what: tuple[RasterPair, ReadOptions] | None = None
        self.stack = ExitStack()
        self.reader: PairReader | None = None

    def opened(self, pair: RasterPair, read: ReadOptions) -> PairReader:
        """Raises: InputError where it cannot be opened here."""
        if self.reader is None or self.what != (pair, read):
            self.close()
            self.reader = self.stack.enter_context(open_pair(pair, read))
            self.what = (pair, read)
        return self.reader

    def close(self) -> None:
        self.reader = None
        self.stack.close()


_last = _LastPair()


def read_unit(unit: Unit, options: AnalyzeOptions) -> list[Any]:
    """A `list[Seen]`, and behind it `unit.pieces` of `Pixels`, of which the last may be empty."""
    pieces: list[list[Pixels]] = [[] for _ in range(unit.pieces)]
    asked = 0
    try:
        reader = _last.opened(unit.pair, unit.read)
        if mark_of(reader) != unit.mark:
            raise InputError(f"{unit.pair.after}: is another file, or read in another way")
        grid = reader.chips(options.chip_px, options.overlap_px)
        seen: list[Seen] = []
        with closing(load_chips(reader, (grid[chip] for chip in unit.chips), options)) as looks:
            for look in looks:
                place = None
                if look.pixels is not None:
                    place = divmod(asked, unit.piece)
                    pieces[place[0]].append(np.stack([look.pixels.before, look.pixels.after]))
                    asked += 1
                seen.append((look.status, look.valid_fraction, look.reason, place, look.digest, look.valid))
    except InputError as error:
        told = f"{error} (on {socket.gethostname()})"
        return [[("unreadable", None, told, None, "", b"")] * len(unit.chips), *[_NOTHING] * unit.pieces]
    return [seen, *(np.stack(piece) if piece else _NOTHING for piece in pieces)]


_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class _Picture:
    before: NDArray[np.uint8]  # (3, size, size) RGB
    after: NDArray[np.uint8]


Load = Callable[[int], ChangeModel]  # with so many CPU threads


def loaded(name: str, runtime: RuntimeOptions, threads: int) -> ChangeModel:
    """The model of this name or folder, as `load_model` gives it; with threads of the worker's share."""
    from deltavlm.model.predictor import load_model

    return load_model(name, replace(runtime, threads=runtime.threads or threads))


class Asker:
    """A model in a process of its own."""

    def __init__(self, load: Load, threads: int) -> None:
        self.load = load
        self.threads = threads
        self.model: ChangeModel | None = None

    def begin(self) -> Known | DeltaVLMError:
        """Load the model; what it is, or why it cannot be asked here."""
        try:
            model = self.model = self.load(self.threads)
            return Known(
                model.name,
                model.fingerprint,
                model.device,
                model.details,
                model.chip_px,
                model.training_gsd_m,
                model.auto_batch_size(),
                __version__,
            )
        except DeltaVLMError as error:
            return type(error)(f"{error} (on {socket.gethostname()})")

    def ask(
        self, options: InferenceOptions, places: Sequence[Place], batch_size: int, *pieces: Pixels
    ) -> BatchReplies:
        """`run_batches` over chips by their places in these arrays of pixels."""
        assert self.model is not None
        images = [_Picture(*pieces[piece][place]) for piece, place in places]
        return run_batches(self.model, options, images, batch_size)
