"""`deltavlm report`: an output of `analyze` as an HTML page and as a quicklook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options, parsing
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, grouped
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.report.build import Report
    from deltavlm.report.page import ImageLimits

_MAX_WARNINGS = 3  # pairs without images that are named one by one


@grouped
def report(
    source: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Output of deltavlm analyze or polygonize.")
    ],
    output: Annotated[
        Path | None,
        options.flag(
            *("--output", "-o"),
            panel=options.OUTPUT,
            metavar="FILE.html|-",
            help="HTML page; - writes it to stdout.",
            show_default="<OUTPUT's stem>_report.html",
        ),
    ] = None,
    quicklook: Annotated[
        Path | None,
        options.flag(
            "--quicklook",
            panel=options.OUTPUT,
            metavar="FILE.png",
            help="PNG instead of the page, or besides it with -o: before, after, changed chips outlined.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    pair: Annotated[
        str | None,
        options.flag("--pair", panel=options.OUTPUT, metavar="ID", help="Show only this one of many pairs."),
    ] = None,
    threshold: options.StoredThreshold = None,
    review: Annotated[
        bool,
        options.flag(
            "--review",
            panel=options.OUTPUT,
            help="A page with forms: accept or reject chips and polygons, and download that as JSON or CSV.",
        ),
    ] = False,
    overview_size: Annotated[
        int,
        options.flag(
            "--overview-size",
            panel=options.OUTPUT,
            metavar="PX",
            min=256,
            max=8192,
            help="Long side of a pair's overview.",
        ),
    ] = 2048,
    before: Annotated[
        str | None,
        options.flag(
            "--before",
            panel=options.RASTERS,
            metavar="FILE",
            show_default="as the output names it",
            help="Current path of the earlier image.",
        ),
    ] = None,
    after: Annotated[
        str | None,
        options.flag(
            "--after",
            panel=options.RASTERS,
            metavar="FILE",
            show_default="as the output names it",
            help="Current path of the later image.",
        ),
    ] = None,
    allow_vrt: options.AllowVrt = False,
    allow_remote: Annotated[
        bool,
        options.flag(
            "--allow-remote",
            panel=options.RASTERS,
            help="Fetch images that the output names at https://, s3:// or /vsi...",
        ),
    ] = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Show an output of `analyze` as a self-contained HTML page, or as a PNG quicklook.

    The page has both dates with a swipe, chips coloured by score, their answers, filters, search, totals and
    provenance, and makes no request to any server. Images that have been moved are looked for in the folder
    of OUTPUT; without them the page shows no images.
    """
    if output is None and quicklook is None:
        output = Path(parsing.default_output(str(source), "_report.html"))
    if review and output is None:
        raise typer.BadParameter("is for the page; name it with -o", param_hint="--review")
    if str(output) == "-" and json_summary:
        raise typer.BadParameter("stdout is taken by the page of -o -", param_hint="--json")

    from deltavlm.geo.location import local_file
    from deltavlm.geo.output_files import check_output
    from deltavlm.report.build import open_report
    from deltavlm.report.images import ImageOptions
    from deltavlm.report.page import ImageLimits

    images = ImageOptions(
        before=before and parsing.check_location("--before", before),
        after=after and parsing.check_location("--after", after),
        allow_vrt=allow_vrt,
        allow_remote=allow_remote,
    )
    written = parsing.named_files({"-o": output, "--quicklook": quicklook})
    read = {name: local_file(path) for name, path in (("--before", before), ("--after", after)) if path}
    parsing.check_files(written, {"OUTPUT": source, "--config": common.config, **read})
    for path, suffixes in ((output, options.HTML_SUFFIXES), (quicklook, options.PNG_SUFFIXES)):
        check_output(path, overwrite, suffixes)
    opened = open_report(source, images, pair, threshold=threshold)
    files = [*opened.image_files(), *opened.output.other_files]
    parsing.check_files(written, {"an image or a file of OUTPUT": files})
    summary = write_report(
        opened,
        output,
        quicklook,
        overwrite=overwrite,
        limits=ImageLimits(overview_px=overview_size),
        review=review,
    )
    if json_summary:
        typer.echo(json.dumps(summary, ensure_ascii=False))


def write_report(
    report: Report,
    html: Path | None,
    quicklook: Path | None,
    *,
    overwrite: bool,
    limits: ImageLimits | None = None,
    review: bool = False,
) -> dict[str, Any]:
    """Write the page and the quicklook of a report, with progress and messages. Returns the JSON summary.

    Raises:
        InputError: several pairs where one is needed, or a named image that cannot be used.
        OutputError and WriteError: as `write_output`.
    """
    from deltavlm.geo.output_files import write_output

    if quicklook is not None:
        report.check_single_pair("--quicklook")
    pair_count, to_stdout = len(report.pairs), str(html) == "-"
    summary: dict[str, Any] = {"pairs": pair_count, "chips": report.chip_count, "without_pictures": {}}
    if html is not None:
        with console.count_progress(pair_count, "pairs", stdout_has_data=to_stdout) as show_progress:
            text, missing = report.html(limits, lambda count: show_progress(count, ""), review=review)
        _warn_missing(missing)
        content = text.encode()
        if to_stdout:
            typer.echo(text, nl=False)
        else:
            write_output(html, content, overwrite)
        summary |= {"without_pictures": missing, "output": str(html), "bytes": len(content)}
        console.info(f"{pluralize(report.chip_count, 'chip')}; report {'on stdout' if to_stdout else html}")
    if quicklook is not None:
        write_output(quicklook, report.quicklook(), overwrite)
        summary |= {"quicklook": str(quicklook)}
        console.info(f"quicklook {quicklook}")
    return summary


def _warn_missing(missing: dict[str, str]) -> None:
    """Warn about pairs without images: id -> reason."""
    for name, reason in list(missing.items())[:_MAX_WARNINGS]:
        console.warning(f"no images{f' of {name}' if name else ''}: {reason}")
    if len(missing) > _MAX_WARNINGS:
        console.warning(f"no images of {pluralize(len(missing) - _MAX_WARNINGS, 'more pair')} either")
