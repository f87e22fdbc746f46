"""`deltavlm stac`: items of an output and of its model for a STAC catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deltacli import options
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import OUTPUT, RASTERS, flag
from deltavlm.errors import ConfigError

SUFFIXES = (".json", ".geojson")


@grouped
def stac(
    result: Annotated[Path, typer.Argument(metavar="OUT", help="An output of deltavlm analyze.")],
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="FILE",
            show_default="OUT's name with .stac.json, beside it",
            help="The item; that of the model lies beside it.",
        ),
    ] = None,
    item_id: Annotated[
        str | None, flag("--id", panel=OUTPUT, metavar="ID", show_default="OUT's name", help="Of the item.")
    ] = None,
    before_date: Annotated[
        str | None,
        flag(
            "--before-date",
            panel=RASTERS,
            metavar="DATE",
            help="Of the earlier image: a year, month or day.",
        ),
    ] = None,
    after_date: Annotated[
        str | None, flag("--after-date", panel=RASTERS, metavar="DATE", help="Of the later image.")
    ] = None,
    asset: Annotated[
        list[str] | None,
        flag(
            "--asset",
            panel=OUTPUT,
            metavar="NAME=FILE",
            help="A file beside it, as a mask; repeatable.",
        ),
    ] = None,
    model_href: Annotated[
        str | None,
        flag("--model-href", panel=OUTPUT, metavar="URL", help="Where the model's weights can be had."),
    ] = None,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Write STAC items of an output and of the model that made it.

    Lists of pairs have dates already; for a single pair give --before-date and --after-date.
    """
    from deltavlm.geo.sinks import check_output, write_output
    from deltavlm.summaries.results import read_results
    from deltavlm.summaries.stac import dump_item, result_item
    from deltavlm.summaries.stac_model import model_item, model_item_name

    target = output or result.parent / f"{result.stem}.stac.json"
    if str(target) == "-":
        raise ConfigError("-o -: there are two items, so they go to files; name one")
    if target.resolve() == result.resolve():
        raise ConfigError(f"{target}: is the output itself; give another name with -o")
    check_output(target, overwrite, SUFFIXES)
    beside = _assets(asset or [])
    results = read_results([result])
    item = result_item(
        results, target, item_id=item_id, before_date=before_date, after_date=after_date, beside=beside
    )
    run = results.runs[0]
    of_model = target.with_name(model_item_name(run))
    is_there = not overwrite and of_model.exists()  # of another output of the same model
    if not is_there:
        write_output(of_model, dump_item(model_item(run, model_href)).encode(), overwrite)
    write_output(target, dump_item(item).encode(), overwrite)
    if json_summary:
        typer.echo(json.dumps({"item": str(target), "model": str(of_model)}, ensure_ascii=False))
    console.info(f"item {target}, model {of_model}{' (was there already)' if is_there else ''}")


def _assets(texts: list[str]) -> dict[str, Path]:
    """`mask=mask.tif` -> a file by its name. Raises: BadParameter."""
    files = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not (name and equals and Path(file).is_file()):
            raise typer.BadParameter(
                f"{text!r} is not NAME=FILE with a file that is there", param_hint="--asset"
            )
        files[name] = Path(file)
    return files
