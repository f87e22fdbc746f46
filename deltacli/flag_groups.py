"""Groups of flags that commands share; `@grouped` turns a group into flat parameters for Typer.

A group is a frozen dataclass whose fields are flags; its methods convert them to options of the library.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from deltacli import options, parsing
from deltacli.console import console, print_notes, warn_about_scale
from deltacli.options import CHIPS, MODEL, OUTPUT, RASTERS, flag, threads_flag
from deltavlm.errors import InputError

if TYPE_CHECKING:
    from deltavlm.cluster.worker import LoadModel
    from deltavlm.files import NamedPath
    from deltavlm.geo.grid import Chip
    from deltavlm.geo.pair import PairReader, ReadOptions
    from deltavlm.model.config import RuntimeOptions, ScoreCalibration
    from deltavlm.model.interface import ChangeModel
    from deltavlm.model.kinds import ModelSpec

__all__ = [
    "AlignmentFlags",
    "At",
    "CalibratedModelFlags",
    "ChipFlags",
    "ChipGridFlags",
    "CommonFlags",
    "EvidenceModelFlags",
    "ModelFlags",
    "OutputFlags",
    "RasterFlags",
    "WindowBbox",
    "WindowFlags",
    "given_flags",
    "grouped",
    "open_rasters",
]

T = TypeVar("T")


def grouped(command: Callable[..., T]) -> Callable[..., T]:
    """Decorate a command: replace each parameter that is a group by the flags of the group."""
    flat: list[Parameter] = []
    groups: dict[str, tuple[type[Any], list[str]]] = {}
    hints = get_type_hints(command, include_extras=True)
    for parameter in signature(command).parameters.values():
        kind = hints[parameter.name]
        if not (isinstance(kind, type) and is_dataclass(kind)):
            flat.append(parameter.replace(annotation=kind, kind=Parameter.KEYWORD_ONLY))
            continue
        inner = get_type_hints(kind, include_extras=True)
        groups[parameter.name] = (kind, [field.name for field in fields(kind)])
        flat += [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=inner[field.name])
            for field in fields(kind)
        ]

    @wraps(command)
    def run(**values: Any) -> T:
        packed = {
            name: kind(**{key: values.pop(key) for key in keys}) for name, (kind, keys) in groups.items()
        }
        return command(**values, **packed)

    run.__signature__ = Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


def given_flags(*groups: Any, ignored: Collection[str] = ()) -> list[str]:
    """Flags of groups that have another value than their default; those of `ignored` fields are left out."""
    return [
        parsing.flag_name({"resume": "no_resume"}.get(field.name, field.name))
        for group in groups
        for field in fields(group)
        if field.name not in ignored and getattr(group, field.name) != field.default
    ]


@dataclass(frozen=True, kw_only=True)
class CommonFlags:
    """Flags of every command: file of defaults, verbosity, format of messages; they act while parsed."""

    config: options.ConfigFile = None
    verbose: options.Verbose = 0
    quiet: options.Quiet = False
    progress: options.ShowProgress = None
    color: options.ColorMode = None
    log_format: options.LogFormatName = None


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """Output file, its layers, and how a run resumes."""

    output: options.Output = None
    overwrite: options.Overwrite = False
    layer: Annotated[
        Literal["chips", "locations", "changes", "pairs"] | None,
        flag(
            "--layer",
            panel=OUTPUT,
            show_default="all in a GeoPackage, else chips",
            help="Write only this layer.",
        ),
    ] = None
    dry_run: options.DryRun = False
    resume: Annotated[
        bool,
        flag(
            "--resume/--no-resume",
            panel=OUTPUT,
            help="Resume an interrupted run into this output, or start over.",
        ),
    ] = True
    retry_failed: Annotated[
        bool,
        flag(
            "--retry-failed",
            panel=OUTPUT,
            help="Retry the pairs and chips that failed, and rewrite the output.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Model, device and decoding."""

    model: Annotated[
        str,
        flag(
            *("--model", "-m"),
            panel=MODEL,
            metavar="NAME|FOLDER|hf:MODEL|openai:URL#MODEL",
            help="Model to ask: by name, a folder, a vision-language model of the Hub (hf:OWNER/NAME or "
            "hf:FOLDER, with an adapter hf:...+ADAPTER), or on a server.",
        ),
    ] = "nano"
    device: Annotated[
        str, flag("--device", panel=MODEL, metavar="auto|cpu|cuda|mps", help="Device of the model.")
    ] = "auto"
    threads: Annotated[int | None, threads_flag(MODEL)] = None
    runtime: options.Runtime = "auto"
    dtype: options.Dtype = "auto"
    decode: options.Decode = "auto"
    beams: options.Beams = None
    prompt_style: options.PromptStyle = "auto"
    quantize: options.Quantize = "none"
    offline: Annotated[
        bool, flag("--offline", panel=MODEL, help="Use only models that were downloaded before.")
    ] = False
    trust_remote_code: Annotated[
        str | None,
        flag(
            "--trust-remote-code",
            panel=MODEL,
            metavar="OWNER/NAME@COMMIT",
            help="Let the Python code in this repository of an hf: model run on this machine.",
        ),
    ] = None
    requests: options.Requests = 4
    timeout: options.Timeout = 300.0
    yes: options.Yes = False

    def runtime_options(self) -> RuntimeOptions:
        """Options for loading the model. Raises: BadParameter for an unknown device."""
        from deltavlm.model.config import RuntimeOptions

        return RuntimeOptions(
            device=parsing.check_device(self.device),
            threads=self.threads,
            runtime=self.runtime,
            dtype=self.dtype,
            decode=None if self.decode == "auto" else self.decode,
            beams=self.beams,
            prompt_style=None if self.prompt_style == "auto" else self.prompt_style,
            quantize=None if self.quantize == "none" else self.quantize,
            calibration=self.read_calibration(),
            offline=self.offline,
            trust_remote_code=self.trust_remote_code,
            requests=self.requests,
            timeout_s=self.timeout,
            allow_upload=self.yes,
        )

    def loading_options(self) -> RuntimeOptions:
        """Options for loading the model now: a person is told, and asked on a terminal, before pictures are
        sent to another machine.

        Raises: InputError where nobody agrees.
        """
        options, specs = self.runtime_options(), (self.read_spec(), self.read_evidence_spec())
        address = " and ".join(spec.sends_to for spec in specs if spec is not None and spec.sends_to)
        if not address:
            return options
        notice = f"the pictures are sent to {address}, which is not this machine"
        if options.allow_upload:
            console.info(notice)
        elif not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise InputError(f"{notice}; --yes agrees to that")
        elif not typer.confirm(f"{notice[0].upper()}{notice[1:]}. Send them?", err=True):
            raise InputError("nothing was sent; choose a model on this machine, such as nano")
        return replace(options, allow_upload=True)

    def read_calibration(self) -> ScoreCalibration | None:
        """Calibration to somebody's own chips; none in this group."""
        return None

    def read_spec(self) -> ModelSpec:
        """Read what is known of the model with these flags; no weights are loaded.

        Raises: InputError where there is no such model, or it does not support a flag.
        """
        from deltavlm.model.kinds import read_spec

        return read_spec(self.model, self.runtime_options())

    @property
    def evidence_name(self) -> str | None:
        """Name of the evidence model; none in this group."""
        return None

    @property
    def names(self) -> list[str]:
        """Names of the model, and of the evidence model if there is one."""
        return [name for name in (self.model, self.evidence_name) if name is not None]

    def read_evidence_spec(self) -> ModelSpec | None:
        """Read what is known of the evidence model; None without one.

        Raises: InputError where there is no such model, ConfigError where the model to ask cannot be told.
        """
        if self.evidence_name is None:
            return None
        from deltavlm.pipeline.evidence import check_evidence

        return check_evidence(self.model, self.evidence_name)

    def files(self) -> list[NamedPath]:
        """Files of the models' folders; none of one that has no folder here."""
        return [file for name in self.names for file in _files_of_model(name)]

    def check_device(self) -> None:
        """Raises: InputError where the device or a package is missing, or does not support a flag."""
        from deltavlm.extras import require_torch
        from deltavlm.model.folder import find_folder
        from deltavlm.model.kinds import kind_of
        from deltavlm.model.runtime import pick_runtime

        runtime, kind = self.runtime_options(), kind_of(self.model)
        if not kind:
            pick_runtime(find_folder(self.model), runtime)
        elif kind == "hf":
            require_torch(self.model)
        if runtime.device not in ("auto", "cpu") or runtime.quantize:  # else not worth torch's import time
            from deltavlm.model.device import resolve_device

            resolve_device(runtime)

    def load(self, *, any_scale: bool = False) -> ChangeModel:
        """Load the model, and its evidence model, and print which they are and how long that took.

        any_scale: counts and cells are evidence far from the scale of the evidence model's training too.
        """
        runtime = self.loading_options()
        if self.evidence_name is None:
            return _load_model(self.model, runtime)
        from deltavlm.pipeline.evidence import EvidencedModel, evidence_options

        evidence_model = _load_model(self.evidence_name, evidence_options(runtime))
        model = _load_model(self.model, replace(runtime, calibration=None))  # which is of both together
        return EvidencedModel(model, evidence_model, any_scale=any_scale, calibration=runtime.calibration)

    def load_on_worker(self, runtime: RuntimeOptions, *, any_scale: bool = False) -> LoadModel:
        """Function by which a worker of a cluster does what `load` does, with the `loading_options`."""
        from deltavlm.cluster.worker import LoadEvidencedModel, load_model_on_worker
        from deltavlm.pipeline.evidence import evidence_options

        if self.evidence_name is None:
            return partial(load_model_on_worker, self.model, runtime)
        load_model = partial(load_model_on_worker, self.model, replace(runtime, calibration=None))
        load_evidence = partial(load_model_on_worker, self.evidence_name, evidence_options(runtime))
        return LoadEvidencedModel(load_model, load_evidence, any_scale, runtime.calibration)

    def load_for(self, reader: PairReader, chip: Chip) -> ChangeModel:
        """Load the model for a single chip, and warn where its scale is far from that of the training."""
        model = self.load()
        warn_about_scale(reader, model, chip.size)
        return model


