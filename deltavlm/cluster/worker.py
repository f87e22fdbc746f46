"""Code of the workers of a cluster, independent of Ray: read chips, and ask the model about them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltavlm.errors import DeltaVLMError, InputError
from deltavlm.geo.matching import ColorMatch
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions, open_pair
from deltavlm.geo.registration import Registration
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.interface import ChangeModel, Labelled, ModelFacts, PairContext
from deltavlm.pipeline.engine import load_chips
from deltavlm.pipeline.evidence import EvidencedModel, mask_model
from deltavlm.pipeline.inference import BatchReplies, InferenceOptions, run_batches
from deltavlm.pipeline.job import AnalyzeOptions
from deltavlm.pipeline.schema import ChipStatus
from deltavlm.version import __version__

__all__ = [
    "ChipReading",
    "LoadEvidencedModel",
    "LoadModel",
    "ModelActor",
    "ModelInfo",
    "PixelAddress",
    "Pixels",
    "ReadTask",
    "load_model_on_worker",
    "pair_fingerprint",
    "read_chips_of_task",
]

PixelAddress = tuple[int, int]  # number of an array of pixels, and index of the chip in it
Pixels = NDArray[np.uint8]  # (chips, 2, 3, size, size): before and after of each
ChipReading = tuple[
    ChipStatus, float | None, str, PixelAddress | None, str, bytes, float | None, float | None
]
"""Status of a chip, valid fraction, error message, and if it will be asked: address and digest of its pixels,
encoded valid pixels, shift between the dates in pixels; share hidden by clouds."""


@dataclass(frozen=True, slots=True)
class ReadTask:
    """Chips of a pair that are read together, in order."""

    pair: RasterPair
    read: ReadOptions
    registration: Registration  # of the pair, so that the worker need not measure it
    color_match: ColorMatch | None  # the same
    fingerprint: dict[str, Any]  # `pair_fingerprint` that the pair must have on the worker
    chips: tuple[tuple[int, int], ...]  # row and column of each in the chip grid
    chips_per_array: int  # chips whose pixels are in one array, sent together

    @property
    def arrays(self) -> int:
        """Number of arrays of pixels if every chip is asked."""
        return -(-len(self.chips) // self.chips_per_array)


@dataclass(frozen=True, slots=True)
class ModelInfo(Labelled):
    """Properties of a model in another process."""

    name: str
    fingerprint: str
    device: str
    details: dict[str, Any]
    chip_px: int
    training_gsd_m: float | None
    phrasebook: str
    reads_context: bool
    batch_size: int  # what suits it
    version: str  # of deltavlm
    evidence_model: ModelInfo | None = None  # model whose evidence it is told

    @classmethod
    def of(cls, model: ModelFacts, batch_size: int) -> ModelInfo:
        """Properties of a model, and of its evidence model if there is one."""
        other = mask_model(model)
        return cls(
            model.name,
            model.fingerprint,
            model.device,
            model.details,
            model.chip_px,
            model.training_gsd_m,
            model.phrasebook,
            model.reads_context,
            batch_size,
            __version__,
            None if other is model else cls.of(other, batch_size),
        )

    def auto_batch_size(self) -> int:
        """Batch size that suits the model."""
        return self.batch_size


def pair_fingerprint(reader: PairReader) -> dict[str, Any]:
    """Provenance of an open pair without paths and areas: equal for the same files on another machine."""
    values: dict[str, Any] = {**reader.provenance(), "bbox": None, "bbox_crs": None, "aoi": None}
    for date in ("before", "after"):
        mask = values[date]["cloud_mask"]
        values[date] = {**values[date], "path": None, "cloud_mask": mask and {**mask, "path": None}}
    return values


class _PairCache:
    """Cache of one open pair, since the next task is mostly about the same."""

    def __init__(self) -> None:
        self.key: tuple[RasterPair, ReadOptions, Registration, ColorMatch | None] | None = None
        self.stack = ExitStack()
        self.reader: PairReader | None = None

    def open(self, task: ReadTask) -> PairReader:
        """Open the pair of a task. Raises: InputError where it cannot be opened here."""
        key = (task.pair, task.read, task.registration, task.color_match)
        if self.reader is None or self.key != key:
            self.close()
            self.reader = self.stack.enter_context(
                open_pair(task.pair, task.read, registration=task.registration, color_match=task.color_match)
            )
            self.key = key
        return self.reader

    def close(self) -> None:
        self.reader = None
        self.stack.close()


_cache = _PairCache()


def read_chips_of_task(task: ReadTask, options: AnalyzeOptions) -> list[Any]:
    """A `list[ChipReading]` followed by `task.arrays` arrays of `Pixels`; the last of them may be empty."""
    arrays: list[list[Pixels]] = [[] for _ in range(task.arrays)]
    count = 0
    try:
        reader = _cache.open(task)
        if pair_fingerprint(reader) != task.fingerprint:
            raise InputError(f"{task.pair.after}: is another file, or read in another way")
        grid = reader.chips(*options.grid)
        readings: list[ChipReading] = []
        with closing(load_chips(reader, (grid[chip] for chip in task.chips), options)) as chips:
            for chip in chips:
                address = None
                if chip.pixels is not None:
                    address = divmod(count, task.chips_per_array)
                    arrays[address[0]].append(np.stack([chip.pixels.before, chip.pixels.after]))
                    count += 1
                readings.append(
                    (
                        chip.status,
                        chip.valid_fraction,
                        chip.reason,
                        address,
                        chip.digest,
                        chip.valid,
                        chip.shift_px,
                        chip.cloud_share,
                    )
                )
    except InputError as error:
        reason = f"{error} (on {socket.gethostname()})"
        unreadable: ChipReading = ("unreadable", None, reason, None, "", b"", None, None)
        return [[unreadable] * len(task.chips), *[_EMPTY] * task.arrays]
    return [readings, *(np.stack(array) if array else _EMPTY for array in arrays)]


_EMPTY = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class _ChipImages:
    before: NDArray[np.uint8]  # (3, size, size) RGB
    after: NDArray[np.uint8]


LoadModel = Callable[[int], ChangeModel]  # from a number of CPU threads


def load_model_on_worker(name: str, runtime: RuntimeOptions, threads: int) -> ChangeModel:
    """Model by name or folder; it uses `threads` unless the runtime options set them."""
    from deltavlm.model.kinds import load_model

    return load_model(name, replace(runtime, threads=runtime.threads or threads))


@dataclass(frozen=True, slots=True)
class LoadEvidencedModel:
    """`LoadModel` of a model that is told the evidence of another."""

    load_model: LoadModel
    load_evidence_model: LoadModel
    any_scale: bool = False  # of `EvidencedModel`
    calibration: ScoreCalibration | None = None

    def __call__(self, threads: int) -> ChangeModel:
        models = self.load_model(threads), self.load_evidence_model(threads)
        return EvidencedModel(*models, any_scale=self.any_scale, calibration=self.calibration)


class ModelActor:
    """Model in a process of its own."""

    def __init__(self, load_model: LoadModel, threads: int) -> None:
        self.load_model = load_model
        self.threads = threads
        self.model: ChangeModel | None = None

    def load(self) -> ModelInfo | DeltaVLMError:
        """Load the model; return its properties, or the error."""
        try:
            model = self.model = self.load_model(self.threads)
            return ModelInfo.of(model, model.auto_batch_size())
        except DeltaVLMError as error:
            return type(error)(f"{error} (on {socket.gethostname()})")

    def ask(
        self,
        options: InferenceOptions,
        addresses: Sequence[PixelAddress],
        batch_size: int,
        contexts: Sequence[PairContext],
        *arrays: Pixels,
    ) -> BatchReplies:
        """`run_batches` over chips by their addresses in these arrays, with their contexts."""
        assert self.model is not None
        images = [_ChipImages(*arrays[array][index]) for array, index in addresses]
        return run_batches(self.model, options, images, batch_size, contexts)
