"""`deltavlm data`: sets of questions and answers: fetch one, check one, build one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options
from deltacli.build import build
from deltacli.console import console, count_by_kind, pluralize, print_problems
from deltacli.flag_groups import CommonFlags, grouped

if TYPE_CHECKING:
    from deltavlm.data.check import CheckReport

data = typer.Typer(
    help="Sets of questions and answers: fetch ChangeChat-105k, check a copy, build one from masks.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)


@data.command()
@grouped
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The set: changechat.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the files go.")] = Path(
        "changechat-105k"
    ),
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="COMMIT",
            show_default="a known commit",
            help="Branch, tag or commit of the repository.",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", metavar="DIR", show_default="of hf", help="Where downloads are kept."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take what was downloaded before.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show sizes, places and terms; download nothing.")
    ] = False,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Download ChangeChat-105k's questions and answers (eight files), and say where its pictures are from.

    What is in the cache is not downloaded again, and every file is checked.
    """
    from deltavlm.data import fetch as hub
    from deltavlm.errors import InputError

    if name not in ("changechat", "changechat-105k"):
        raise InputError(f"no set {name!r} to fetch; there is changechat")
    revision = revision or hub.REVISION
    planned = hub.plan(cache_dir=cache_dir, offline=offline, revision=revision)
    cached = planned.size - planned.missing
    console.info(
        f"{hub.REPO} at {revision[:12]} ({planned.commit[:12]}): {pluralize(len(planned.files), 'file')},"
        f" {planned.size / 1e6:.1f} MB, {cached / 1e6:.1f} MB of it in the cache {planned.hub.cache_dir}"
    )
    console.info(f"terms: {hub.LICENCE}")
    files = [str(output / file.name) for file in planned.files]
    if not dry_run:
        shown = console.show_progress and console.verbosity >= 0
        hub.fetch(planned, output, overwrite=overwrite, notify=console.info, progress=shown)
    console.info(
        f"the pictures are LEVIR-CC's, with terms of their own (academic use): get them from"
        f" {hub.IMAGES}, lay them so that {output / 'images' / 'test' / 'A'} is there,"
        f" then run: deltavlm data check {output}"
    )
    if json_summary:
        record = {
            "repo": hub.REPO,
            "commit": planned.commit,
            "bytes": planned.size,
            "missing": planned.missing,
            "folder": str(output),
            "files": files,
            "dry_run": dry_run,
        }
        typer.echo(json.dumps(record, ensure_ascii=False))


@data.command()
@grouped
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of ChangeChat-105k, ChangeIMTI or a made set.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            show_default="images in DIR",
            help="Where the paths of pictures begin: the folder that holds test/A.",
        ),
    ] = None,
    size: Annotated[
        int, typer.Option("--size", metavar="PX", min=1, help="Side that every picture should have.")
    ] = 256,
    full: Annotated[
        bool, typer.Option("--full", help="Decode every picture, instead of reading its header.")
    ] = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Read every file of a set and open every picture it names; exits with 3 when something is amiss.

    The counts of ChangeChat-105k are compared with those of the released files.
    """
    from deltavlm.data.check import check as look
    from deltavlm.data.fetch import IMAGES
    from deltavlm.errors import PartialFailure

    checked = look(
        folder,
        images=images,
        size_px=size,
        full=full,
        counting=lambda total: console.count_progress(total, "pictures"),
    )
    if json_summary:
        typer.echo(json.dumps(_record(folder, checked)))
    else:
        for line in _table(checked):
            typer.echo(line)
    print_problems(checked.notes, "Odd, and left as it is")
    print_problems(checked.faults, "Amiss")
    pictures = checked.pictures
    of_levir = any(file.expected is not None or "_task_data/" in file.name for file in checked.files)
    if of_levir and pictures.named and pictures.missing == pictures.named:
        console.info(
            f"no picture is in {pictures.folder}: they are LEVIR-CC's, from {IMAGES} (its own terms);"
            f" lay them there, or name their folder with --images"
        )
    if checked.faults:
        kinds = ", ".join(pluralize(number, kind) for kind, number in count_by_kind(checked.faults).items())
        raise PartialFailure(f"{folder}: amiss are {kinds}; --json names all")
    console.info(f"{folder}: nothing is amiss")


def _table(checked: CheckReport) -> list[str]:
    """Files, then pictures, for people."""
    wide = max(len(file.name) for file in checked.files) if checked.files else 0
    lines = []
    for file in checked.files:
        expected = "" if file.expected is None else f" of {file.expected:,}"
        tasks = ", ".join(f"{task} {number:,}" for task, number in file.tasks.items())
        lines.append(f"{file.name:{wide}s}  {file.records:,}{expected} records  {tasks}".rstrip())
    seen = checked.pictures
    lines.append(
        f"{seen.named:,} pictures named in {seen.folder}: {seen.missing:,} missing,"
        f" {seen.unreadable:,} unreadable, {seen.other_size:,} of another size"
    )
    return lines


def _record(folder: Path, checked: CheckReport) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "folder": str(folder),
        "files": [asdict(file) for file in checked.files],
        "pictures": asdict(checked.pictures) | {"folder": str(checked.pictures.folder)},
        "faults": [problem.to_json() for problem in checked.faults],
        "notes": [problem.to_json() for problem in checked.notes],
    }


data.command()(build)
