"""`deltavlm grid`: the outlines of the chips, without a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from deltacli import options, parsing
from deltacli.console import console, pluralize
from deltacli.dry_run import plan_dict, print_plan
from deltacli.flag_groups import CommonFlags, grouped


@grouped
def grid(
    before: options.Before,
    after: Annotated[
        str | None,
        typer.Argument(metavar="[AFTER]", help="The later image; the grid covers what both cover."),
    ] = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    chip_size: options.ChipSize = 256,
    overlap: options.Overlap = None,
    stride: options.Stride = None,
    bbox: options.Bbox = None,
    bbox_crs: options.BboxCrs = "EPSG:4326",
    aoi: options.Aoi = None,
    align: options.Align = "auto",
    gsd: options.Gsd = None,
    allow_no_crs: options.AllowNoCrs = False,
    allow_vrt: options.AllowVrt = False,
    gdal_config: options.GdalConfig = None,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Write the outlines of the chips that `analyze` would ask about.

    Without -o the result is <BEFORE's stem>_grid.gpkg in the current folder.
    """
    before = parsing.check_location("BEFORE", before)
    after = before if after is None else parsing.check_location("AFTER", after)
    target = output or parsing.default_output(before, "_grid.gpkg")
    if target == "-" and json_summary:
        raise typer.BadParameter("stdout is taken by the features of -o -", param_hint="--json")
    overlap_px = parsing.resolve_overlap(chip_size, overlap, stride)
    gsd_m, box = parsing.check_gsd(gsd), parsing.parse_bbox(bbox)
    os.environ.update(parsing.parse_gdal_config(gdal_config))

    from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
    from deltavlm.geo.sinks import check_output, open_sink
    from deltavlm.pipeline.pairs import Pair
    from deltavlm.pipeline.plan import PairPlan
    from deltavlm.pipeline.schema import GRID
    from deltavlm.pipeline.writer import grid_feature

    path = None if target == "-" else Path(target)
    if path is not None:
        check_output(path, overwrite)
    read_options = ReadOptions(
        align=align,
        gsd_m=gsd_m,
        allow_no_crs=allow_no_crs,
        allow_vrt=allow_vrt,
        bbox=box,
        bbox_crs=bbox_crs,
        aoi=aoi,
        outlines_only=True,
    )
    with open_pair(RasterPair(before, after), read_options) as reader:
        for note in reader.notes:
            tell = console.warning if note in reader.warnings else console.info
            tell(note)
        chips = reader.grid(chip_size, overlap_px)
        plan = PairPlan.of(Pair("", before, after), reader, chips)
        values = {**plan_dict(plan), "output": target}
        if dry_run:
            if json_summary:
                typer.echo(json.dumps({"dry_run": True, **values}, ensure_ascii=False))
            else:
                print_plan(plan, target)
            return
        record = {"tool": "deltavlm grid", "inputs": reader.provenance()}
        with open_sink(path, (GRID,), reader.crs, record, overwrite=overwrite, only_layer=None) as sink:
            sink.write(GRID.name, map(grid_feature, chips))
    console.info(f"{pluralize(len(chips), 'chip')}; output {'on stdout' if path is None else target}")
    if json_summary:
        typer.echo(json.dumps({"dry_run": False, **values}, ensure_ascii=False))
