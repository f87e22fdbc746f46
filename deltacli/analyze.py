"""`deltavlm analyze`: two rasters in, answers on the map out."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options, values
from deltacli.console import counted, voice
from deltacli.plan import pair_plan, show_plan
from deltavlm.config import shipped
from deltavlm.errors import ConfigError, PartialFailure

if TYPE_CHECKING:
    from deltavlm.geo.pair import PairReader
    from deltavlm.model.config import Running
    from deltavlm.model.interface import ChangeModel
    from deltavlm.pipeline.analyze import Progress, Summary

_ASK = options.ASK


def analyze(
    before: options.Before,
    after: options.After,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    layer: Annotated[
        Literal["chips", "locations"] | None,
        options.flag(
            "--layer",
            panel=options.OUTPUT,
            show_default="both in a GeoPackage, else chips",
            help="Write this layer alone.",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    questions: Annotated[
        Path | None,
        options.flag(
            *("--questions", "-Q"),
            panel=_ASK,
            metavar="FILE",
            help="YAML list of questions, instead of the built-in caption, change, count, location.",
        ),
    ] = None,
    ask: Annotated[
        str | None,
        options.flag("--ask", panel=_ASK, metavar="NAME,NAME", help="Only these of the question set."),
    ] = None,
    model: Annotated[
        str, options.flag("--model", "-m", panel=_ASK, metavar="NAME|FOLDER", help="Model to ask.")
    ] = "nano",
    device: Annotated[
        str, options.flag("--device", panel=_ASK, metavar="auto|cpu|cuda|mps", help="Where it runs.")
    ] = "auto",
    threads: Annotated[
        int | None,
        options.flag(
            "--threads", panel=_ASK, metavar="N", min=1, show_default="all cores", help="CPU threads."
        ),
    ] = None,
    dtype: options.Dtype = "auto",
    decode: options.Decode = "auto",
    beams: options.Beams = None,
    prompt_style: options.PromptStyle = "auto",
    quantize: options.Quantize = "none",
    cascade: Annotated[
        bool,
        options.flag(
            "--cascade",
            panel=_ASK,
            help="First ask whether it changed, and the rest only of chips that say yes.",
        ),
    ] = False,
    batch_size: Annotated[
        str,
        options.flag(
            "--batch-size",
            panel=_ASK,
            metavar="auto|N",
            help="Chips asked at once; halved where memory is short.",
        ),
    ] = "auto",
    chip_size: options.ChipSize = 256,
    overlap: options.Overlap = None,
    stride: options.Stride = None,
    bbox: options.Bbox = None,
    bbox_crs: options.BboxCrs = "EPSG:4326",
    aoi: options.Aoi = None,
    limit: Annotated[
        int | None,
        options.flag("--limit", panel=options.CHIPS, metavar="N", min=1, help="Only the first N chips."),
    ] = None,
    max_nodata: Annotated[
        float,
        options.flag(
            "--max-nodata",
            panel=options.CHIPS,
            metavar="SHARE",
            min=0,
            max=1,
            help="Chips with a larger share without data are not asked.",
        ),
    ] = 0.5,
    on_error: Annotated[
        Literal["skip", "fail"],
        options.flag(
            "--on-error",
            panel=options.CHIPS,
            help="A chip that cannot be read or answered: write its status, or stop.",
        ),
    ] = "skip",
    bands: Annotated[
        str | None,
        options.flag(
            *("--bands", "-b", "--bidx"),
            panel=options.RASTERS,
            metavar="3,2,1",
            show_default="RGB by colour, else 1,2,3",
            help="Red, green and blue band of both.",
        ),
    ] = None,
    before_bands: Annotated[
        str | None,
        options.flag("--before-bands", panel=options.RASTERS, metavar="3,2,1", help="The same for BEFORE."),
    ] = None,
    after_bands: Annotated[
        str | None,
        options.flag("--after-bands", panel=options.RASTERS, metavar="3,2,1", help="The same for AFTER."),
    ] = None,
    scale: Annotated[
        str,
        options.flag(
            "--scale",
            panel=options.RASTERS,
            metavar="SPEC",
            help="To 8 bit: auto, none, LO,HI, pct:LO,HI or per-date. With auto, 8 bit stays as it is.",
        ),
    ] = "auto",
    nodata: Annotated[
        float | None,
        options.flag(
            "--nodata",
            panel=options.RASTERS,
            metavar="VALUE",
            show_default="as the files say",
            help="Pixel value that means no data.",
        ),
    ] = None,
    alpha_band: Annotated[
        Literal["auto", "none"],
        options.flag("--alpha-band", panel=options.RASTERS, help="none: a band marked as alpha is data."),
    ] = "auto",
    align: options.Align = "auto",
    resampling: options.Resampling = "bilinear",
    gsd: options.Gsd = None,
    allow_no_crs: options.AllowNoCrs = False,
    gdal_config: options.GdalConfig = None,
    json_summary: options.Json = False,
    config: options.ConfigFile = None,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    progress: options.ShowProgress = None,
    color: options.ColorWhen = None,
) -> None:
    """Say chip by chip what changed from BEFORE to AFTER, and write the answers as a map.

    Without -o the result is <AFTER's stem>_changes.gpkg in the current folder.
    """
    before, after = values.location_of("BEFORE", before), values.location_of("AFTER", after)
    target = output or values.default_output(after, "_changes.gpkg")
    if target == "-" and json_summary:
        raise typer.BadParameter("stdout is taken by the features of -o -", param_hint="--json")
    overlap_px = values.overlap_of(chip_size, overlap, stride)
    both = values.bands_of("--bands", bands)
    read: dict[str, Any] = {
        "before_bands": values.bands_of("--before-bands", before_bands) or both,
        "after_bands": values.bands_of("--after-bands", after_bands) or both,
        "gsd_m": values.gsd_of(gsd),
        "bbox": values.bbox_of(bbox),
    }
    device = values.device_of(device)
    wanted_batch = values.batch_size_of(batch_size)
    os.environ.update(values.gdal_settings_of(gdal_config))  # before GDAL starts: it reads them there

    from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
    from deltavlm.geo.sinks import check_output, open_sink
    from deltavlm.model.config import Running
    from deltavlm.model.folder import find_folder, read_config
    from deltavlm.pipeline import analyze as pipeline
    from deltavlm.pipeline.layers import LOCATIONS, Origin, chips_layer
    from deltavlm.pipeline.provenance import provenance
    from deltavlm.tasks.questions import load_questions, pick_questions

    running = Running(
        device=device,
        threads=threads,
        dtype=dtype,
        decode=None if decode == "auto" else decode,
        beams=beams,
        prompt_style=None if prompt_style == "auto" else prompt_style,
        quantize=None if quantize == "none" else quantize,
    )
    specs = load_questions(questions or shipped("questions.yaml"))
    if ask is not None:
        specs = pick_questions(specs, [name.strip() for name in ask.split(",")])
    if cascade and not any(spec.task == "change" for spec in specs):
        raise ConfigError("--cascade needs the yes/no question; add an entry 'task: change', or leave it out")
    path = None if target == "-" else Path(target)
    if path is not None:
        check_output(path, overwrite)
    numbers = running.applied(read_config(find_folder(model)))
    if device not in ("auto", "cpu") or running.quantize:  # else not worth the seconds that torch loads
        from deltavlm.model.predictor import pick_place

        pick_place(running)
    run = pipeline.AnalyzeOptions(
        chip_px=chip_size,
        overlap_px=overlap_px,
        max_nodata=max_nodata,
        limit=limit,
        on_error=on_error,
        cascade=cascade,
    )
    read_options = ReadOptions(
        align=align,
        resampling=resampling,
        scale=scale,
        nodata=nodata,
        alpha_band=alpha_band,
        allow_no_crs=allow_no_crs,
        bbox_crs=bbox_crs,
        aoi=aoi,
        **read,
    )
    with open_pair(RasterPair(before, after), read_options) as reader:

        def warn_of_scale(training_gsd_m: float, chip_px: int) -> None:
            warning = pipeline.scale_warning(reader.gsd_m, training_gsd_m, chip_size / chip_px)
            if warning:
                voice.warn(warning)

        for note in reader.notes:
            (voice.warn if note in reader.warnings else voice.say)(note)
        if reader.gsd_m is not None:
            voice.say(f"a pixel is {reader.gsd_m:.3g} m on the ground")
        grid = reader.grid(chip_size, overlap_px)
        if dry_run:
            warn_of_scale(numbers.training_gsd_m, numbers.chip_px)
            plan = pair_plan(reader, grid, target)
            plan |= {
                "limit": limit,
                "questions": [spec.name for spec in specs],
                "model": model,
                "device": device,
            }
            show_plan(plan, as_json=json_summary, on_stdout=path is not None)
            return
        chips = min(len(grid), limit or len(grid))
        started = time.monotonic()
        asked = _load(model, running)
        load_s = time.monotonic() - started
        voice.say(f"model {asked.name} ({asked.fingerprint}) on {asked.device}, loaded in {load_s:.1f} s")
        warn_of_scale(asked.training_gsd_m, asked.chip_px)
        run = replace(run, batch_size=wanted_batch or asked.auto_batch_size())
        origin = Origin.of(reader, asked)
        layers = (chips_layer(specs), LOCATIONS)
        record = provenance(reader, asked, specs, run)
        with (
            open_sink(path, layers, reader.crs, record, overwrite=overwrite, only_layer=layer) as sink,
            voice.counting(chips, "chips", beside_data=path is None) as tell,
        ):

            def watch(progress: Progress) -> None:
                tell(progress.done, f"{progress.changed} changed, {progress.chips_per_s:.1f} chips/s")

            summary = pipeline.analyze(reader, asked, specs, sink, origin, run, watch)
        _tell_outcome(summary, reader, target)
        if json_summary:
            outcome = _outcome(summary, reader, asked) | {"load_seconds": round(load_s, 3), "output": target}
            typer.echo(json.dumps(outcome, ensure_ascii=False))
    if summary.failed:
        raise PartialFailure(
            f"{summary.failed} of {summary.chips} chips failed, the first because: {summary.first_failure}"
        )


def _load(name: str, running: Running) -> ChangeModel:
    from deltavlm.model.predictor import load_model

    return load_model(name, running)


def _places(summary: Summary, reader: PairReader) -> tuple[str, list[tuple[float, float]]]:
    """Where the most changed chips are, and in what; without a way to lon/lat, as the output has it."""
    from deltavlm.geo.alignment import lonlat

    xs, ys = [chip.x for chip in summary.most_changed], [chip.y for chip in summary.most_changed]
    known = lonlat(reader.crs, xs, ys)
    if known is not None:
        return "lon/lat", known
    return ("x/y px" if reader.crs is None else "x/y"), list(zip(xs, ys, strict=True))


def _tell_outcome(summary: Summary, reader: PairReader, target: str) -> None:
    where, places = _places(summary, reader)
    digits = 5 if where == "lon/lat" else 0
    rows = [
        (chip.chip_id, f"{x:.{digits}f}, {y:.{digits}f}", f"{chip.score:.2f}", chip.caption)
        for chip, (x, y) in zip(summary.most_changed, places, strict=True)
    ]
    voice.table("Most changed chips", ("chip", where, "score", "caption"), rows)
    parts = [f"{count} {status}" for status, count in summary.statuses.items() if status != "answered"]
    if summary.unread:
        voice.warn(
            f"the model said neither yes nor no to whether {counted(summary.unread, 'chip')} changed; the"
            f" answers as written are in answer_change"
        )
    voice.say(
        f"{counted(summary.chips, 'chip')}: {', '.join([f'{summary.changed} changed', *parts])}; "
        f"{summary.seconds:.1f} s, {summary.chips_per_s:.1f} chips/s; "
        f"output {'on stdout' if target == '-' else target}"
    )


def _outcome(summary: Summary, reader: PairReader, model: ChangeModel) -> dict[str, Any]:
    """The summary as one JSON object."""
    where, places = _places(summary, reader)
    x_name, y_name = ("lon", "lat") if where == "lon/lat" else ("x", "y")
    return {
        "chips": summary.chips,
        **{
            status: summary.statuses[status]
            for status in ("answered", "cascaded", "nodata", "unreadable", "error")
        },
        "changed": summary.changed,
        "neither_yes_nor_no": summary.unread,
        "seconds": round(summary.seconds, 3),
        "chips_per_s": round(summary.chips_per_s, 3),
        "gsd_m": reader.gsd_m,
        "overlap_share": reader.overlap_share,
        "notes": list(reader.notes),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "device": model.device,
        "batch_size": summary.batch_size,
        "first_failure": summary.first_failure or None,
        "most_changed": [
            {"chip_id": chip.chip_id, "score": chip.score, x_name: x, y_name: y, "caption": chip.caption}
            for chip, (x, y) in zip(summary.most_changed, places, strict=True)
        ],
    }
