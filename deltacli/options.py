"""Registry of the flags that commands share, and their definitions: one `Annotated` per flag.

A letter means the same in every command that has it, but for two older ones: `-q` of ask is --question (its
--quiet has no letter), and `-n` of synth chips is --count. The program alone has `-V --version`.

    flag            commands
    --after-bands   analyze, ask, chat, calibrate, train
    --after-cloud-mask analyze, ask, chat, calibrate, train
    --align         analyze, ask, chat, calibrate, grid, train
    --allow-no-crs  analyze, ask, chat, calibrate, grid, train
    --allow-vrt     analyze, ask, chat, calibrate, grid, report, train
    --alpha-band    analyze, ask, chat, calibrate, train
    --any-scale     analyze, ask, calibrate
    --aoi           analyze, ask, calibrate, grid, polygonize
    --at            ask, chat
    -b --bands      analyze, ask, chat, calibrate, train
    --batch-size    analyze, ask, calibrate, eval
    --bbox          analyze, ask, chat, calibrate, grid, polygonize
    --bbox-crs      analyze, ask, chat, calibrate, grid, polygonize
    --beams         analyze, ask, chat, calibrate, eval, doctor
    --before-bands  analyze, ask, chat, calibrate, train
    --before-cloud-mask analyze, ask, chat, calibrate, train
    --calibration   analyze, ask, chat
    --cascade       analyze, ask
    --chip-size     analyze, ask, chat, calibrate, grid
    --cloud-mask    analyze, ask, chat, calibrate, train
    --color         all
    --config        all
    --decode        analyze, ask, chat, calibrate, eval, doctor
    --device        analyze, ask, chat, calibrate, eval, doctor, weights verify
    -n --dry-run    analyze, ask, grid, train, data fetch, weights fetch
    --dtype         analyze, ask, chat, calibrate, eval, doctor, weights verify
    --evidence      analyze, ask, chat, eval
    --gdal-config   analyze, ask, chat, calibrate, grid, train
    --gsd           analyze, ask, chat, calibrate, grid, train, synth scene
    --json          all
    --layer         analyze, ask
    --limit         analyze, ask, calibrate, eval
    --log-format    all
    --match         analyze, ask, chat, calibrate, train
    --max-nodata    analyze, ask, calibrate
    -m --model      analyze, ask, chat, calibrate, eval, doctor, mcp
    --nodata        analyze, ask, chat, calibrate, train
    --on-error      analyze, ask, calibrate
    --offline       analyze, ask, chat, calibrate, eval, doctor, data fetch, weights fetch
    -o --output     analyze, ask, calibrate, grid, report, polygonize, summarize, stac, eval, train,
                    data fetch, data build, weights fetch, weights convert
    --overlap       analyze, ask, calibrate, grid
    --overwrite     analyze, ask, chat, calibrate, grid, report, polygonize, summarize, stac, eval,
                    synth chips, synth scene, data fetch, data build
    --progress      all
    --prompt-style  analyze, ask, chat, calibrate, eval, doctor
    --qa-band       analyze, ask, chat, calibrate, train
    --quantize      analyze, ask, chat, calibrate, eval, doctor, weights verify
    -Q --questions  analyze, ask
    -q --quiet      all
    --register      analyze, ask, chat, calibrate, train
    --requests      analyze, ask, chat, calibrate, eval, doctor
    --resampling    analyze, ask, chat, calibrate, train
    --resume        analyze, ask, train
    --retry-failed  analyze, ask
    --runtime       analyze, ask, chat, calibrate, eval, doctor
    --scale         analyze, ask, chat, calibrate, train, synth scene
    --stride        analyze, ask, calibrate, grid
    --threads       analyze, ask, chat, calibrate, eval, train, doctor
    --threshold     analyze, report, polygonize, summarize
    --timeout       analyze, ask, chat, calibrate, eval, doctor
    --trust-remote-code analyze, ask, chat, calibrate, eval, doctor
    -v --verbose    all
    --yes           analyze, ask, chat, calibrate, eval, doctor

Flags of a single command are defined in its module, groups of flags in `flag_groups`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from deltacli.config_file import read_defaults
from deltacli.console import Color, LogFormat, console
from deltacli.metrics import check_metrics_file, run_metrics
from deltavlm.geo import resampling
from deltavlm.version import __version__

# panels of the help
MODEL = "Questions and model"
RASTERS = "Rasters"
CHIPS = "Chips"
OUTPUT = "Output"
COMMON = "Common options"


HTML_SUFFIXES, PNG_SUFFIXES = (".html", ".htm"), (".png",)  # of reports and quicklooks


def flag(*names: str, panel: str, **settings: Any) -> Any:
    """`typer.Option` in a panel of the help. Environment variables are explained once, at --config."""
    return typer.Option(*names, rich_help_panel=panel, show_envvar=False, **settings)


def threads_flag(panel: str) -> Any:
    """Flag `--threads`, limited to 1024: torch crashes on absurd numbers without saying why."""
    return flag(
        "--threads", panel=panel, metavar="N", min=1, max=1024, show_default="all cores", help="CPU threads."
    )


# Callbacks: shared flags act as soon as they are parsed


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"deltavlm {__version__}")
        raise typer.Exit


def _add_verbosity(value: int) -> int:
    if value:
        console.verbosity = min(max(console.verbosity, 0) + value, 2)
        console.route_logging()
    return value


def set_quiet(value: bool) -> bool:
    if value:
        console.verbosity = -1
        console.route_logging()
    return value


def _set_progress(value: bool | None) -> bool | None:
    if value is not None:
        console.show_progress = value
    return value


def _set_color(value: Color | None) -> Color | None:
    if value is not None:
        console.color = value
    return value


def _set_log_format(value: LogFormat | None) -> LogFormat | None:
    if value is not None:
        console.log_format = value
    return value


def _set_metrics_file(value: Path | None) -> Path | None:
    if value is not None:
        run_metrics.path = check_metrics_file(value)
    return value


Version = Annotated[
    bool,
    flag(
        *("--version", "-V"),
        panel=COMMON,
        is_eager=True,
        allow_from_autoenv=False,
        callback=_print_version,
        help="Show the version and exit.",
    ),
]
Verbose = Annotated[
    int,
    flag(
        *("--verbose", "-v"),
        panel=COMMON,
        count=True,
        callback=_add_verbosity,
        show_default=False,
        help="More messages; -vv also shows tracebacks.",
    ),
]
Quiet = Annotated[bool, flag("--quiet", "-q", panel=COMMON, callback=set_quiet, help="Errors only.")]
ShowProgress = Annotated[
    bool | None,
    flag(
        "--progress/--no-progress",
        panel=COMMON,
        callback=_set_progress,
        show_default=False,
        help="Progress on stderr: a bar on a terminal, plain lines elsewhere.",
    ),
]
ColorMode = Annotated[
    Literal["auto", "always", "never"] | None,
    flag(
        "--color",
        panel=COMMON,
        callback=_set_color,
        show_default="auto",
        help="Colours in messages. With auto, NO_COLOR turns them off.",
    ),
]
LogFormatName = Annotated[
    Literal["text", "json"] | None,
    flag(
        "--log-format",
        panel=COMMON,
        is_eager=True,
        callback=_set_log_format,
        show_default="text",
        help="Messages on stderr as text, or as one JSON object a line without a progress bar.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    flag(
        "--config",
        panel=COMMON,
        metavar="FILE",
        is_eager=True,
        callback=read_defaults,
        help="TOML file of defaults, with a table for each command. Flags override environment variables "
        "(DELTAVLM_<COMMAND>_<FLAG>), and these override the file.",
    ),
]
Json = Annotated[
    bool, flag("--json", panel=COMMON, allow_from_autoenv=False, help="One JSON object on stdout at the end.")
]
Metrics = Annotated[
    Path | None,
    flag(
        "--metrics",
        panel=COMMON,
        metavar="FILE",
        is_eager=True,
        callback=_set_metrics_file,
        help="Write progress and result of the run for Prometheus (node_exporter's textfile collector).",
    ),
]

Before = Annotated[
    str, typer.Argument(metavar="BEFORE", help="The earlier image: path, https://, s3:// or /vsi...")
]
After = Annotated[str, typer.Argument(metavar="AFTER", help="The later image of the same place.")]

Output = Annotated[
    str | None,
    flag(
        *("--output", "-o"),
        panel=OUTPUT,
        metavar="FILE|-",
        help=".gpkg .geojson .geojsonl .ndjson .fgb .parquet; - is NDJSON on stdout.",
    ),
]
Overwrite = Annotated[bool, flag("--overwrite", panel=OUTPUT, help="Replace an existing output.")]
DryRun = Annotated[
    bool,
    flag(
        "--dry-run",
        "-n",
        panel=OUTPUT,
        help="Check the images and show what would be done; write nothing.",
    ),
]

Dtype = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    flag(
        "--dtype",
        panel=MODEL,
        help="Data type of the weights; auto is 16 bit where the device is fast with it.",
    ),
]
Runtime = Annotated[
    Literal["auto", "torch", "openvino"],
    flag(
        "--runtime",
        panel=MODEL,
        help="What computes the model: OpenVINO, on a CPU and without torch, for models that have graphs for "
        "it, such as nano; auto is OpenVINO where it can be.",
    ),
]
Decode = Annotated[
    Literal["auto", "upstream", "fast"],
    flag(
        "--decode",
        panel=MODEL,
        help="Decoding: upstream applies a repetition penalty of 1.5, as the published model's authors do; "
        "fast applies none; auto is the model's own setting.",
    ),
]
Beams = Annotated[
    int | None,
    flag(
        "--beams",
        panel=MODEL,
        metavar="N",
        min=1,
        max=64,
        show_default="1",
        help="Beams of beam search; 1 is greedy decoding.",
    ),
]
PromptStyle = Annotated[
    Literal["auto", "raw", "trained"],
    flag(
        "--prompt-style",
        panel=MODEL,
        help="Send questions as written (raw), or in the wording of the model's training (trained).",
    ),
]

Cascade = Annotated[
    bool,
    flag(
        "--cascade",
        panel=MODEL,
        help="Ask the yes/no question first, and the other questions only about chips answered yes; with "
        "--evidence, ask only about chips that it calls changed.",
    ),
]
Threshold = Annotated[
    float | None,
    flag(
        "--threshold",
        panel=MODEL,
        metavar="P",
        min=0,
        max=1,
        show_default="of --calibration, else as the model answers",
        help="Lowest score of change of a changed chip; scores and raw answers stay as they are.",
    ),
]
Calibration = Annotated[
    Path | None,
    flag(
        "--calibration",
        panel=MODEL,
        metavar="FILE",
        help="Calibration of the yes/no score to your own chips, as deltavlm calibrate writes it; also sets "
        "the threshold of a run.",
    ),
]
StoredThreshold = Annotated[
    float | None,
    flag(
        "--threshold",
        panel=OUTPUT,
        metavar="P",
        min=0,
        max=1,
        show_default="as the output says",
        help="Lowest score of change of a changed chip, applied to the stored scores.",
    ),
]
BatchSize = Annotated[
    str,
    flag(
        "--batch-size",
        panel=MODEL,
        metavar="auto|N",
        help="Chips per batch; halved when memory runs out.",
    ),
]
Quantize = Annotated[
    Literal["none", "int8", "int4"],
    flag(
        "--quantize",
        panel=MODEL,
        help="Language model in 8 or 4 bit, for GPUs of 12 to 24 GB; needs the extra quantize.",
    ),
]

Requests = Annotated[
    int,
    flag(
        "--requests",
        panel=MODEL,
        metavar="N",
        min=1,
        max=256,
        help="Requests at a time to the server of an openai: model.",
    ),
]
Timeout = Annotated[
    float,
    flag(
        "--timeout",
        panel=MODEL,
        metavar="S",
        min=1,
        max=86_400,
        help="Seconds for one whole reply of the server of an openai: model.",
    ),
]
Yes = Annotated[
    bool,
    flag(
        "--yes",
        panel=MODEL,
        help="Agree that pictures are sent to the server of an openai: model on another machine.",
    ),
]

ChipSize = Annotated[
    int, flag("--chip-size", panel=CHIPS, metavar="PX", min=16, max=8192, help="Side of a chip.")
]
Overlap = Annotated[
    int | None,
    flag(
        "--overlap", panel=CHIPS, metavar="PX", min=0, show_default="0", help="Overlap of neighbouring chips."
    ),
]
Stride = Annotated[
    int | None,
    flag(
        "--stride",
        panel=CHIPS,
        metavar="PX",
        min=1,
        show_default="chip size",
        help="Step from chip to chip, instead of --overlap.",
    ),
]
Bbox = Annotated[
    str | None,
    flag(
        "--bbox",
        panel=CHIPS,
        metavar="XMIN,YMIN,XMAX,YMAX",
        help="Only chips that touch this box; XMIN > XMAX crosses the antimeridian.",
    ),
]
BboxCrs = Annotated[str, flag("--bbox-crs", panel=CHIPS, metavar="CRS", help="CRS of --bbox.")]
Aoi = Annotated[
    Path | None,
    flag(
        "--aoi",
        panel=CHIPS,
        metavar="FILE[:LAYER]",
        help="Only chips that touch the polygons of this vector file, in any CRS.",
    ),
]

Align = Annotated[
    Literal["auto", "strict"],
    flag(
        "--align",
        panel=RASTERS,
        help="auto warps AFTER onto the grid of BEFORE if they differ; strict refuses such pairs.",
    ),
]
Resampling = Annotated[
    resampling.Resampling,
    flag("--resampling", panel=RASTERS, help="Resampling method of a warp."),
]
Gsd = Annotated[
    float | None,
    flag("--gsd", panel=RASTERS, metavar="M", help="Resample both images to M metres per pixel."),
]
AllowNoCrs = Annotated[
    bool,
    flag(
        "--allow-no-crs",
        panel=RASTERS,
        help="Accept images without a CRS; the output is then in pixel coordinates.",
    ),
]
AllowVrt = Annotated[
    bool,
    flag(
        "--allow-vrt",
        panel=RASTERS,
        help="Also open VRTs, which read other files; these are listed first.",
    ),
]
GdalConfig = Annotated[
    list[str] | None,
    flag(
        "--gdal-config",
        panel=RASTERS,
        metavar="KEY=VALUE",
        help="GDAL configuration option; can be repeated.",
    ),
]
