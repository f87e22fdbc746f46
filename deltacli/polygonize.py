"""`deltavlm polygonize`: polygons of change from stored probabilities, without asking the model again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from deltacli import options, parsing
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.mask_flags import MASKS, OutlineFlags
from deltacli.options import OUTPUT, flag
from deltavlm.messages import pluralize


@grouped
def polygonize(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="OUT|PROBABILITY.tif",
            help="Output of deltavlm analyze --probability, or its raster alone.",
        ),
    ],
    probability: Annotated[
        Path | None,
        flag(
            "--probability",
            panel=MASKS,
            metavar="FILE.tif",
            show_default="the one that was written with OUT",
            help="Raster of probabilities of OUT.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="FILE",
            show_default="OUT's name with .changes.gpkg, in the current folder",
            help="Polygons: .gpkg, .geojson, .geojsonl, .fgb or .parquet.",
        ),
    ] = None,
    *,
    outlines: OutlineFlags,
    chips: Annotated[
        Literal["changed", "all"],
        flag("--polygons", panel=MASKS, help="Polygons of the chips called changed, or of all."),
    ] = "changed",
    threshold: options.StoredThreshold = None,
    classes: Annotated[
        str | None,
        flag(
            "--class",
            panel=MASKS,
            metavar="NAME,NAME",
            show_default="building,road,other",
            help="Only polygons of these classes.",
        ),
    ] = None,
    merge: Annotated[
        float,
        flag(
            "--merge",
            panel=MASKS,
            metavar="M",
            min=0,
            help="Polygons of one class that are at most this many metres apart become one.",
        ),
    ] = 0.0,
    fill_holes: Annotated[
        float,
        flag("--fill-holes", panel=MASKS, metavar="M2", min=0, help="Holes smaller than this are filled."),
    ] = 0.0,
    bbox: options.Bbox = None,
    bbox_crs: options.BboxCrs = "EPSG:4326",
    aoi: options.Aoi = None,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    common: CommonFlags,
) -> None:
    """Draw the polygons of change again, with other thresholds, from the probabilities of a run.

    With the settings of the run they are its polygons. OUT tells which chips are called changed, and their
    captions; with a raster alone the polygons of all chips are drawn.
    """
    from deltavlm.geo.aoi import area_of_interest
    from deltavlm.geo.output_files import check_output, files_of_output
    from deltavlm.geo.sinks import open_sink
    from deltavlm.pipeline.mask_codec import CLASSES
    from deltavlm.pipeline.outputs_reader import read_output
    from deltavlm.pipeline.polygonize import open_probability, polygons_record, probability_path, run_area
    from deltavlm.pipeline.polygonize import polygonize as polygonize_raster
    from deltavlm.pipeline.schema import CHANGES
    from deltavlm.pipeline.totals import Totals, TotalsCounter

    names = CLASSES if classes is None else tuple(name.strip() for name in classes.split(","))
    for name in names:
        if name not in CLASSES:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(CLASSES)}", param_hint="--class")
    outlines.check_numbers()
    is_raster = source.suffix.lower() in (".tif", ".tiff")
    if is_raster and probability is not None:
        raise typer.BadParameter("is for an output; leave it out", param_hint="--probability")
    if is_raster and threshold is not None:
        raise typer.BadParameter("is for an output, whose scores it is applied to", param_hint="--threshold")
    target = output or Path(parsing.default_output(str(source), ".changes.gpkg"))
    result = None if is_raster else read_output(source, (), threshold=threshold)
    raster_path = source if result is None else probability or probability_path(result)
    sources = [source] if result is None else [source, *result.other_files]
    read = {"--probability": raster_path, "--aoi": aoi, "--config": common.config}
    parsing.check_files(files_of_output("-o", target), {"OUT": sources, **read})
    check_output(target, overwrite)
    change_options = outlines.change_options(
        chips=chips, classes=names, merge_m=merge, fill_holes_m2=fill_holes
    )
    with open_probability(raster_path) as raster:
        run = run_area(raster)
        if bbox is None and aoi is None:
            shape = area_of_interest(raster.geobox, run.bbox, run.bbox_crs, None)
            if run.aoi is not None:
                console.warning(f"the run was limited to {run.aoi}; give --aoi to end the polygons at it too")
        else:
            box = None if bbox is None else parsing.parse_bbox(bbox)
            shape = area_of_interest(raster.geobox, box, bbox_crs, aoi)
        features = polygonize_raster(raster, change_options, output=result, aoi=shape)
        if not features and classes is not None:
            every = polygonize_raster(
                raster, replace(change_options, classes=CLASSES), output=result, aoi=shape
            )
            found = Counter(str(feature.properties["class"]) for feature in every)
            if found:
                others = ", ".join(f"{count:,} of class {name}" for name, count in found.items())
                console.warning(f"no polygon of class {' or '.join(names)}; the run has {others}")
        record, crs = polygons_record(raster, change_options, result, target), raster.geobox.crs
        with open_sink(target, (CHANGES,), crs, record, overwrite=overwrite) as sink:
            sink.write(CHANGES.name, features)
    counter = TotalsCounter()
    counter.add_polygons(features, crs)
    totals = counter.polygons or Totals()
    if result is None:
        console.info("without an output the polygons of all chips are drawn, without captions")
    if json_summary:
        figures = totals.as_dict()
        summary = {"polygons": len(features), "output": str(target)}
        summary |= {name: figures[name] for name in ("changed_km2", "kinds", "kinds_km2")}
        typer.echo(json.dumps(summary, ensure_ascii=False))
    if features:
        console.info(totals.kinds_text)
    area = f", {totals.format_area(totals.changed)}" if features else ""
    console.info(f"{pluralize(len(features), 'polygon')} of change{area}; output {target}")
