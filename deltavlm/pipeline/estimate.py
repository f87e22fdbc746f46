"""Estimate of a run: its time, memory and disk space, from a sample of its chips on this machine."""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from deltavlm.errors import ModelError
from deltavlm.geo.cog import open_cog
from deltavlm.geo.geobox import LONLAT
from deltavlm.geo.grid import Chip, ChipGrid
from deltavlm.geo.sinks import open_sink
from deltavlm.pipeline.analyze import analyze_chips
from deltavlm.pipeline.changes import MASK_STYLE, PROBABILITY_STYLE, MaskMosaic, vectorize
from deltavlm.pipeline.engine import Engine
from deltavlm.pipeline.job import AnalyzeJob, OutputOptions
from deltavlm.pipeline.journal.lines import line_of
from deltavlm.pipeline.outputs import FOLDER_SUFFIX
from deltavlm.pipeline.pair_record import PairRecord, PairResult
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.provenance import provenance
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.run_result import RunResult
from deltavlm.pipeline.schema import output_layers
from deltavlm.pipeline.writer import OutputCRS, ResultWriter

__all__ = ["Estimate", "estimate_run"]

SAMPLE_CHIPS = 64  # about two seconds of nano on two cores
SAMPLE_BATCHES = 4  # at least; the first one is slower and counts apart
BLOCK_CHIPS = 8  # consecutive chips of the sample, as neighbours share what is decoded
MOSAIC_CHIPS = 16  # of the sample, whose polygons and rasters are made
_POLYGON_BYTES = 300  # of a polygon's columns
SAMPLE_S = 2.0  # a slow model has a smaller sample, of two batches at least


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time, memory and disk space of a run, from `sample_chips` of its chips."""

    chips: int
    sample_chips: int
    chips_per_s: float  # without loading the model
    load_s: float  # loading the model
    seconds: float  # of the whole run
    memory_bytes: int  # resident memory of the process at its largest
    output_bytes: int
    journal_bytes: int  # until the output is written


def estimate_run(job: AnalyzeJob, engine: Engine, chips: dict[str, int], load_s: float) -> Estimate:
    """Run a sample of the job without writing any of its files.

    `chips` is the number of chips by pair id, of the pairs that can be opened; `load_s` is how long the model
    took to load. Of a single pair the sample is spread over all of its chips; of a list it is the beginning.

    Raises: ModelError where the model cannot answer.
    """
    total = min(sum(chips.values()), job.options.limit or sys.maxsize)
    batch_size = job.options.batch_size or engine.model.auto_batch_size()
    store = _SampleStore(total, max(SAMPLE_CHIPS, SAMPLE_BATCHES * batch_size))
    pairs = tuple(pair for pair in job.pairs.pairs if pair.id in chips)
    sample = replace(
        job,
        pairs=replace(job.pairs, pairs=pairs),
        options=replace(job.options, on_error="skip"),
        output=replace(job.output, per_pair=False) if job.is_single else _without_folders(job.output),
    )
    result = RunResult(is_single=job.is_single)
    groups = [(pair,) for pair in pairs] if job.output.per_pair else [pairs]  # that share batches
    with suppress(_SampleComplete):
        for group in groups:
            analyze_chips(replace(sample, pairs=replace(job.pairs, pairs=group)), engine, store, result)
    results = store.results
    if all(result.status == "error" for result in results):
        raise ModelError(results[0].reason if results else "no chip of the sample could be read")
    outputs = len(pairs) if job.output.per_pair else 1
    return _estimate(sample, engine, store, load_s, outputs)


def _without_folders(output: OutputOptions) -> OutputOptions:
    """Options of one output for all pairs, with the masks of the chips; it is not written."""
    return replace(output, per_pair=False, mask=None, probability=None, polygons=output.needs_masks)


def _estimate(job: AnalyzeJob, engine: Engine, store: _SampleStore, load_s: float, outputs: int) -> Estimate:
    """Estimate from a sample, for a run into this number of outputs."""
    first, last = store.batches[0], store.batches[-1]
    total, count = store.total, len(store.results)
    if len(store.batches) > 1 and count < total:  # the first batch took longer than the others
        chips_per_s = (count - first.count) / (last.at - first.at)
    else:
        chips_per_s = count / (last.at - store.created)
    files, write_s = _written(job, engine, store)
    scale = total / count
    return Estimate(
        chips=total,
        sample_chips=count,
        chips_per_s=chips_per_s,
        load_s=load_s,
        seconds=load_s
        + last.at
        - store.created
        + (total - count) / chips_per_s
        + write_s.fixed * outputs
        + write_s.growing * scale,
        memory_bytes=_peak_memory(),
        output_bytes=round(files.fixed * outputs + files.growing * scale),
        journal_bytes=round(sum(_journal_bytes(result) for result in store.results) * scale),
    )


@dataclass(frozen=True, slots=True)
class _Batch:
    at: float  # time of the clock when it was complete
    count: int  # chips


@dataclass
class _SampleStore:
    """Store that keeps the results of a sample of `size` of `total` chips, and stops the run after it."""

    total: int
    size: int
    results: list[ChipResult] = field(default_factory=list)
    pairs: dict[str, PairResult] = field(default_factory=dict)
    batches: list[_Batch] = field(default_factory=list)
    created: float = field(default_factory=lambda: time.perf_counter())
    _seen: int = 0  # chips of the grid that the reader has come to

    def completed(self) -> Iterator[ChipResult]:
        return iter(())

    def record_of(self, pair: Pair) -> None:
        return None

    def is_done(self, pair: Pair, chip: Chip) -> bool:
        """True for a chip outside of the sample."""
        block = self._seen // BLOCK_CHIPS
        self._seen += 1
        if pair.id:
            return False
        step = self.total / self.size
        return step > 1 and int(block / step) == int((block - 1) / step) and block > 0

    def begin_pair(self, pair: Pair, record: PairRecord) -> None:
        self.pairs[pair.id] = PairResult(pair, record)

    def fail_pair(self, pair: Pair, reason: str) -> None:
        """Nothing to keep."""

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        """Raises: _SampleComplete."""
        self.results += results
        self.batches.append(_Batch(time.perf_counter(), len(results)))
        is_slow = self.batches[-1].at - self.batches[0].at > SAMPLE_S
        if len(self.results) >= min(self.size, self.total) or (is_slow and len(self.batches) > 1):
            raise _SampleComplete


class _SampleComplete(Exception):
    """End of the sample."""


@dataclass(frozen=True, slots=True)
class _Cost:
    """Cost of an output, in bytes or seconds: of one without rows, and of the rows of the sample."""

    fixed: float
    growing: float

    @classmethod
    def of(cls, empty: float, sample: float) -> _Cost:
        return cls(empty, max(0.0, sample - empty))

    def plus(self, growing: float) -> _Cost:
        return _Cost(self.fixed, self.growing + growing)


def _written(job: AnalyzeJob, engine: Engine, store: _SampleStore) -> tuple[_Cost, _Cost]:
    """Bytes of the output, and seconds of writing it, by writing it to a scratch folder."""
    path = job.output.path
    suffix = ".geojsonl" if path is None else path.suffix or FOLDER_SUFFIX
    layers = output_layers(
        job.questions,
        changes=job.output.polygons,
        pair_columns=not job.is_single,
        pairs=not job.one_pair_per_output,
        evidence=job.evidence,
    )
    crs = OutputCRS(LONLAT if any(pair.record and pair.record.crs for pair in store.pairs.values()) else None)
    sizes, seconds = list[int](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        for name, results in (("warm-up", []), ("empty", []), ("sample", store.results)):
            scratch = Path(folder) / f"{name}{suffix}"
            start = time.perf_counter()
            with open_sink(
                scratch, layers, crs.crs, provenance(job, engine.model, {}), only_layer=job.output.layer
            ) as sink:
                ResultWriter(sink, job.questions, engine.model.label, crs).write_chips(results, store.pairs)
            seconds.append(time.perf_counter() - start)
            sizes.append(scratch.stat().st_size)
        byte_count, duration = _Cost.of(*sizes[1:]), _Cost.of(*seconds[1:])
        if not job.options.masks:
            return byte_count, duration
        masks = _mask_cost(job, store, Path(folder))
    return byte_count.plus(masks[0]), duration.plus(masks[1])


def _mask_cost(job: AnalyzeJob, store: _SampleStore, folder: Path) -> tuple[float, float]:
    """Bytes of the polygons and rasters of the sample, and seconds of making them, from some of its chips."""
    answered = [result for result in store.results if result.mask is not None]
    if not answered:
        return 0.0, 0.0
    record = store.pairs[answered[0].pair].record
    assert record is not None
    mosaic, chips = _mosaic_of(answered, record, *job.options.grid)
    start = time.perf_counter()
    with ExitStack() as stack:
        mask, probability = (
            stack.enter_context(open_cog(folder / name, mosaic.geobox, style, {})) if wanted else None
            for name, style, wanted in (
                ("mask.tif", MASK_STYLE, job.output.mask),
                ("probability.tif", PROBABILITY_STYLE, job.output.probability),
            )
        )
        features = vectorize(
            mosaic, job.output.changes, polygons=job.output.polygons, mask=mask, probability=probability
        )
        for cog in (mask, probability):
            if cog is not None:
                cog.finish()
                cog.publish(False)
    seconds = time.perf_counter() - start
    rasters = sum(path.stat().st_size for path in folder.glob("*.tif"))
    polygons = sum(_POLYGON_BYTES + len(feature.geometry.wkb) for feature in features)
    geobox, (size, overlap) = mosaic.geobox, job.options.grid
    own_px = min(size - overlap, geobox.height) * min(
        size - overlap, geobox.width
    )  # of a chip in a large grid
    scale = len(answered) * min(1 / chips, own_px / (geobox.height * geobox.width))
    return (rasters + polygons) * scale, seconds * scale


def _mosaic_of(
    answered: list[ChipResult], record: PairRecord, size: int, overlap: int
) -> tuple[MaskMosaic, int]:
    """Mosaic of chips from all of the sample, about square as tiles of rasters are, and their number."""
    count = min(MOSAIC_CHIPS, len(answered))
    cols = 1 if record.width < size else count if record.height < size else math.isqrt(count)
    width, height = (
        length if length < size else number * (size - overlap) + overlap
        for length, number in ((record.width, cols), (record.height, count // cols))
    )
    geobox = replace(record.geobox, width=width, height=height)
    grid = ChipGrid(geobox, size, overlap)
    evenly = answered[:: len(answered) // len(grid)]
    placed = {
        (chip.row, chip.col): replace(each, chip=chip) for chip, each in zip(grid, evenly, strict=False)
    }

    def lookup(chip: Chip) -> ChipResult | None:
        return placed.get((chip.row, chip.col))

    return MaskMosaic(grid, geobox, lookup, lambda blob: blob.data or b""), len(placed)


def _journal_bytes(result: ChipResult) -> int:
    """Size of a result in the journal, with its mask."""
    line = len(json.dumps(line_of(result), ensure_ascii=False).encode()) + 1
    return line + sum(
        len(blob.data) for blob in (result.mask, result.valid) if blob is not None and blob.data
    )


def _peak_memory() -> int:
    """Resident memory of this process at its largest so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
