"""`deltavlm stac`: STAC items of an output and of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deltacli import options, parsing
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import OUTPUT, RASTERS, flag
from deltavlm.errors import ConfigError

SUFFIXES = (".json", ".geojson")


@grouped
def stac(
    result: Annotated[Path, typer.Argument(metavar="OUT", help="Output of deltavlm analyze or polygonize.")],
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="FILE",
            show_default="OUT's name with .stac.json, in the same folder",
            help="Item of the output; the item of the model is written to the same folder.",
        ),
    ] = None,
    item_id: Annotated[
        str | None,
        flag("--id", panel=OUTPUT, metavar="ID", show_default="OUT's name", help="Item id."),
    ] = None,
    before_date: Annotated[
        str | None,
        flag(
            "--before-date",
            panel=RASTERS,
            metavar="DATE",
            help="Date of the earlier image: a year, month or day.",
        ),
    ] = None,
    after_date: Annotated[
        str | None, flag("--after-date", panel=RASTERS, metavar="DATE", help="Date of the later image.")
    ] = None,
    asset: Annotated[
        list[str] | None,
        flag(
            "--asset",
            panel=OUTPUT,
            metavar="NAME=FILE",
            help="Another file as an asset, such as a mask; repeatable.",
        ),
    ] = None,
    model_href: Annotated[
        str | None,
        flag("--model-href", panel=OUTPUT, metavar="URL", help="URL of the model's weights."),
    ] = None,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Write STAC items of an output and of its model.

    Dates come from the list of pairs, if it has them; for a single pair give --before-date and --after-date.
    """
    from deltavlm.geo.output_files import check_output
    from deltavlm.summaries.results import read_results
    from deltavlm.summaries.stac import result_item, write_items
    from deltavlm.summaries.stac_model import model_item, model_item_name

    item_path = output or result.parent / f"{result.stem}.stac.json"
    if str(item_path) == "-":
        raise ConfigError("-o -: there are two items, so they go to files; name one")
    assets = _parse_assets(asset or [])
    read: dict[str, Path | list[Path] | None] = {"OUT": result, "--config": common.config}
    read["--asset"] = [*assets.values()]
    parsing.check_files([("-o", item_path)], read)
    check_output(item_path, overwrite, SUFFIXES)
    results = read_results([result])
    item = result_item(
        results, item_path, item_id=item_id, before_date=before_date, after_date=after_date, assets=assets
    )
    run = results.runs[0]
    model_path, model = item_path.with_name(model_item_name(run)), model_item(run, model_href)
    read["a file of OUT"] = [*results.other_files]
    parsing.check_files([("-o", item_path), ("the item of the model", model_path)], read)
    has_model_item = write_items(item_path, item, model_path, model, overwrite=overwrite)
    if json_summary:
        typer.echo(json.dumps({"item": str(item_path), "model": str(model_path)}, ensure_ascii=False))
    console.info(f"item {item_path}, model {model_path}{' (exists already)' if has_model_item else ''}")


def _parse_assets(texts: list[str]) -> dict[str, Path]:
    """`mask=mask.tif` as name and file. Raises BadParameter for other text, or a file that does not exist."""
    files = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not (name and equals and Path(file).is_file()):
            raise typer.BadParameter(f"{text!r} is not NAME=FILE with an existing file", param_hint="--asset")
        files[name] = Path(file)
    return files
