"""What `analyze` and `ask --all-chips` are asked for, the images apart: questions, model, chips, output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deltacli import parsing
from deltacli.engine_flags import EngineFlags
from deltacli.flag_groups import ChipFlags, ModelFlags, OutputFlags, RasterFlags
from deltacli.mask_flags import MaskFlags
from deltacli.metrics import run_metrics
from deltacli.show_flags import ShowFlags
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.geo.pair import ReadOptions
    from deltavlm.model.config import DeltaVLMConfig
    from deltavlm.model.interface import ModelFacts
    from deltavlm.pipeline.analyze import AnalyzeOptions, Engine
    from deltavlm.tasks.questions import QuestionSpec


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Flags and questions of one run."""

    specs: Sequence[QuestionSpec]
    out: OutputFlags
    asked: ModelFlags
    chips: ChipFlags
    rasters: RasterFlags
    cascade: bool
    batch_size: str
    json_summary: bool
    where: EngineFlags = field(default_factory=EngineFlags)
    show: ShowFlags = field(default_factory=ShowFlags)
    masks: MaskFlags = field(default_factory=MaskFlags)

    @property
    def judged(self) -> bool:
        """Whether the yes/no question is asked."""
        return any(spec.task == "change" for spec in self.specs)

    @property
    def replaced(self) -> bool:
        """Whether an output that is there gives way."""
        return self.out.overwrite or self.out.retry_failed

    def check(self, target: str, *, many: bool = False) -> tuple[ReadOptions, AnalyzeOptions]:
        """How to read and how to ask, before anything is opened; the batch size comes with the model.

        Raises: BadParameter or ConfigError for flags that cannot be read, or not go together.
        """
        if target == "-" and self.json_summary:
            raise typer.BadParameter("stdout is taken by the features of -o -", param_hint="--json")
        self.masks.check(target, self.out.layer, many=many)
        is_chosen = self.chips.overlap is not None or self.chips.stride is not None
        overlap_px = self.masks.overlap_px(self.chips.chip_size, self.chips.overlap_px, is_chosen)
        parsing.parse_batch_size(self.batch_size)
        self.where.check()
        read = self.rasters.read_options(self.chips.bbox, self.chips.bbox_crs, self.chips.aoi)
        self.asked.runtime_options()
        if self.cascade and not self.judged:
            raise ConfigError(
                "--cascade needs the yes/no question; add an entry 'task: change', or leave it out"
            )
        from deltavlm.pipeline.analyze import AnalyzeOptions

        return read, AnalyzeOptions(
            chip_px=self.chips.chip_size,
            overlap_px=overlap_px,
            max_nodata=self.chips.max_nodata,
            limit=self.chips.limit,
            on_error=self.chips.on_error,
            cascade=self.cascade,
            masks=self.masks.asked,
        )

    def check_file(self, path: Path | None, target: str) -> None:
        """Whether the output can be written, and has something to try again where that is wished.

        Raises: OutputError or ConfigError.
        """
        from deltavlm.geo.sinks import check_output
        from deltavlm.pipeline.journal import journal_path

        if path is not None:
            check_output(path, self.replaced)
        self.show.check(path, self.out.layer, self.replaced)
        if self.out.retry_failed and (path is None or not journal_path(path).exists()):
            raise ConfigError(
                f"--retry-failed: nothing is known of a run into {target} with chips that failed"
            )

    def check_model(self) -> DeltaVLMConfig:
        """The model's numbers, without loading it. Raises: InputError where it cannot run as wished."""
        from deltavlm.model.folder import find_folder, read_config

        numbers = self.asked.runtime_options().apply_to(read_config(find_folder(self.asked.model)))
        if self.masks.asked and numbers.dense is None:
            from deltavlm.pipeline.masks import NO_MASKS

            raise ConfigError(NO_MASKS.format(name=numbers.name))
        if self.where.engine == "local":
            self.asked.check_device()
        return numbers

    @contextmanager
    def started(self) -> Iterator[tuple[Engine, float]]:
        """The engine with its model loaded, and how many seconds that took; it ends with the `with`."""
        with self.where.started(self.asked, self.rasters) as (engine, load_s):
            run_metrics.set_model(engine.model)
            yield engine, load_s

    def batched(self, run: AnalyzeOptions, model: ModelFacts) -> AnalyzeOptions:
        """With the batch size that was asked for, or what suits the model."""
        return replace(run, batch_size=parsing.parse_batch_size(self.batch_size) or model.auto_batch_size())
