"""Flag groups of a run: dates, engine, reports; and all flags of a run, which make its job."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deltacli import parsing
from deltacli.console import console
from deltacli.flag_groups import ChipFlags, ModelFlags, OutputFlags, RasterFlags
from deltacli.mask_flags import MaskFlags
from deltacli.metrics import run_metrics
from deltacli.options import COMMON, HTML_SUFFIXES, OUTPUT, PNG_SUFFIXES, RASTERS, flag
from deltavlm.errors import ConfigError
from deltavlm.extras import require_package
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.model.kinds import ModelSpec
    from deltavlm.pipeline.engine import Engine
    from deltavlm.pipeline.job import AnalyzeJob
    from deltavlm.pipeline.pairs import PairList
    from deltavlm.tasks.questions import QuestionSpec

__all__ = ["DateFlags", "EngineFlags", "RunFlags", "ShowFlags"]

CLUSTER = "Ray cluster"  # panel of the help


@dataclass(frozen=True, kw_only=True)
class DateFlags:
    """Dates of the two images."""

    before_date: Annotated[
        str | None,
        flag(
            "--before-date",
            panel=RASTERS,
            metavar="DATE",
            show_default="from the file's tags",
            help="Date of BEFORE in ISO 8601, such as 2024-05-31 or 2024.",
        ),
    ] = None
    after_date: Annotated[
        str | None,
        flag(
            "--after-date",
            panel=RASTERS,
            metavar="DATE",
            show_default="from the file's tags",
            help="Date of AFTER.",
        ),
    ] = None

    def check(self, *, many: bool) -> None:
        """Raises: BadParameter for a list of pairs, InputError for text that is no date."""
        from deltavlm.pipeline.pair_lists import check_date

        for name in ("before_date", "after_date"):
            text, flag_name = getattr(self, name), parsing.flag_name(name)
            if text is not None:
                if many:
                    raise typer.BadParameter("is for one pair; a list has its own", param_hint=flag_name)
                check_date(text, flag_name)


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Engine: this process, or a Ray cluster."""

    engine: Annotated[
        Literal["local", "ray"],
        flag(
            "--engine",
            panel=CLUSTER,
            help="Where the model runs: in this process, or on a Ray cluster with the same answers (needs "
            "the extra ray).",
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        flag(
            "--ray-address",
            panel=CLUSTER,
            metavar="auto|HOST:PORT",
            show_default="RAY_ADDRESS, else this machine",
            help="Address of the Ray cluster.",
        ),
    ] = None
    actors: Annotated[
        int | None,
        flag(
            "--actors",
            panel=CLUSTER,
            metavar="N",
            min=1,
            show_default="one per GPU, else as many as fit",
            help="Worker processes, each with its own model.",
        ),
    ] = None
    actor_cpus: Annotated[
        int | None,
        flag(
            "--actor-cpus",
            panel=CLUSTER,
            metavar="N",
            min=1,
            show_default="1 with a GPU, else 4",
            help="CPUs per worker process; also its model's threads.",
        ),
    ] = None

    def check(self) -> None:
        """Raises: BadParameter or ConfigError where the flags do not go together, or Ray is missing."""
        if self.engine == "local":
            for name in ("ray_address", "actors", "actor_cpus"):
                if getattr(self, name) is not None:
                    raise typer.BadParameter(
                        "is for --engine ray; add that, or leave it out", param_hint=parsing.flag_name(name)
                    )
            return
        require_package("ray", "--engine ray, here and on the workers,")

    @contextmanager
    def start(self, model: ModelFlags, rasters: RasterFlags, *, any_scale: bool = False) -> Iterator[Engine]:
        """Engine with its model loaded; prints which model it is. `any_scale` is about evidence."""
        if self.engine == "local":
            from deltavlm.pipeline.engine import LocalEngine

            change_model = model.load(any_scale=any_scale)
            run_metrics.set_model(change_model)
            yield LocalEngine(change_model)
            return
        from deltavlm.cluster.session import start_cluster

        start = time.monotonic()
        runtime = model.loading_options()
        with start_cluster(
            model.load_on_worker(runtime, any_scale=any_scale),
            address=self.ray_address,
            actors=self.actors,
            actor_cpus=self.actor_cpus,
            device=runtime.device,
            environment=parsing.parse_gdal_config(rasters.gdal_config),
        ) as cluster:
            facts = cluster.model
            console.info(
                f"model {facts.name} ({facts.fingerprint}) on {facts.device}, held by "
                f"{pluralize(len(cluster.actors), 'actor')}, ready in {time.monotonic() - start:.1f} s"
            )
            run_metrics.set_model(facts)
            yield cluster


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Report and quicklook of the output, and the table at the end of a run."""

    html: Annotated[
        Path | None,
        flag(
            "--html", panel=OUTPUT, metavar="FILE", help="Also write an HTML report, as deltavlm report does."
        ),
    ] = None
    quicklook: Annotated[
        Path | None,
        flag(
            "--quicklook",
            panel=OUTPUT,
            metavar="FILE.png",
            help="Also write an image: before, after, and the changed chips outlined.",
        ),
    ] = None
    top: Annotated[
        int,
        flag(
            "--top",
            panel=COMMON,
            metavar="N",
            min=0,
            max=10,
            help="Rows of the table of most changed chips, which a terminal shows at the end.",
        ),
    ] = 10
    thumbnails: Annotated[
        Literal["auto", "always", "never"],
        flag(
            "--thumbnails",
            panel=COMMON,
            help="Thumbnails of these chips in terminals with kitty, iTerm2 or sixel graphics; always: use "
            "sixel if none is detected.",
        ),
    ] = "auto"

    def check(self, job: AnalyzeJob) -> None:
        """Raises: ConfigError or OutputError where a report or quicklook cannot be made of the output."""
        from deltavlm.geo.output_files import check_output

        output = job.output
        for name, path, suffixes in (
            ("--html", self.html, HTML_SUFFIXES),
            ("--quicklook", self.quicklook, PNG_SUFFIXES),
        ):
            if path is None:
                continue
            if output.per_pair:
                raise ConfigError(
                    f"{name} cannot be made with -o {output.path}, which is a folder; deltavlm report makes "
                    "it afterwards, of each output in it"
                )
            if output.path is None:
                raise ConfigError(f"{name} is made of an output file; name one with -o")
            if output.layer not in (None, "chips"):
                raise ConfigError(f"{name} needs the layer chips; leave --layer {output.layer} out")
            if name == "--quicklook" and not job.is_single:
                raise ConfigError(
                    "--quicklook shows one pair; deltavlm report OUTPUT --pair ID --quicklook FILE.png makes "
                    "it afterwards"
                )
            check_output(path, output.may_replace, suffixes)


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """All flags of a run over chips: those of `analyze`, and of `ask --all-chips`."""

    out: OutputFlags
    model: ModelFlags
    chips: ChipFlags
    rasters: RasterFlags
    cascade: bool
    batch_size: str
    json_summary: bool
    threshold: float | None = None
    engine: EngineFlags = field(default_factory=EngineFlags)
    show: ShowFlags = field(default_factory=ShowFlags)
    masks: MaskFlags = field(default_factory=MaskFlags)
    dates: DateFlags = field(default_factory=DateFlags)

    def check(self, target: str, *, many: bool) -> None:
        """Check the flags before anything is read. Raises: BadParameter or ConfigError."""
        from deltavlm.files import names_folder

        if target == "-" and self.json_summary:
            raise typer.BadParameter("stdout is taken by the features of -o -", param_hint="--json")
        self.dates.check(many=many)
        self.masks.check(into_folder=many and target != "-" and names_folder(target))
        self.engine.check()
        self.model.runtime_options()

    @property
    def has_automatic_overlap(self) -> bool:
        """True where no flag says how far chips overlap."""
        return self.chips.overlap is None and self.chips.stride is None

    def job(self, pairs: PairList, questions: Sequence[QuestionSpec], target: str) -> AnalyzeJob:
        """Job of these flags. Raises: BadParameter or ConfigError."""
        from deltavlm.files import names_folder
        from deltavlm.pipeline.job import AnalyzeJob, AnalyzeOptions, OutputOptions

        chips, masks, out = self.chips, self.masks, self.out
        threshold, calibration = self.threshold, self.model.read_calibration()
        if threshold is None and calibration and any(spec.task == "change" for spec in questions):
            threshold = calibration.threshold
        read = self.rasters.read_options(chips.bbox, chips.bbox_crs, chips.aoi)
        return AnalyzeJob(
            pairs=pairs,
            questions=questions,
            read=read,
            options=AnalyzeOptions(
                chip_px=chips.chip_size,
                overlap_px=None if self.has_automatic_overlap else chips.overlap_px,
                batch_size=parsing.parse_batch_size(self.batch_size),
                max_nodata=chips.max_nodata,
                any_scale=chips.any_scale,
                limit=chips.limit,
                on_error=chips.on_error,
                cascade=self.cascade,
                threshold=threshold,
            ),
            output=OutputOptions(
                path=None if target == "-" else Path(target),
                per_pair=not pairs.is_single and target != "-" and names_folder(target),
                layer=out.layer,
                overwrite=out.overwrite,
                resume=out.resume,
                retry_failed=out.retry_failed,
                polygons=masks.polygons is not None,
                mask=None if masks.mask is None else Path(masks.mask),
                probability=None if masks.probability is None else Path(masks.probability),
                changes=masks.options(),
            ),
            evidence=self.model.evidence_name is not None,
        )

    def check_model(self, job: AnalyzeJob) -> ModelSpec:
        """What is known of the model, which is not loaded. Raises: InputError or ConfigError."""
        from deltavlm.pipeline.mask_codec import check_mask_head

        spec = self.model.read_spec()
        evidence_spec = self.model.read_evidence_spec()
        if job.options.masks:
            check_mask_head(evidence_spec or spec)
        if self.engine.engine == "local":
            self.model.check_device()
        return spec
