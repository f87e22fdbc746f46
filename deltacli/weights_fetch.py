"""`deltavlm weights fetch` and what it shares with `weights convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import OUTPUT, flag
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.upstream import plan as planning
    from deltavlm.upstream.convert import Converted
    from deltavlm.upstream.inspect import Inspection

PUBLISHED = "Published files"  # panel of the help
Difference = Annotated[
    Literal["auto", "csrm", "concat"],
    flag(
        "--difference",
        panel=OUTPUT,
        help="Difference module: csrm as in the paper, concat without it, auto as the inspection finds.",
    ),
]
LinkLanguage = Annotated[
    bool,
    flag("--link-llm", panel=OUTPUT, help="Store the path of the language model instead of copying it."),
]


@grouped
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The published model: deltavlm-7b.")
    ] = "deltavlm-7b",
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="DIR",
            show_default="where --model NAME finds it",
            help="Checkpoint folder to create; must not exist.",
        ),
    ] = None,
    vision: Annotated[
        Path | None,
        flag(
            "--vision",
            panel=PUBLISHED,
            metavar="FILE|DIR",
            show_default="fetch InstructBLIP's",
            help="A local vision base: eva_vit_g.pth.",
        ),
    ] = None,
    timm: Annotated[
        bool, flag("--timm", panel=PUBLISHED, help="Fetch timm's vision base: smaller, most likely the same.")
    ] = False,
    llm: Annotated[
        Path | None, flag("--llm", panel=PUBLISHED, metavar="DIR", help="A local language model.")
    ] = None,
    revision: Annotated[
        list[str] | None,
        flag(
            "--revision",
            panel=PUBLISHED,
            metavar="REPO=COMMIT",
            help="Branch, tag or commit of a repository, to fetch the same files again; can be repeated.",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        flag(
            "--cache-dir",
            panel=PUBLISHED,
            metavar="DIR",
            show_default="of hf",
            help="Cache of downloads.",
        ),
    ] = None,
    offline: Annotated[bool, flag("--offline", panel=PUBLISHED, help="Use only files in the cache.")] = False,
    no_convert: Annotated[bool, flag("--no-convert", panel=OUTPUT, help="Download only.")] = False,
    difference: Difference = "auto",
    link_llm: LinkLanguage = False,
    dry_run: Annotated[
        bool, flag("--dry-run", "-n", panel=OUTPUT, help="Show sizes, folders and terms; download nothing.")
    ] = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Download the four components of the published model and convert them for --model NAME.

    Files in the cache are not downloaded again, and every file is checked.
    """
    from deltavlm.errors import InputError, OutputError
    from deltavlm.model.folder import home
    from deltavlm.upstream import fetch as fetching
    from deltavlm.upstream import plan as planning
    from deltavlm.upstream.components import parse_revisions, select_components

    if name != "deltavlm-7b":
        raise InputError(f"no published model {name!r}; there is deltavlm-7b")
    folder = None if no_convert else output or home() / name
    if folder is not None and folder.exists():
        raise OutputError(f"{folder} exists already; delete it to fetch again, or give another -o")
    components = select_components(language=llm is None, timm=timm)
    plan = planning.plan(
        components,
        vision=vision,
        cache_dir=cache_dir,
        offline=offline,
        revisions=parse_revisions(revision or (), components),
    )
    for line in plan.lines():
        console.info(line)
    if folder is not None:
        _check_space(planning.ConversionSpace.estimate(plan, folder, link_language=link_llm), dry_run)
    if not dry_run:
        fetched = fetching.fetch(
            plan, notify=console.info, progress=console.show_progress and console.verbosity >= 0
        )
        for component in fetched.components:
            console.info(f"{component.name}: {component.repo}={component.commit} in {component.path}")
        if folder is not None:
            from deltavlm.upstream.convert import convert

            converted = convert(
                fetched.sources(llm),
                folder,
                difference=difference,
                link_language=link_llm,
                notify=console.info,
            )
            print_converted(converted, difference)
            console.info(f"use it with --model {name if output is None else folder}")
    if json_summary:
        typer.echo(json.dumps(_record(plan, folder, dry_run)))


def _check_space(space: planning.ConversionSpace, dry_run: bool) -> None:
    from deltavlm.files import format_bytes

    console.info(
        f"then converted to {space.folder}: up to {format_bytes(space.size)}, {format_bytes(space.free)} free"
        f" there"
    )
    if not dry_run:
        space.check()


def _record(plan: planning.Plan, folder: Path | None, dry_run: bool) -> dict[str, Any]:
    return {
        "parts": {
            item.component.repo: {
                "commit": item.planned.commit,
                "bytes": item.planned.size,
                "missing": item.planned.missing,
            }
            for item in plan.components
        },
        "output": None if folder is None else str(folder),
        "dry_run": dry_run,
    }


def print_converted(converted: Converted, difference: str) -> None:
    """Print the result of a conversion and its warnings; `difference` is the mode asked for."""
    from deltavlm.files import format_bytes

    mode, inspection = converted.config.difference.mode, converted.inspection
    console.info(
        f"{pluralize(converted.tensors, 'tensor')} in {converted.folder} ({format_bytes(converted.bytes)}),"
        f" {len(converted.ignored)} ignored; language model {converted.config.sources['language']}"
    )
    if difference == "auto":
        verdict = "was trained" if inspection.csrm_trained else "was NOT trained"
        log = console.info if mode == "csrm" else console.warning
        log(f"difference: {mode}, because the difference module {verdict} ({'; '.join(inspection.evidence)})")
    else:
        console.info(f"difference: {mode}, as given")
    warn_about_base(inspection)


def warn_about_base(inspection: Inspection) -> None:
    """Warn if the vision base is not the one that was fine-tuned."""
    if inspection.base_fits is False:
        console.warning(
            f"the vision base does not look like the one that was fine-tuned: smallest cosine"
            f" {inspection.base_cosine:.2f}, expected close to 1; the answers may be wrong"
        )