def _load_model(name: str, options: RuntimeOptions) -> ChangeModel:
    from deltavlm import load_model

    started = time.monotonic()
    with console.waiting(f"loading the model {name}"):
        model: ChangeModel = load_model(name, options)
    load_s = time.monotonic() - started
    console.info(f"model {model.name} ({model.fingerprint}) on {model.device}, loaded in {load_s:.1f} s")
    return model


def _files_of_model(name: str) -> list[NamedPath]:
    from deltavlm.model.folder import find_folder
    from deltavlm.model.kinds import kind_of

    if kind_of(name):
        return []
    try:
        return [("a file of the model", path) for path in find_folder(name).iterdir() if path.is_file()]
    except (InputError, OSError):  # reported when the model is loaded, perhaps on another machine
        return []


@dataclass(frozen=True, kw_only=True)
class EvidenceModelFlags(ModelFlags):
    """Model, and the other model whose evidence it is told."""

    evidence: Annotated[
        str | None,
        flag(
            "--evidence",
            panel=MODEL,
            metavar="NAME|FOLDER",
            help="Model that sees each chip first, such as nano: the model to ask is told its counts, cells "
            "and probability of change. Masks and --cascade are then those of this model.",
        ),
    ] = None

    @property
    def evidence_name(self) -> str | None:
        return self.evidence


