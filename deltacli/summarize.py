"""`deltavlm summarize`: totals of outputs, overall or by area."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import options, parsing
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import CHIPS, OUTPUT, flag
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.summaries.summary import Summary


@grouped
def summarize(
    outputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT|FOLDER...", help="Outputs of deltavlm analyze or polygonize, or folders of them."
        ),
    ],
    by: Annotated[
        str | None,
        flag(
            "--by",
            panel=CHIPS,
            metavar="FILE[:LAYER]|grid|h3|pair",
            help="Divide the ground of chips and polygons among areas: polygons of a file, grid cells, "
            "H3 cells, or pairs.",
        ),
    ] = None,
    name_field: Annotated[
        str | None,
        flag(
            "--name-field",
            panel=CHIPS,
            metavar="COLUMN",
            show_default="name, or the first with text",
            help="Column of FILE with the names of the areas.",
        ),
    ] = None,
    cell: Annotated[
        float | None,
        flag("--cell", panel=CHIPS, metavar="M", show_default="1000", help="Side of a grid cell, metres."),
    ] = None,
    resolution: Annotated[
        int | None,
        flag(
            *("--resolution",),
            panel=CHIPS,
            min=0,
            max=15,
            show_default="8",
            help="Resolution of H3; one more is a seventh of the area. Needs the extra h3.",
        ),
    ] = None,
    threshold: options.StoredThreshold = None,
    review: Annotated[
        Path | None,
        flag(
            "--review",
            panel=CHIPS,
            metavar="FILE",
            show_default="the columns of OUT",
            help="Verdicts on OUT, as the page of report --review downloads them.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="FILE",
            help=".csv, a document .md or .html, or a map .gpkg .geojson .fgb .parquet; - is NDJSON. "
            "Default: a table on stdout.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Summarize finished outputs: changed chips and area, counts, scores, and chips not analyzed."""
    _check_flags(by, name_field, cell, resolution)

    from deltavlm.geo.output_files import check_output, files_of_output
    from deltavlm.geo.vector_reader import split_layer
    from deltavlm.pipeline.outputs_reader import output_paths_in
    from deltavlm.summaries.area_kinds import CELL_M, H3_RESOLUTION, make_areas
    from deltavlm.summaries.results import read_results
    from deltavlm.summaries.summary import summarize as summarize_results
    from deltavlm.summaries.writer import SUMMARY_SUFFIXES, write_summary

    if json_summary and str(output) == "-":
        raise typer.BadParameter("stdout is taken by the features of -o -", param_hint="--json")
    outputs = output_paths_in(outputs)
    if output is not None:
        areas_file = None if by in (None, "grid", "h3", "pair") else split_layer(by)[0]
        read = {"OUT": outputs, "--by": areas_file, "--review": review, "--config": common.config}
        parsing.check_files(files_of_output("-o", output), read)
        check_output(output, overwrite, SUMMARY_SUFFIXES)
    results = read_results(outputs, threshold=threshold, review=review)
    if output is not None:
        parsing.check_files(files_of_output("-o", output), {"a file of OUT": results.other_files})
    areas = make_areas(
        results,
        by,
        name_field=name_field,
        cell_m=CELL_M if cell is None else cell,
        resolution=H3_RESOLUTION if resolution is None else resolution,
    )
    summary = summarize_results(results, areas)
    if output is not None:
        write_summary(output, summary, overwrite=overwrite)
    if json_summary:
        record = summary.as_json() | {"output": None if output is None else str(output)}
        typer.echo(json.dumps(record, ensure_ascii=False))
    elif output is None:
        _print_table(summary)
    if output is None:
        for sentence in (*(summary.review.lines() if summary.review else ()), *summary.caveats):
            console.info(sentence)
    if areas.empty_count:
        console.info(f"{pluralize(areas.empty_count, 'area')} of {by} without a chip left out")
    chips = f"{summary.total.changed} of {pluralize(summary.total.looked_at, 'chip')} changed"
    in_areas = f" in {pluralize(len(areas.names), 'area')}" if by else ""
    console.info(f"{chips}{in_areas}{f'; output {output}' if output else ''}")


def _check_flags(by: str | None, name_field: str | None, cell: float | None, resolution: int | None) -> None:
    """Raise BadParameter for a flag without the --by that it belongs to."""
    requirements = {
        "--name-field": (name_field, by not in (None, "grid", "h3", "pair"), "FILE"),
        "--cell": (cell, by == "grid", "grid"),
        "--resolution": (resolution, by == "h3", "h3"),
    }
    for name, (value, fits, required_by) in requirements.items():
        if value is not None and not fits:
            raise typer.BadParameter(f"goes with --by {required_by} only", param_hint=name)
    if cell is not None and not 0 < cell < 1e7:
        raise typer.BadParameter(f"{cell:g} is not from above 0 to 10,000,000 metres", param_hint="--cell")


def _print_table(summary: Summary) -> None:
    """Print a plain table on stdout, with text aligned to the left and numbers to the right."""
    from deltavlm.summaries.document import TEXT_COLUMNS, table_rows

    columns, rows = table_rows(summary.rows)
    lines = [[_printable(cell) for cell in line] for line in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.ljust(width) if name in TEXT_COLUMNS else cell.rjust(width)
            for cell, width, name in zip(line, widths, columns, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())


def _printable(text: str) -> str:
    """Text with a space for each character that a terminal cannot print."""
    return "".join(char if char.isprintable() else " " for char in text)
