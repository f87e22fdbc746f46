"""`deltavlm summarize`: what outputs come to, as a whole or by area."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import options
from deltacli.console import console, pluralize
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import CHIPS, OUTPUT, flag
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.summaries.areas import Areas
    from deltavlm.summaries.results import Results
    from deltavlm.summaries.totals import AreaSummary

PAGES = (".csv", ".md", ".html")
_MOST_CHIPS = 6  # of the whole, on a page


@grouped
def summarize(
    outputs: Annotated[
        list[Path], typer.Argument(metavar="OUT...", help="Outputs of deltavlm analyze, in any format.")
    ],
    by: Annotated[
        str | None,
        flag(
            "--by",
            panel=CHIPS,
            metavar="FILE[:LAYER]|grid|h3|pair",
            help="Totals for each area of a file, square, hexagon or pair, by the middle of a chip.",
        ),
    ] = None,
    name_field: Annotated[
        str | None,
        flag(
            "--name-field",
            panel=CHIPS,
            metavar="COLUMN",
            show_default="name, or the first with text",
            help="What the areas of FILE are called.",
        ),
    ] = None,
    cell: Annotated[
        float | None,
        flag("--cell", panel=CHIPS, metavar="M", show_default="1000", help="Side of a square, metres."),
    ] = None,
    resolution: Annotated[
        int | None,
        flag(
            *("--resolution",),
            panel=CHIPS,
            min=0,
            max=15,
            show_default="8",
            help="Of H3; one more is a seventh of the area. Needs pip install 'deltavlm[h3]'.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="FILE",
            help=".csv, a page .md or .html, or a map .gpkg .geojson .fgb .parquet, - is NDJSON; without it "
            "a table on stdout.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Say what finished outputs come to: what changed, where, how sure, what was not looked at."""
    _check_flags(by, name_field, cell, resolution)

    from deltavlm.geo.sinks import SUFFIXES, check_output
    from deltavlm.summaries.caveats import caveats
    from deltavlm.summaries.document import table_rows
    from deltavlm.summaries.results import read_results
    from deltavlm.summaries.totals import as_row, summarize_areas, summarize_chips

    if json_summary and str(output) == "-":
        raise typer.BadParameter("stdout is taken by the features of -o -", param_hint="--json")
    if output is not None:
        check_output(output, overwrite, (*PAGES, *SUFFIXES))
        if output.resolve() in {path.resolve() for path in outputs}:
            raise ConfigError(f"{output}: is an input; give another name with -o")
    results = read_results(outputs)
    areas = _areas(results, by, name_field, cell, resolution)
    found = summarize_areas(results, areas)
    whole = summarize_chips(results, most=_MOST_CHIPS)
    known = caveats(results, whole, found)
    if output is not None:
        _write(output, overwrite, results, areas, found, whole)
    if json_summary:
        told = {
            "all": as_row(whole),
            "by": areas.kind,
            "areas": [as_row(one) for one in found] if by else [],
            "left_out": areas.empty_count,
            "caveats": known,
            "output": None if output is None else str(output),
        }
        typer.echo(json.dumps(told, ensure_ascii=False))
    elif output is None:
        _show(*table_rows([*found, whole] if by else [whole]))
    if output is None:
        for caveat in known:
            console.info(caveat)
    if areas.empty_count:
        console.info(f"{pluralize(areas.empty_count, 'area')} of {by} without a chip left out")
    chips = f"{whole.changed} of {pluralize(whole.looked_at, 'chip')} changed"
    places = f" in {pluralize(len(areas.names), 'area')}" if by else ""
    console.info(f"{chips}{places}{f'; output {output}' if output else ''}")


def _check_flags(by: str | None, name_field: str | None, cell: float | None, resolution: int | None) -> None:
    """Raises: BadParameter for a flag without the --by that it belongs to."""
    belongs = {
        "--name-field": (name_field, by not in (None, "grid", "h3", "pair"), "FILE"),
        "--cell": (cell, by == "grid", "grid"),
        "--resolution": (resolution, by == "h3", "h3"),
    }
    for name, (value, fits, wanted) in belongs.items():
        if value is not None and not fits:
            raise typer.BadParameter(f"goes with --by {wanted} only", param_hint=name)
    if cell is not None and not 0 < cell < 1e7:
        raise typer.BadParameter(f"{cell:g} is not from above 0 to 10,000,000 metres", param_hint="--cell")


def _areas(
    results: Results, by: str | None, name_field: str | None, cell: float | None, resolution: int | None
) -> Areas:
    from deltavlm.summaries.areas import (
        areas_from_file,
        areas_from_grid,
        areas_from_h3,
        areas_from_pairs,
        single_area,
    )

    match by:
        case None:
            return single_area(results)
        case "pair":
            return areas_from_pairs(results)
        case "grid":
            return areas_from_grid(results, 1000 if cell is None else cell)
        case "h3":
            return areas_from_h3(results, 8 if resolution is None else resolution)
    path, layer = _file_and_layer(by)
    return areas_from_file(results, path, layer, name_field)


def _file_and_layer(text: str) -> tuple[Path, str | None]:
    """`districts.gpkg:communes` is a layer of a file, unless a file is called so."""
    head, colon, layer = text.rpartition(":")
    if colon and layer and not Path(text).exists() and Path(head).exists():
        return Path(head), layer
    return Path(text), None


def _write(
    output: Path,
    overwrite: bool,
    results: Results,
    areas: Areas,
    found: Sequence[AreaSummary],
    whole: AreaSummary,
) -> None:
    from deltavlm.geo.geobox import LONLAT
    from deltavlm.geo.sinks import open_sink, write_output
    from deltavlm.summaries.caveats import caveats
    from deltavlm.summaries.document import document
    from deltavlm.summaries.render import to_html, to_markdown
    from deltavlm.summaries.table import to_csv
    from deltavlm.summaries.totals import AREAS, as_feature

    suffix = output.suffix.lower()
    if suffix == ".csv":
        write_output(output, to_csv(found).encode(), overwrite)
    elif suffix in PAGES:
        render = to_html if suffix == ".html" else to_markdown
        write_output(output, render(*document(results, areas, found, whole)).encode(), overwrite)
    else:
        if all(one.shape is None for one in found):
            raise ConfigError(f"{output}: there are no areas to draw; add --by, or write .csv, .md or .html")
        record = {
            "tool": "deltavlm summarize",
            "outputs": [str(path) for path in results.paths],
            "by": areas.kind,
            "caveats": caveats(results, whole, found),
            "runs": list(results.runs),
        }
        with open_sink(output, (AREAS,), LONLAT, record, overwrite=overwrite) as sink:
            sink.write(AREAS.name, map(as_feature, found))


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout, numbers to the right; what cannot be printed is a space."""
    lines = [
        ["".join(char if char.isprintable() else " " for char in cell) for cell in line]
        for line in (columns, *rows)
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = [number == 0 or columns[number] == "most changed chip" for number in range(len(columns))]
    for line in lines:
        cells = (
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(line, widths, words, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())