@dataclass(frozen=True, kw_only=True)
class CalibratedModelFlags(EvidenceModelFlags):
    """Model, its evidence model, and the calibration of its yes/no score."""

    calibration: options.Calibration = None

    def read_calibration(self) -> ScoreCalibration | None:
        """Calibration in the file. Raises: InputError where it is none."""
        if self.calibration is None:
            return None
        from deltavlm.model.calibration import read_calibration

        return read_calibration(self.calibration)

    def files(self) -> list[NamedPath]:
        return [*super().files(), *parsing.named_files({"--calibration": self.calibration})]


@dataclass(frozen=True, kw_only=True)
class ChipGridFlags:
    """Size and overlap of chips, and the area that they cover."""

    chip_size: options.ChipSize = 256
    overlap: options.Overlap = None
    stride: options.Stride = None
    bbox: options.Bbox = None
    bbox_crs: options.BboxCrs = "EPSG:4326"
    aoi: options.Aoi = None

    @property
    def overlap_px(self) -> int:
        """Overlap of neighbouring chips. Raises: BadParameter."""
        return parsing.resolve_overlap(self.chip_size, self.overlap, self.stride)


@dataclass(frozen=True, kw_only=True)
class ChipFlags(ChipGridFlags):
    """Chip grid, and which of its chips the model is asked about."""

    limit: Annotated[
        int | None, flag("--limit", panel=CHIPS, metavar="N", min=1, help="Only the first N chips.")
    ] = None
    max_nodata: Annotated[
        float,
        flag(
            "--max-nodata",
            panel=CHIPS,
            metavar="SHARE",
            min=0,
            max=1,
            help="Skip chips with a larger share of nodata; their status is nodata.",
        ),
    ] = 0.5
    any_scale: Annotated[
        bool,
        flag(
            "--any-scale",
            panel=CHIPS,
            help="Keep counts, cells and classes where pixels are more than 8 times coarser or finer than "
            "in the model's training; otherwise they are left out there.",
        ),
    ] = False
    on_error: Annotated[
        Literal["skip", "fail"],
        flag(
            "--on-error",
            panel=CHIPS,
            help="Chips that cannot be read or answered: record the status, or stop the run.",
        ),
    ] = "skip"


