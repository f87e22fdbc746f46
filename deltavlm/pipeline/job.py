"""Job of a run as plain values: pairs, questions, how to read and cut them, and where the output goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from deltavlm.errors import ConfigError
from deltavlm.geo.pair import ReadOptions
from deltavlm.pipeline.answers import check_threshold
from deltavlm.pipeline.changes import ChangeOptions
from deltavlm.pipeline.pairs import Pair, PairList
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["AnalyzeJob", "AnalyzeOptions", "OutputOptions"]

MASK_OVERLAP = 8  # chips whose masks are blended overlap by an eighth of a chip

LayerName = Literal["chips", "locations", "changes", "pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeOptions:
    """Options of cutting a pair into chips and asking the model about them."""

    chip_px: int = 256
    overlap_px: int | None = None  # None: 0, or an eighth of a chip where masks are blended
    max_nodata: float = 0.5  # a chip with a larger share of nodata is not asked
    batch_size: int | None = None  # chips in one call of the model, halved until they fit; None: automatic
    limit: int | None = None  # only the first chips of the run
    on_error: Literal["skip", "fail"] = "skip"
    any_scale: bool = False  # keep counts, cells and classes far from the scale of the model's training
    cascade: bool = False  # ask only about chips that changed, by their evidence or the yes/no question
    threshold: float | None = None  # a chip has changed from this score on; None: as the model answers
    masks: bool = False  # keep the mask of each chip; set by the job

    @property
    def grid(self) -> tuple[int, int]:
        """Chip size and overlap, px."""
        return self.chip_px, self.overlap_px or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Options of the output; without a path, features go to standard output as GeoJSON lines.

    `per_pair` writes an output file for each pair: `path`, `mask` and `probability` are then folders.
    """

    path: Path | None = None
    per_pair: bool = False
    layer: LayerName | None = None  # only this layer
    overwrite: bool = False
    resume: bool = True
    retry_failed: bool = False
    polygons: bool = False
    mask: Path | None = None  # raster of classes
    probability: Path | None = None  # raster of probabilities
    changes: ChangeOptions = field(default_factory=ChangeOptions)

    @property
    def needs_masks(self) -> bool:
        """True if polygons or rasters are made of the model's masks."""
        return self.polygons or self.mask is not None or self.probability is not None

    @property
    def may_replace(self) -> bool:
        """True if an existing output is replaced."""
        return self.overwrite or self.retry_failed

    def for_pair(self, path: Path) -> OutputOptions:
        """Options of the output `path` of one pair; its rasters are in the folders of these options."""
        mask, probability = (
            None if folder is None else folder / f"{path.stem}.{name}.tif"
            for name, folder in (("mask", self.mask), ("probability", self.probability))
        )
        return replace(self, path=path, mask=mask, probability=probability)


@dataclass(frozen=True, kw_only=True)
class AnalyzeJob:
    """Job of a run.

    Raises: ConfigError for options that contradict each other.
    """

    pairs: PairList
    questions: Sequence[QuestionSpec]
    read: ReadOptions = field(default_factory=ReadOptions)
    options: AnalyzeOptions = field(default_factory=AnalyzeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    evidence: bool = False  # the model has evidence of another one, which chips have columns for

    def __post_init__(self) -> None:
        output = self.output
        if self.options.cascade and not self.asks_change and not self.evidence:
            raise ConfigError(
                "`cascade=True` needs the yes/no question; add an entry 'task: change', or leave it out"
            )
        threshold = self.options.threshold
        if threshold is not None and not self.asks_change:
            raise ConfigError(
                "`threshold` needs the yes/no question; add an entry 'task: change', or leave it out"
            )
        check_threshold(threshold)
        self._pass_cloud_masks_to_pair()
        overlap_px = self.options.overlap_px
        if overlap_px is None:
            overlap_px = self.options.chip_px // MASK_OVERLAP if output.needs_masks else 0
        options = replace(self.options, masks=output.needs_masks, overlap_px=overlap_px)
        object.__setattr__(self, "options", options)
        if output.layer == "changes" and not output.polygons:
            raise ConfigError("`layer='changes'`: there is no such layer without `polygons`; add it")
        if output.layer == "pairs" and self.is_single:
            raise ConfigError("`layer='pairs'` is for many pairs; choose chips or locations")
        if output.layer == "pairs" and output.per_pair:
            raise ConfigError("`layer='pairs'` is for one output; choose chips or locations")
        if output.needs_masks and output.path is None:
            raise ConfigError(
                "polygons and rasters of change are made when all chips are answered, so they need a file; "
                "name one as `output`"
            )
        for name, path in (("mask", output.mask), ("probability", output.probability)):
            if path is None or self.is_single:
                continue
            if not output.per_pair:
                raise ConfigError(
                    f"`{name}={path}`: many pairs cannot be one raster; give each its own output, with "
                    f"folders as `output` and `{name}`"
                )

    def _pass_cloud_masks_to_pair(self) -> None:
        """Make cloud masks of the read options those of the only pair. Raises: ConfigError for several."""
        read = self.read
        if read.before_cloud_mask is None and read.after_cloud_mask is None:
            return
        if not self.is_single:
            raise ConfigError(
                "a cloud mask is for one pair; a list has the columns before_cloud_mask and "
                "after_cloud_mask, and `qa_band` is for a band of each image"
            )
        pair = replace(
            self.pairs.pairs[0],
            before_cloud_mask=read.before_cloud_mask,
            after_cloud_mask=read.after_cloud_mask,
        )
        object.__setattr__(self, "pairs", replace(self.pairs, pairs=(pair,)))
        object.__setattr__(self, "read", replace(read, before_cloud_mask=None, after_cloud_mask=None))

    @property
    def is_single(self) -> bool:
        """True for one pair that is not from a list: no pair columns, and it must open."""
        return self.pairs.is_single

    @property
    def one_pair_per_output(self) -> bool:
        """True if an output holds a single pair, whose journal then belongs to that pair alone."""
        return self.is_single or self.output.per_pair

    @property
    def asks_change(self) -> bool:
        """True if the yes/no question is asked."""
        return any(spec.task == "change" for spec in self.questions)

    def change_record(self) -> dict[str, object]:
        """Options of the masks for the provenance of an output; empty without masks."""
        output = self.output
        record: dict[str, object] = {"changes": asdict(output.changes)} if output.needs_masks else {}
        if output.probability is not None and output.path is not None:
            folder = output.path.absolute().parent
            record["probability"] = Path(os.path.relpath(output.probability.absolute(), folder)).as_posix()
        return record

    def for_pair(self, pair: Pair, path: Path, limit: int | None) -> AnalyzeJob:
        """Job of one pair of this job, whose output file is `path`, with at most `limit` chips."""
        return replace(
            self,
            pairs=replace(self.pairs, pairs=(pair,)),
            options=replace(self.options, limit=limit),
            output=self.output.for_pair(path),
        )
