"""`deltavlm grid`: write the outlines of the chips of an image or a pair; no model is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from deltacli import options, parsing
from deltacli.console import console, print_notes
from deltacli.dry_run import plan_dict, print_plan
from deltacli.flag_groups import AlignmentFlags, ChipGridFlags, CommonFlags, grouped
from deltavlm.messages import pluralize


@grouped
def grid(
    before: options.Before,
    after: Annotated[
        str | None,
        typer.Argument(metavar="[AFTER]", help="The later image; the grid covers what both cover."),
    ] = None,
    *,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    chips: ChipGridFlags,
    alignment: AlignmentFlags,
    json_summary: options.Json = False,
    common: CommonFlags,
) -> None:
    """Write the outlines of the chips that `analyze` would ask about.

    Without -o the output is <BEFORE's stem>_grid.gpkg in the current folder.
    """
    before = parsing.check_location("BEFORE", before)
    after = before if after is None else parsing.check_location("AFTER", after)
    target = output or parsing.default_output(before, "_grid.gpkg")
    if target == "-" and json_summary:
        raise typer.BadParameter("stdout is taken by the features of -o -", param_hint="--json")
    overlap_px = chips.overlap_px
    read_options = alignment.read_options(chips.bbox, chips.bbox_crs, chips.aoi)

    from deltavlm.geo.aoi import aoi_file
    from deltavlm.geo.location import local_file
    from deltavlm.geo.output_files import check_output, files_of_output
    from deltavlm.geo.pair import RasterPair, open_pair
    from deltavlm.geo.sinks import open_sink
    from deltavlm.pipeline.pairs import Pair
    from deltavlm.pipeline.plan import PairPlan
    from deltavlm.pipeline.schema import GRID
    from deltavlm.pipeline.writer import grid_feature

    path = None if target == "-" else Path(target)
    if path is not None:
        read = {
            "BEFORE": local_file(before),
            "AFTER": local_file(after),
            "--aoi": chips.aoi and aoi_file(chips.aoi),
        }
        parsing.check_files(files_of_output("-o", path), {**read, "--config": common.config})
        check_output(path, overwrite)
    with open_pair(RasterPair(before, after), replace(read_options, outlines_only=True)) as reader:
        print_notes(reader, pixel_size=False)
        chip_grid = reader.chips(chips.chip_size, overlap_px)
        plan = PairPlan.of(Pair("", before, after), reader, chip_grid)
        values = {**plan_dict(plan), "output": target}
        if dry_run:
            if json_summary:
                typer.echo(json.dumps({"dry_run": True, **values}, ensure_ascii=False))
            else:
                print_plan(plan, target)
            return
        record = {"tool": "deltavlm grid", "inputs": reader.provenance()}
        crs = reader.geobox.crs
        with open_sink(path, (GRID,), crs, record, overwrite=overwrite) as sink:
            sink.write(GRID.name, map(grid_feature, chip_grid))
    console.info(f"{pluralize(len(chip_grid), 'chip')}; output {'on stdout' if path is None else target}")
    if json_summary:
        typer.echo(json.dumps({"dry_run": False, **values}, ensure_ascii=False))