@dataclass(frozen=True, kw_only=True)
class AlignmentFlags:
    """Pixel grid of a pair, and how its files are opened."""

    align: options.Align = "auto"
    gsd: options.Gsd = None
    allow_no_crs: options.AllowNoCrs = False
    allow_vrt: options.AllowVrt = False
    gdal_config: options.GdalConfig = None

    def read_options(
        self, bbox: str | None = None, bbox_crs: str = "EPSG:4326", aoi: Path | None = None
    ) -> ReadOptions:
        """Options for opening a pair. Sets GDAL's settings, so call it before GDAL starts.

        Raises: BadParameter.
        """
        settings = self._settings() | {"bbox": parsing.parse_bbox(bbox), "bbox_crs": bbox_crs, "aoi": aoi}
        os.environ.update(parsing.parse_gdal_config(self.gdal_config))  # GDAL reads them when it starts

        from deltavlm.geo.pair import ReadOptions

        return ReadOptions(**settings)

    def _settings(self) -> dict[str, Any]:
        """Fields of `ReadOptions`."""
        return {
            "align": self.align,
            "gsd_m": parsing.check_gsd(self.gsd),
            "allow_no_crs": self.allow_no_crs,
            "allow_vrt": self.allow_vrt,
        }


@dataclass(frozen=True, kw_only=True)
class _PixelFlags:
    """Bands, scaling to 8 bit and nodata; first in the help of `RasterFlags`."""

    bands: Annotated[
        str | None,
        flag(
            *("--bands", "-b", "--bidx"),
            panel=RASTERS,
            metavar="3,2,1",
            show_default="RGB by colour, else 1,2,3",
            help="Red, green and blue band of both images.",
        ),
    ] = None
    before_bands: Annotated[
        str | None, flag("--before-bands", panel=RASTERS, metavar="3,2,1", help="The same for BEFORE.")
    ] = None
    after_bands: Annotated[
        str | None, flag("--after-bands", panel=RASTERS, metavar="3,2,1", help="The same for AFTER.")
    ] = None
    scale: Annotated[
        str,
        flag(
            "--scale",
            panel=RASTERS,
            metavar="SPEC",
            help="Scaling to 8 bit: auto, none, LO,HI, pct:LO,HI or per-date. auto leaves 8 bit unchanged.",
        ),
    ] = "auto"
    nodata: Annotated[
        float | None,
        flag(
            "--nodata",
            panel=RASTERS,
            metavar="VALUE",
            show_default="from the files",
            help="Nodata value.",
        ),
    ] = None
    alpha_band: Annotated[
        Literal["auto", "none"],
        flag("--alpha-band", panel=RASTERS, help="none: treat a band marked as alpha as data."),
    ] = "auto"
    cloud_mask: Annotated[
        str | None,
        flag(
            "--cloud-mask",
            panel=RASTERS,
            metavar="FILE[:KIND][=LIST]",
            help="Raster of pixels that are nodata in both images: FILE:scl (Sentinel-2), "
            "FILE:qa_pixel=cloud,cloud_shadow (Landsat), FILE:bits=3,4, FILE=3,8-10, or FILE for all but 0.",
        ),
    ] = None
    before_cloud_mask: Annotated[
        str | None,
        flag("--before-cloud-mask", panel=RASTERS, metavar="FILE...", help="The same for BEFORE."),
    ] = None
    after_cloud_mask: Annotated[
        str | None,
        flag("--after-cloud-mask", panel=RASTERS, metavar="FILE...", help="The same for AFTER."),
    ] = None
    qa_band: Annotated[
        str | None,
        flag(
            "--qa-band",
            panel=RASTERS,
            metavar="BAND...",
            help="The same from a band of each image, by number or description: SCL, 5:scl, QA_PIXEL=cloud.",
        ),
    ] = None
    resampling: options.Resampling = "bilinear"
    register: Annotated[
        bool,
        flag(
            "--register",
            panel=RASTERS,
            help="Move AFTER onto BEFORE where their pixels show it to lie up to 8 px off.",
        ),
    ] = False
    match: Annotated[
        Literal["none", "histogram"],
        flag(
            "--match",
            panel=RASTERS,
            help="histogram: a gain and an offset for each band of AFTER give unchanged ground the mean and "
            "contrast that it has in BEFORE.",
        ),
    ] = "none"


