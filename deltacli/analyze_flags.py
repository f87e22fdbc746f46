"""Flag groups of `deltavlm analyze`: pairs, change masks, engine, reports; and all flags of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import parsing
from deltacli.console import console
from deltacli.doctor import ProjCommand
from deltacli.flag_groups import ChipFlags, ModelFlags, OutputFlags, RasterFlags
from deltacli.metrics import run_metrics
from deltacli.options import COMMON, HTML_SUFFIXES, OUTPUT, PNG_SUFFIXES, RASTERS, flag
from deltavlm.errors import ConfigError, InputError
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.model.config import DeltaVLMConfig
    from deltavlm.pipeline.changes import ChangeOptions
    from deltavlm.pipeline.engine import Engine
    from deltavlm.pipeline.job import AnalyzeJob
    from deltavlm.pipeline.pairs import PairList
    from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "MASKS",
    "DateFlags",
    "EngineFlags",
    "MaskFlags",
    "OutlineFlags",
    "PairFlags",
    "RunFlags",
    "ShowFlags",
]

PAIRS, MASKS, CLUSTER = "Many pairs", "Change masks", "Ray cluster"  # panels of the help
_LISTED = 10  # unmatched files that are named


@dataclass(frozen=True, kw_only=True)
class PairFlags:
    """Many pairs instead of one."""

    pairs: Annotated[
        str | None,
        flag(
            "--pairs",
            panel=PAIRS,
            metavar="FILE|-",
            help="List of pairs as CSV, JSON lines or STAC items: before, after; optionally id, date, "
            "before_date, aoi. One output for all, or with -o FOLDER/ one per pair.",
        ),
    ] = None
    before_dir: Annotated[
        Path | None,
        flag("--before-dir", panel=PAIRS, metavar="FOLDER", help="Folder of earlier images."),
    ] = None
    after_dir: Annotated[
        Path | None,
        flag("--after-dir", panel=PAIRS, metavar="FOLDER", help="Folder of later images, paired by name."),
    ] = None
    shard: Annotated[
        str | None,
        flag("--shard", panel=PAIRS, metavar="I/N", help="Only shard I of N of the pairs, 1/N to N/N."),
    ] = None

    def check(self, before: str | None, after: str | None) -> None:
        """Raises: BadParameter unless either one pair or many are given."""
        folders = (self.before_dir, self.after_dir)
        if self.pairs is None and folders == (None, None):
            if before is None:
                raise typer.BadParameter(
                    "give BEFORE and AFTER, or many pairs by --pairs FILE, or by --before-dir and --after-dir"
                )
            if after is None:
                raise typer.BadParameter(f"only one image, {before}; give AFTER too")
            if self.shard is not None:
                raise typer.BadParameter("--shard is for many pairs, and this is one; leave it out")
            return
        if before is not None:
            raise typer.BadParameter(
                f"{before}: cannot be combined with {'--pairs' if self.pairs else '--before-dir'}; put the "
                "pair into the list, or leave one of the two out"
            )
        if self.pairs is not None and folders != (None, None):
            raise typer.BadParameter("--pairs cannot be combined with --before-dir and --after-dir")
        if self.pairs is None and None in folders:
            raise typer.BadParameter("--before-dir and --after-dir go together; give both")

    @property
    def default_target(self) -> str:
        """Output of many pairs, where none is named."""
        source = str(self.after_dir or ("pairs" if self.pairs == "-" else self.pairs))
        index, count = parsing.parse_shard(self.shard)
        ending = f"_changes_{index}of{count}.gpkg" if count > 1 else "_changes.gpkg"
        return parsing.default_output(str(Path(source).absolute()), ending)

    def read(self, *, as_file_names: bool) -> PairList:
        """Pairs of the list or the two folders, those of the shard only; prints notes about the list.

        `as_file_names` checks that the ids of the whole list can be names of output files.

        Raises: InputError naming file, line and column.
        """
        from deltavlm.pipeline.outputs import FOLDER_SUFFIX
        from deltavlm.pipeline.pair_lists import parse_pairs, read_pairs
        from deltavlm.pipeline.pairs import file_names, pairs_of_folders, shard

        index, count = parsing.parse_shard(self.shard)
        if self.before_dir is not None and self.after_dir is not None:
            pairs = pairs_of_folders(self.before_dir, self.after_dir)
        elif self.pairs == "-":
            pairs = parse_pairs(parsing.read_stdin(), "stdin", Path())
        else:
            pairs = read_pairs(Path(self.pairs or ""))
        self._print_notes(pairs)
        if as_file_names:
            file_names(pairs.pairs, FOLDER_SUFFIX)
        selected = shard(pairs.pairs, index, count)
        total = pluralize(len(pairs.pairs), "pair")
        if not selected:
            raise InputError(
                f"--shard {self.shard}: {pairs.name} has {total}, so this shard is empty; use fewer shards"
            )
        if count > 1:
            console.info(f"shard {index} of {count}: {len(selected)} of {total}")
        return replace(pairs, pairs=selected)

    def _print_notes(self, pairs: PairList) -> None:
        for note in pairs.notes:
            console.info(note)
        for folder, names in zip((self.before_dir, self.after_dir), pairs.unmatched, strict=True):
            if names:
                remainder = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
                console.warning(
                    f"{pluralize(len(names), 'image')} in {folder} without a partner of the same name: "
                    f"{', '.join(Path(name).name for name in names[:_LISTED])}{remainder}"
                )


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
            if getattr(self, name) is not None:
                if many:
                    raise typer.BadParameter("is for one pair; a list has its own", param_hint=_flag(name))
                check_date(getattr(self, name), _flag(name))


_POLYGONS = {
    "changed": ("changed", "true", "1", "yes", "on", "t", "y"),
    "all": ("all",),
    "": ("no", "false", "0", "off", "f", "n"),
}


def _parse_polygons(value: object) -> str | None:
    """Chips whose polygons are drawn: "changed" or "all"; None for none.

    The words of a boolean flag, as in a configuration file, mean "changed" or none. Raises: BadParameter.
    """
    for chips, words in _POLYGONS.items():
        if str(value).strip().lower() in words:
            return chips or None
    raise typer.BadParameter(f"{value!r} is not changed or all")


_POLYGONS_WORDS = {"--polygons": "--polygons=changed", "--no-polygons": "--polygons=no"}


class PolygonsCommand(ProjCommand):
    """Command whose --polygons takes a value only where the next word is `changed` or `all`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after giving --polygons and --no-polygons their value."""
        end = args.index("--") if "--" in args else len(args)
        words: list[str] = []
        for previous, word in pairwise(["", *args[:end]]):
            if previous == "--polygons" and word in ("changed", "all"):
                words[-1] = f"--polygons={word}"
            else:
                words.append(_POLYGONS_WORDS.get(word, word))
        return super().parse_args(ctx, [*words, *args[end:]])


@dataclass(frozen=True, kw_only=True)
class OutlineFlags:
    """Polygons made of probabilities: threshold, smallest area, outlines."""

    min_area: Annotated[
        float | None,
        flag(
            "--min-area",
            panel=MASKS,
            metavar="M2",
            min=0,
            show_default="three mask pixels",
            help="Smallest area of a polygon; smaller ones are dropped.",
        ),
    ] = None
    simplify: Annotated[
        float | None,
        flag(
            "--simplify",
            panel=MASKS,
            metavar="PX",
            min=0,
            show_default="half a mask pixel, which is 2 px in chips of 256",
            help="Tolerance for simplifying outlines, in pixels; 0 keeps every vertex.",
        ),
    ] = None
    mask_threshold: Annotated[
        float,
        flag(
            "--mask-threshold",
            panel=MASKS,
            metavar="P",
            min=0.01,
            max=1,
            help="Lowest probability of a changed pixel.",
        ),
    ] = 0.5

    def check_numbers(self) -> None:
        """Raises: BadParameter for a number that is not finite."""
        for name in ("min_area", "simplify", "mask_threshold"):
            if not math.isfinite(getattr(self, name) or 0):
                raise typer.BadParameter(
                    f"{getattr(self, name)} is not a finite number", param_hint=_flag(name)
                )

    def change_options(self, **others: Any) -> ChangeOptions:
        """Options of these flags, and others of `ChangeOptions`."""
        from deltavlm.pipeline.changes import ChangeOptions

        return ChangeOptions(
            threshold=self.mask_threshold, min_area_m2=self.min_area, simplify_px=self.simplify, **others
        )


@dataclass(frozen=True, kw_only=True)
class MaskFlags(OutlineFlags):
    """Polygons and rasters made of the model's change masks."""

    polygons: Annotated[
        str | None,
        flag(
            "--polygons",
            "--no-polygons",
            panel=MASKS,
            parser=_parse_polygons,
            metavar="[changed|all]",
            help="Write a layer of change polygons with class, area and score: of the chips called changed, "
            "or of all. With polygons or rasters, chips overlap by an eighth unless --overlap or --stride is "
            "given.",
        ),
    ] = None
    mask: Annotated[
        str | None,
        flag(
            "--mask",
            panel=MASKS,
            metavar="FILE.tif",
            help="Write a raster of classes: 0 none, 1 building, 2 road, 3 other, 255 nodata.",
        ),
    ] = None
    probability: Annotated[
        str | None,
        flag(
            "--probability",
            panel=MASKS,
            metavar="FILE.tif",
            help="Write a raster of probabilities, one band each for building, road and other.",
        ),
    ] = None

    def check(self, *, into_folder: bool) -> None:
        """Raises: BadParameter or ConfigError where the flags do not go together."""
        for name in ("min_area", "simplify"):
            if getattr(self, name) is not None and not self.polygons:
                raise typer.BadParameter(
                    "is for --polygons; add that, or leave it out", param_hint=_flag(name)
                )
        self.check_numbers()
        from deltavlm.files import names_folder

        for name in ("mask", "probability"):
            text = getattr(self, name)
            if into_folder and text is not None and not names_folder(text):
                raise ConfigError(
                    f"--{name} {text}: is one file for many pairs; name a folder, such as --{name} rasters/"
                )

    def options(self) -> ChangeOptions:
        return self.change_options(chips="all" if self.polygons == "all" else "changed")


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Engine: this process, or a Ray cluster."""

    engine: Annotated[
        Literal["local", "ray"],
        flag(
            "--engine",
            panel=CLUSTER,
            help="Where the model runs: in this process, or on a Ray cluster with the same answers (needs "
            "pip install '.[ray]' in a clone of deltavlm).",
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
                        "is for --engine ray; add that, or leave it out", param_hint=_flag(name)
                    )
            return
        from importlib.util import find_spec

        if find_spec("ray") is None:
            raise ConfigError(
                "--engine ray: Ray is not installed; pip install '.[ray]' in a clone of deltavlm, "
                "also on the workers"
            )

    @contextmanager
    def start(self, model: ModelFlags, rasters: RasterFlags) -> Iterator[Engine]:
        """Engine with its model loaded; prints which model it is."""
        if self.engine == "local":
            from deltavlm.pipeline.engine import LocalEngine

            change_model = model.load()
            run_metrics.set_model(change_model)
            yield LocalEngine(change_model)
            return
        from deltavlm.cluster.session import start_cluster
        from deltavlm.cluster.worker import load_model_on_worker

        start = time.monotonic()
        runtime = model.runtime_options()
        with start_cluster(
            partial(load_model_on_worker, model.model, runtime),
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


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
                threshold=self.threshold,
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
        )

    def check_model(self, job: AnalyzeJob) -> DeltaVLMConfig:
        """Configuration of the model, which is not loaded. Raises: InputError or ConfigError."""
        from deltavlm.pipeline.mask_codec import check_mask_head

        config = self.model.read_config()
        if job.options.masks:
            check_mask_head(config)
        if self.engine.engine == "local":
            self.model.check_device()
        return config
