"""`deltavlm report`: an output of `analyze` as one page, or as one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options, parsing
from deltacli.console import console, pluralize
from deltacli.flag_groups import CommonFlags, grouped
from deltavlm.errors import InputError

if TYPE_CHECKING:
    from deltavlm.report.images import ImageOptions
    from deltavlm.report.scenes import Scene

HTML_SUFFIXES, PNG_SUFFIXES = (".html", ".htm"), (".png",)

_TOLD = 3  # pairs without pictures that are named


@grouped
def report(
    source: Annotated[Path, typer.Argument(metavar="OUTPUT", help="What deltavlm analyze has written.")],
    output: Annotated[
        Path | None,
        options.flag(
            *("--output", "-o"),
            panel=options.OUTPUT,
            metavar="FILE.html|-",
            help="The page; - is stdout.",
            show_default="<OUTPUT's stem>_report.html",
        ),
    ] = None,
    quicklook: Annotated[
        Path | None,
        options.flag(
            "--quicklook",
            panel=options.OUTPUT,
            metavar="FILE.png",
            help="A picture instead, or with -o too: before, after, and the changed chips marked.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    pair: Annotated[
        str | None,
        options.flag("--pair", panel=options.OUTPUT, metavar="ID", help="This one of many pairs alone."),
    ] = None,
    overview_size: Annotated[
        int,
        options.flag(
            "--overview-size",
            panel=options.OUTPUT,
            metavar="PX",
            min=256,
            max=8192,
            help="Long side of the overview of a pair.",
        ),
    ] = 2048,
    before: Annotated[
        str | None,
        options.flag(
            "--before",
            panel=options.RASTERS,
            metavar="FILE",
            show_default="as the output names it",
            help="Where the earlier image is now.",
        ),
    ] = None,
    after: Annotated[
        str | None,
        options.flag(
            "--after",
            panel=options.RASTERS,
            metavar="FILE",
            show_default="as the output names it",
            help="Where the later image is now.",
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
    """Show an output of `analyze` as one HTML file, which holds all that it shows and asks no server.

    Both dates with a swipe, chips coloured by score, their answers, filters, search, totals and origin.
    Images that are no longer where they were are looked for beside OUTPUT; without them the page has no
    pictures.
    """
    if output is None and quicklook is None:
        output = Path(parsing.default_output(str(source), "_report.html"))
    if str(output) == "-" and json_summary:
        raise typer.BadParameter("stdout is taken by the page of -o -", param_hint="--json")
    given = [
        None if place is None else parsing.check_location(name, place)
        for name, place in (("--before", before), ("--after", after))
    ]

    from deltavlm.geo.sinks import check_output
    from deltavlm.report.images import ImageOptions

    for path, suffixes in ((output, HTML_SUFFIXES), (quicklook, PNG_SUFFIXES)):
        check_output(path, overwrite, suffixes)
    image_options = ImageOptions(
        before=given[0], after=given[1], allow_vrt=allow_vrt, allow_remote=allow_remote
    )
    told = write_report(
        source, output, quicklook, image_options, overwrite=overwrite, pair=pair, overview_px=overview_size
    )
    if json_summary:
        typer.echo(json.dumps(told, ensure_ascii=False))


def write_report(
    source: Path,
    html: Path | None,
    quicklook: Path | None,
    image_options: ImageOptions,
    *,
    overwrite: bool,
    pair: str | None = None,
    overview_px: int = 2048,
) -> dict[str, Any]:
    """Write the page and the picture of an output; what has been made, ready for JSON.

    Raises:
        InputError: no output, no such pair, or an image that was named here cannot be used.
        OutputError and WriteError: as `write_whole`.
    """
    from deltavlm.geo.sinks import write_whole
    from deltavlm.report.outputs import read_output
    from deltavlm.report.page import ImageLimits, report_html
    from deltavlm.report.scenes import build_scenes, select_scene

    found = read_output(source)
    scenes = build_scenes(found)
    if pair is not None:
        scenes = [select_scene(scenes, pair)]
    if not scenes:
        raise InputError(f"{source}: holds neither chips nor pairs, so there is nothing to show")
    _check_one(source, scenes, image_options, quicklook)
    chips = sum(len(scene.chips) for scene in scenes)
    told: dict[str, Any] = {"pairs": len(scenes), "chips": chips, "without_pictures": {}}
    if html is not None:
        with console.count_progress(len(scenes), "pairs", beside_data=str(html) == "-") as tell:
            text, missing = report_html(
                found,
                scenes,
                image_options,
                ImageLimits(overview_px=overview_px),
                lambda done: tell(done, ""),
            )
        if image_options.before or image_options.after:
            for reason in missing.values():
                raise InputError(reason)
        _tell_missing(missing)
        content = text.encode()
        if str(html) == "-":
            typer.echo(text, nl=False)
        else:
            write_whole(html, content, overwrite)
        told |= {"without_pictures": missing, "output": str(html), "bytes": len(content)}
        console.info(f"{pluralize(chips, 'chip')}; report {'on stdout' if str(html) == '-' else html}")
    if quicklook is not None:
        write_whole(quicklook, _drawn(scenes[0], image_options, source), overwrite)
        told |= {"quicklook": str(quicklook)}
        console.info(f"quicklook {quicklook}")
    return told


def _check_one(
    source: Path, scenes: list[Scene], image_options: ImageOptions, quicklook: Path | None
) -> None:
    """Raises: InputError where many pairs are there, and what is wished is of one."""
    wished = (
        "--quicklook"
        if quicklook
        else "--before and --after"
        if image_options.before or image_options.after
        else ""
    )
    if len(scenes) > 1 and wished:
        raise InputError(
            f"{source}: has {len(scenes)} pairs, and {wished} is for one; choose it with --pair, "
            f"such as --pair {scenes[0].name}"
        )


def _drawn(scene: Scene, image_options: ImageOptions, source: Path) -> bytes:
    from deltavlm.report.images import open_scene
    from deltavlm.report.quicklook import quicklook_png

    with open_scene(scene, image_options, source.absolute().parent) as seen:
        return quicklook_png(scene, seen)


def _tell_missing(missing: dict[str, str]) -> None:
    """Say which pairs have no pictures."""
    for name, reason in list(missing.items())[:_TOLD]:
        console.warning(f"no pictures{f' of {name}' if name else ''}: {reason}")
    if len(missing) > _TOLD:
        console.warning(f"no pictures of {len(missing) - _TOLD} more pairs either")