@dataclass(frozen=True, kw_only=True)
class RasterFlags(AlignmentFlags, _PixelFlags):
    """Everything about how pixels are read."""

    def _settings(self) -> dict[str, Any]:
        bands = parsing.parse_bands("--bands", self.bands)
        return super()._settings() | {
            "before_bands": parsing.parse_bands("--before-bands", self.before_bands) or bands,
            "after_bands": parsing.parse_bands("--after-bands", self.after_bands) or bands,
            "scale": self.scale,
            "nodata": self.nodata,
            "alpha_band": self.alpha_band,
            "before_cloud_mask": self.before_cloud_mask or self.cloud_mask,
            "after_cloud_mask": self.after_cloud_mask or self.cloud_mask,
            "qa_band": self.qa_band,
            "resampling": self.resampling,
            "register": self.register,
            "match": self.match,
        }


At = Annotated[
    str | None,
    flag(
        "--at",
        panel=CHIPS,
        metavar="LON,LAT",
        help="The chip around this point; pixel coordinates without a CRS.",
    ),
]
WindowBbox = Annotated[
    str | None,
    flag(
        "--bbox",
        panel=CHIPS,
        metavar="XMIN,YMIN,XMAX,YMAX",
        help="This box as one image; with ask --all-chips, the chips that touch it.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class WindowFlags:
    """Window of a pair that `ask` and `chat` show the model as one image."""

    at: At = None
    bbox: WindowBbox = None
    bbox_crs: options.BboxCrs = "EPSG:4326"
    chip_size: options.ChipSize = 256

    @property
    def point(self) -> tuple[float, float] | None:
        """Longitude and latitude of --at. Raises: BadParameter."""
        return None if self.at is None else parsing.parse_point(self.at)

    def select(self, reader: PairReader) -> Chip:
        """Select the window. Raises: ConfigError where the pair or the box is too large for one image."""
        from deltavlm.geo.chips import select_chip

        return select_chip(reader, self.chip_size, self.point)


@contextmanager
def open_rasters(before: str, after: str, window: WindowFlags, rasters: RasterFlags) -> Iterator[PairReader]:
    """Open the pair that these flags describe, and print the notes about it. Raises: BadParameter."""
    before, after = (
        parsing.check_location(name, text) for name, text in (("BEFORE", before), ("AFTER", after))
    )
    if window.point is not None and window.bbox is not None:
        raise typer.BadParameter("cannot be combined with --bbox", param_hint="--at")
    read_options = rasters.read_options(window.bbox, window.bbox_crs)

    from deltavlm.geo.pair import RasterPair, open_pair

    with open_pair(RasterPair(before, after), read_options) as reader:
        print_notes(reader)
        yield reader
