"""Plan of a run: what is known of each pair, and its chip grid, without asking a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from deltavlm.errors import InputError, OutputError
from deltavlm.geo.grid import ChipGrid
from deltavlm.geo.pair import PairReader
from deltavlm.geo.sinks import is_in_lonlat
from deltavlm.model.kinds import ModelSpec
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.outputs import check_format, check_format_of_list
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.reading import open_listed_pair
from deltavlm.pipeline.scale import Scale

__all__ = ["PairPlan", "plan_run"]


@dataclass(frozen=True, slots=True)
class PairPlan:
    """Plan of one pair; `reason` is why it cannot be opened."""

    pair: Pair
    reason: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)  # `PairReader.provenance()`
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # notes that may make answers wrong, and a scale far from the training's
    crs: str | None = None
    gsd_m: float | None = None
    overlap_share: float | None = None  # share of before's area that after covers
    chips: int = 0
    rows: int = 0
    cols: int = 0
    chip_px: int = 0
    overlap_px: int = 0

    @classmethod
    def of(cls, pair: Pair, reader: PairReader, grid: ChipGrid) -> PairPlan:
        """Plan of an open pair that is cut into `grid`."""
        return cls(
            pair=pair,
            inputs=reader.provenance(),
            notes=tuple(reader.notes),
            warnings=tuple(reader.warnings),
            crs=reader.geobox.crs.to_string() if reader.geobox.crs else None,
            gsd_m=reader.gsd_m,
            overlap_share=reader.alignment.overlap_share,
            chips=len(grid),
            rows=grid.rows,
            cols=grid.cols,
            chip_px=grid.size,
            overlap_px=grid.overlap,
        )


def plan_run(job: AnalyzeJob, model: ModelSpec, evidence: ModelSpec | None = None) -> list[PairPlan]:
    """Open each pair of a job, cut it into chips, and compare its scale with the training of the model, and
    of the evidence model if there is one.

    Raises: InputError where a single pair cannot be opened.
    """
    plans: list[PairPlan] = []
    for pair in job.pairs.pairs:
        is_first = all(plan.reason is not None for plan in plans)  # that can be opened
        plans.append(_plan_pair(pair, job, model, evidence, is_first=is_first))
    return plans


def _plan_pair(
    pair: Pair, job: AnalyzeJob, model: ModelSpec, evidence: ModelSpec | None, *, is_first: bool
) -> PairPlan:
    options = job.options
    try:
        with open_listed_pair(pair, job.read) as reader:
            if job.is_single:
                check_format(job, reader.geobox)
            elif not job.output.per_pair and (is_first or is_in_lonlat(job.output.path)):
                check_format_of_list(job, [(pair, reader.geobox)])
            plan = PairPlan.of(pair, reader, reader.chips(*options.grid))
    except InputError as error:
        if job.is_single or isinstance(error, OutputError):
            raise
        return PairPlan(pair, reason=str(error))
    scales = [Scale.of(plan.gsd_m, model, options.chip_px)]
    if evidence is not None:
        scales.append(Scale.of_evidence(plan.gsd_m, evidence, options.chip_px))
    warnings = [each.warning(limited=not options.any_scale) for each in scales]
    found = tuple(text for text in warnings if text is not None)
    return replace(plan, notes=(*plan.notes, *found), warnings=(*plan.warnings, *found))
