"""Flags in groups: a command takes a group as one argument, and `@grouped` lays it out flat for Typer.

A group is a frozen dataclass whose fields are flags; its methods turn their text into what the library wants.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from deltacli import options, values
from deltacli.console import voice
from deltacli.options import ASK, CHIPS, OUTPUT, RASTERS, flag, threads_flag

if TYPE_CHECKING:
    from deltavlm.geo.pair import ReadOptions
    from deltavlm.model.config import RuntimeOptions
    from deltavlm.model.interface import ChangeModel

__all__ = ["ChipFlags", "ModelFlags", "OutputFlags", "RasterFlags", "TalkFlags", "grouped"]

T = TypeVar("T")


def grouped(command: Callable[..., T]) -> Callable[..., T]:
    """The command with each parameter that is a group replaced by the group's flags, in its place."""
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
    def run(**given: Any) -> T:
        packed = {
            name: kind(**{key: given.pop(key) for key in keys}) for name, (kind, keys) in groups.items()
        }
        return command(**given, **packed)

    run.__signature__ = Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


@dataclass(frozen=True, kw_only=True)
class TalkFlags:
    """What is said, and how; they act as soon as they are read."""

    config: options.ConfigFile = None
    verbose: options.Verbose = 0
    quiet: options.Quiet = False
    progress: options.ShowProgress = None
    color: options.ColorWhen = None
    log_format: options.LogFormatWhich = None


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """Where features go."""

    output: options.Output = None
    overwrite: options.Overwrite = False
    layer: Annotated[
        Literal["chips", "locations", "changes", "pairs"] | None,
        flag(
            "--layer",
            panel=OUTPUT,
            show_default="all in a GeoPackage, else chips",
            help="Write this layer alone.",
        ),
    ] = None
    dry_run: options.DryRun = False
    resume: Annotated[
        bool,
        flag(
            "--resume/--no-resume",
            panel=OUTPUT,
            help="Go on where an interrupted run into this output stopped, or begin anew.",
        ),
    ] = True
    retry_failed: Annotated[
        bool,
        flag(
            "--retry-failed",
            panel=OUTPUT,
            help="Try again the pairs and chips that failed, and write the output anew.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model, and how it runs."""

    model: Annotated[str, flag("--model", "-m", panel=ASK, metavar="NAME|FOLDER", help="Model to ask.")] = (
        "nano"
    )
    device: Annotated[
        str, flag("--device", panel=ASK, metavar="auto|cpu|cuda|mps", help="Where it runs.")
    ] = "auto"
    threads: Annotated[int | None, threads_flag(ASK)] = None
    dtype: options.Dtype = "auto"
    decode: options.Decode = "auto"
    beams: options.Beams = None
    prompt_style: options.PromptStyle = "auto"
    quantize: options.Quantize = "none"

    def runtime_options(self) -> RuntimeOptions:
        """Raises: BadParameter for a device that there is not."""
        from deltavlm.model.config import RuntimeOptions

        return RuntimeOptions(
            device=values.device_of(self.device),
            threads=self.threads,
            dtype=self.dtype,
            decode=None if self.decode == "auto" else self.decode,
            beams=self.beams,
            prompt_style=None if self.prompt_style == "auto" else self.prompt_style,
            quantize=None if self.quantize == "none" else self.quantize,
        )

    def check_place(self) -> None:
        """Raises: InputError where the device is not there, or cannot do what is wished."""
        runtime = self.runtime_options()
        if runtime.device not in ("auto", "cpu") or runtime.quantize:  # else not worth torch's seconds
            from deltavlm.model.predictor import resolve_device

            resolve_device(runtime)

    def load(self) -> tuple[ChangeModel, float]:
        """The model, and how many seconds it took; says which it is."""
        started = time.monotonic()
        model = _load(self.model, self.runtime_options())
        load_s = time.monotonic() - started
        voice.say(f"model {model.name} ({model.fingerprint}) on {model.device}, loaded in {load_s:.1f} s")
        return model, load_s


def _load(name: str, runtime: RuntimeOptions) -> ChangeModel:
    from deltavlm.model.predictor import load_model

    return load_model(name, runtime)


@dataclass(frozen=True, kw_only=True)
class ChipFlags:
    """How the ground is cut, and which of it is asked about."""

    chip_size: options.ChipSize = 256
    overlap: options.Overlap = None
    stride: options.Stride = None
    bbox: options.Bbox = None
    bbox_crs: options.BboxCrs = "EPSG:4326"
    aoi: options.Aoi = None
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
            help="Chips with a larger share without data are not asked.",
        ),
    ] = 0.5
    on_error: Annotated[
        Literal["skip", "fail"],
        flag(
            "--on-error",
            panel=CHIPS,
            help="A chip that cannot be read or answered: write its status, or stop.",
        ),
    ] = "skip"

    @property
    def overlap_px(self) -> int:
        return values.overlap_of(self.chip_size, self.overlap, self.stride)


@dataclass(frozen=True, kw_only=True)
class RasterFlags:
    """How pixels are read."""

    bands: Annotated[
        str | None,
        flag(
            *("--bands", "-b", "--bidx"),
            panel=RASTERS,
            metavar="3,2,1",
            show_default="RGB by colour, else 1,2,3",
            help="Red, green and blue band of both.",
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
            help="To 8 bit: auto, none, LO,HI, pct:LO,HI or per-date. With auto, 8 bit stays as it is.",
        ),
    ] = "auto"
    nodata: Annotated[
        float | None,
        flag(
            "--nodata",
            panel=RASTERS,
            metavar="VALUE",
            show_default="as the files say",
            help="Pixel value that means no data.",
        ),
    ] = None
    alpha_band: Annotated[
        Literal["auto", "none"],
        flag("--alpha-band", panel=RASTERS, help="none: a band marked as alpha is data."),
    ] = "auto"
    align: options.Align = "auto"
    resampling: options.Resampling = "bilinear"
    gsd: options.Gsd = None
    allow_no_crs: options.AllowNoCrs = False
    allow_vrt: options.AllowVrt = False
    gdal_config: options.GdalConfig = None

    def read_options(
        self, bbox: str | None = None, bbox_crs: str = "EPSG:4326", aoi: Path | None = None
    ) -> ReadOptions:
        """How to read, and of which ground. Sets GDAL's settings, so call it before GDAL starts.

        Raises: BadParameter for text that cannot be read.
        """
        both = values.bands_of("--bands", self.bands)
        read: dict[str, Any] = {
            "before_bands": values.bands_of("--before-bands", self.before_bands) or both,
            "after_bands": values.bands_of("--after-bands", self.after_bands) or both,
            "gsd_m": values.gsd_of(self.gsd),
            "bbox": values.bbox_of(bbox),
        }
        os.environ.update(values.gdal_settings_of(self.gdal_config))  # it reads them there when it starts

        from deltavlm.geo.pair import ReadOptions

        return ReadOptions(
            align=self.align,
            resampling=self.resampling,
            scale=self.scale,
            nodata=self.nodata,
            alpha_band=self.alpha_band,
            allow_no_crs=self.allow_no_crs,
            allow_vrt=self.allow_vrt,
            bbox_crs=bbox_crs,
            aoi=aoi,
            **read,
        )
