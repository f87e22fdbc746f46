"""Flags in groups: a command takes a group as one argument, and `@grouped` lays it out flat for Typer.

A group is a frozen dataclass whose fields are flags; its methods turn their text into what the library wants.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from deltacli import options, parsing
from deltacli.console import console, print_notes
from deltacli.options import CHIPS, MODEL, OUTPUT, RASTERS, flag, threads_flag
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.geo.grid import Chip
    from deltavlm.geo.pair import PairReader, ReadOptions
    from deltavlm.model.config import RuntimeOptions
    from deltavlm.model.interface import ChangeModel

__all__ = [
    "ChipFlags",
    "CommonFlags",
    "ModelFlags",
    "OutputFlags",
    "RasterFlags",
    "WindowFlags",
    "grouped",
    "open_rasters",
]

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
class CommonFlags:
    """What is said, and how; they act as soon as they are read."""

    config: options.ConfigFile = None
    verbose: options.Verbose = 0
    quiet: options.Quiet = False
    progress: options.ShowProgress = None
    color: options.ColorMode = None
    log_format: options.LogFormatName = None


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

    model: Annotated[str, flag("--model", "-m", panel=MODEL, metavar="NAME|FOLDER", help="Model to ask.")] = (
        "nano"
    )
    device: Annotated[
        str, flag("--device", panel=MODEL, metavar="auto|cpu|cuda|mps", help="Where it runs.")
    ] = "auto"
    threads: Annotated[int | None, threads_flag(MODEL)] = None
    dtype: options.Dtype = "auto"
    decode: options.Decode = "auto"
    beams: options.Beams = None
    prompt_style: options.PromptStyle = "auto"
    quantize: options.Quantize = "none"

    def runtime_options(self) -> RuntimeOptions:
        """Raises: BadParameter for a device that there is not."""
        from deltavlm.model.config import RuntimeOptions

        return RuntimeOptions(
            device=parsing.check_device(self.device),
            threads=self.threads,
            dtype=self.dtype,
            decode=None if self.decode == "auto" else self.decode,
            beams=self.beams,
            prompt_style=None if self.prompt_style == "auto" else self.prompt_style,
            quantize=None if self.quantize == "none" else self.quantize,
        )

    def check_device(self) -> None:
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
        console.info(f"model {model.name} ({model.fingerprint}) on {model.device}, loaded in {load_s:.1f} s")
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
        return parsing.resolve_overlap(self.chip_size, self.overlap, self.stride)


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
        both = parsing.parse_bands("--bands", self.bands)
        read: dict[str, Any] = {
            "before_bands": parsing.parse_bands("--before-bands", self.before_bands) or both,
            "after_bands": parsing.parse_bands("--after-bands", self.after_bands) or both,
            "gsd_m": parsing.check_gsd(self.gsd),
            "bbox": parsing.parse_bbox(bbox),
        }
        os.environ.update(parsing.parse_gdal_config(self.gdal_config))  # it reads them there when it starts

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


At = Annotated[
    str | None,
    flag("--at", panel=CHIPS, metavar="LON,LAT", help="The chip around this point; pixels without a CRS."),
]
WindowBbox = Annotated[
    str | None,
    flag(
        "--bbox",
        panel=CHIPS,
        metavar="XMIN,YMIN,XMAX,YMAX",
        help="This box as one picture; with ask --all-chips, the chips that touch it.",
    ),
]
WHOLE = 2  # a pair of at most so many chips' width and height is asked whole
SMALL_PX = 64
LARGEST_PX = 4096  # of a box that is made one picture


@dataclass(frozen=True, kw_only=True)
class WindowFlags:
    """Where to look in a large pair."""

    at: At = None
    bbox: WindowBbox = None
    bbox_crs: options.BboxCrs = "EPSG:4326"
    chip_size: options.ChipSize = 256

    @property
    def point(self) -> tuple[float, float] | None:
        return None if self.at is None else parsing.parse_point(self.at)

    def chip(self, reader: PairReader) -> Chip:
        """Raises: ConfigError when the pair is too large to be one picture and no place is named."""
        from deltavlm.geo.windows import around, boxed, whole

        if self.point is not None:
            return around(reader, *self.point, self.chip_size)
        if self.bbox is not None:
            chip = boxed(reader, self.chip_size)
            if min(chip.window.width, chip.window.height) < SMALL_PX:
                console.warning(
                    f"the box is {chip.window.width} x {chip.window.height} px, too small to see much; "
                    "--at takes the surroundings of a point"
                )
            if chip.size > LARGEST_PX:
                raise ConfigError(
                    f"--bbox is {chip.window.width} x {chip.window.height} px, and one picture is at most "
                    f"{LARGEST_PX}; make it smaller"
                )
            return chip
        if max(reader.width, reader.height) > WHOLE * self.chip_size:
            raise ConfigError(
                f"the pair is {reader.width} x {reader.height} px, too large for one picture "
                f"({WHOLE * self.chip_size} px): name a place with --at LON,LAT or --bbox; ask "
                "--all-chips asks everywhere"
            )
        return whole(reader, self.chip_size)


@contextmanager
def open_rasters(before: str, after: str, place: WindowFlags, rasters: RasterFlags) -> Iterator[PairReader]:
    """The pair, with what was found of it said."""
    places = parsing.check_location("BEFORE", before), parsing.check_location("AFTER", after)
    if place.point is not None and place.bbox is not None:
        raise typer.BadParameter("cannot be combined with --bbox", param_hint="--at")
    read_options = rasters.read_options(place.bbox, place.bbox_crs)

    from deltavlm.geo.pair import RasterPair, open_pair

    with open_pair(RasterPair(*places), read_options) as reader:
        print_notes(reader)
        yield reader
