"""`deltavlm weights fetch`: the published model from the Hub to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deltacli import options
from deltacli.console import console
from deltacli.converted import Difference, LinkLanguage, print_converted


def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The published model: deltavlm-7b.")
    ] = "deltavlm-7b",
    output: Annotated[
        Path | None,
        typer.Option(
            *("--output", "-o"),
            metavar="DIR",
            show_default="where --model NAME finds it",
            help="Where the checkpoint goes; must be new.",
        ),
    ] = None,
    vision: Annotated[
        Path | None,
        typer.Option(
            "--vision",
            metavar="FILE|DIR",
            show_default="fetch InstructBLIP's",
            help="A vision base that is here already: eva_vit_g.pth.",
        ),
    ] = None,
    timm: Annotated[
        bool, typer.Option("--timm", help="Fetch timm's vision base: smaller, most likely the same.")
    ] = False,
    llm: Annotated[
        Path | None,
        typer.Option("--llm", metavar="DIR", help="A language model that is here already."),
    ] = None,
    revision: Annotated[
        list[str] | None,
        typer.Option(
            "--revision",
            metavar="REPO=COMMIT",
            help="Branch, tag or commit of a repository, to get the same files again; can be repeated.",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", metavar="DIR", show_default="of hf", help="Where downloads are kept."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take what was downloaded before.")] = False,
    no_convert: Annotated[bool, typer.Option("--no-convert", help="Download only.")] = False,
    difference: Difference = "auto",
    link_llm: LinkLanguage = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show sizes, places and terms; download nothing.")
    ] = False,
    json_summary: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    progress: options.ShowProgress = None,
    color: options.ColorMode = None,
    log_format: options.LogFormatName = None,
) -> None:
    """Download the published model's four parts and make a checkpoint of them, which --model NAME then asks.

    What is in the cache is not downloaded again, and every file is checked.
    """
    from deltavlm.errors import InputError, OutputError
    from deltavlm.model.folder import home
    from deltavlm.upstream import disk
    from deltavlm.upstream import fetch as hub
    from deltavlm.upstream import plan as planning
    from deltavlm.upstream.parts import CHECKPOINT, LANGUAGE, PARTS, TIMM_BASE, VISION, VOCABULARY

    if name != "deltavlm-7b":
        raise InputError(f"no published model {name!r}; there is deltavlm-7b")
    folder = output or home() / name
    if not no_convert and folder.exists():
        raise OutputError(f"{folder} is there already; delete it to fetch anew, or give another -o")
    parts = [part for part in PARTS if llm is None or part.name != LANGUAGE]
    if timm:
        parts = [TIMM_BASE if part.name == VISION else part for part in parts]
    planned = planning.plan(
        parts,
        vision=vision,
        cache_dir=cache_dir,
        offline=offline,
        revisions=_revisions(revision, {part.repo: part.name for part in parts}),
    )
    for line in planned.lines():
        console.info(line)
    if not no_convert:
        needed = sum(part.size for part in planned.parts if not (link_llm and part.part.name == LANGUAGE))
        free = disk.free_bytes(folder)
        console.info(
            f"then made into {folder}: up to {disk.size_text(needed)}, {disk.size_text(free)} free there"
        )
        same_disk = planned.missing if _same_disk(folder, planned.cache_dir) else 0
        if needed + same_disk > free and not dry_run:
            raise InputError(
                f"{folder} needs up to {disk.size_text(needed + same_disk)} with the downloads,"
                f" {disk.size_text(free)} are free; give -o on another disk,"
                f" or --link-llm to leave the language model where it is"
            )
    record: dict[str, Any] = {
        "parts": {
            part.part.repo: {"commit": part.commit, "bytes": part.size, "missing": part.missing}
            for part in planned.parts
        },
        "output": None if no_convert else str(folder),
    }
    if dry_run:
        if json_summary:
            typer.echo(json.dumps(record | {"dry_run": True}))
        return
    got = hub.fetch(planned, say=console.info, progress=console.show_progress and console.verbosity >= 0)
    for part in got.parts:
        console.info(f"{part.name}: {part.repo}={part.commit} in {part.path}")
    if not no_convert:
        from deltavlm.upstream.convert import convert as make
        from deltavlm.upstream.sources import Sources

        sources = Sources(
            got.path(CHECKPOINT),
            got.path(VISION),
            llm or got.path(LANGUAGE),
            got.path(VOCABULARY),
        )
        done = make(sources, folder, difference=difference, link_language=link_llm, say=console.info)
        print_converted(done, chosen=difference)
        console.info(f"ask it with --model {name if output is None else folder}")
    if json_summary:
        typer.echo(json.dumps(record | {"dry_run": False}))


def _revisions(given: list[str] | None, names: dict[str, str]) -> dict[str, str]:
    """`REPO=COMMIT` pairs as the names of parts and their revisions. Raises: InputError."""
    from deltavlm.config import suggest
    from deltavlm.errors import InputError

    found = {}
    for pair in given or []:
        repo, equals, commit = pair.partition("=")
        if not (equals and commit and repo in names):
            raise InputError(f"--revision {pair!r} is not REPO=COMMIT of a repository{suggest(repo, names)}")
        found[names[repo]] = commit
    return found


def _same_disk(one: Path, other: Path) -> bool:
    """Whether two places, or the nearest folders above them that are there, are on one disk."""
    devices = [
        next(place for place in (path.absolute(), *path.absolute().parents) if place.exists()).stat().st_dev
        for path in (one, other)
    ]
    return devices[0] == devices[1]
