"""`deltavlm data`: fetch, check or build a question set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options
from deltacli.console import console, count_by_kind, print_problems
from deltacli.data_build import build
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import OUTPUT, flag
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.data.check import CheckReport

DOWNLOAD, IMAGES = "Download", "Images"

data = typer.Typer(
    help="Question sets: fetch ChangeChat-105k, check a copy, build one from masks.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)


@data.command()
@grouped
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the set: changechat.")],
    output: Annotated[
        Path, flag("--output", "-o", panel=OUTPUT, metavar="DIR", help="Folder of the files.")
    ] = Path("changechat-105k"),
    revision: Annotated[
        str | None,
        flag(
            "--revision",
            panel=DOWNLOAD,
            metavar="COMMIT",
            show_default="a known commit",
            help="Branch, tag or commit of the repository.",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        flag("--cache-dir", panel=DOWNLOAD, metavar="DIR", show_default="of hf", help="Folder of downloads."),
    ] = None,
    offline: Annotated[bool, flag("--offline", panel=DOWNLOAD, help="Use only earlier downloads.")] = False,
    dry_run: Annotated[
        bool,
        flag("--dry-run", "-n", panel=OUTPUT, help="Show sizes, folders and the license; download nothing."),
    ] = False,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Download the eight files of ChangeChat-105k, and show where its images are to be had.

    Files in the cache are not downloaded again; every file is checked.
    """
    from deltavlm.data import fetch as hub
    from deltavlm.errors import InputError

    if name not in ("changechat", "changechat-105k"):
        raise InputError(f"no set {name!r} to fetch; the only one is changechat")
    revision = revision or hub.REVISION
    planned = hub.plan(cache_dir=cache_dir, offline=offline, revision=revision)
    cached = planned.size - planned.missing
    console.info(
        f"{hub.REPO} at {revision[:12]} ({planned.commit[:12]}): {pluralize(len(planned.files), 'file')},"
        f" {planned.size / 1e6:.1f} MB, {cached / 1e6:.1f} MB of it in the cache {planned.hub.cache_dir}"
    )
    console.info(f"license: {hub.LICENCE}")
    files = [str(output / file.name) for file in planned.files]
    if not dry_run:
        show_progress = console.show_progress and console.verbosity >= 0
        hub.fetch(planned, output, overwrite=overwrite, notify=console.info, progress=show_progress)
    console.info(
        f"the images are those of LEVIR-CC, under its own license (academic use): get them from"
        f" {hub.IMAGES}, so that the folder {output / 'images' / 'test' / 'A'} exists,"
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
        Path, typer.Argument(metavar="DIR", help="Folder of ChangeChat-105k, ChangeIMTI or a synthetic set.")
    ],
    images: Annotated[
        Path | None,
        flag(
            "--images",
            panel=IMAGES,
            metavar="DIR",
            show_default="images in DIR",
            help="Folder that the image paths start from: the one that holds test/A.",
        ),
    ] = None,
    size: Annotated[
        int,
        flag(
            "--size", panel=IMAGES, metavar="PX", min=1, help="Width and height that every image must have."
        ),
    ] = 256,
    full: Annotated[
        bool, flag("--full", panel=IMAGES, help="Decode every image, instead of reading its header.")
    ] = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Read every file of a set and open every image that it names; the exit code is 3 if there are faults.

    The numbers of records are compared with those of the released ChangeChat-105k.
    """
    from deltavlm.data.check import check_dataset
    from deltavlm.data.fetch import IMAGES as IMAGE_SOURCE
    from deltavlm.errors import PartialFailure

    report = check_dataset(
        folder,
        images=images,
        size_px=size,
        full=full,
        count_progress=lambda total: console.count_progress(total, "images"),
    )
    if json_summary:
        typer.echo(json.dumps(_summary(folder, report)))
    else:
        for line in _table(report):
            typer.echo(line)
    print_problems(report.notes, "Oddities")
    print_problems(report.faults, "Faults")
    if report.has_levir_images and report.images.named and report.images.missing == report.images.named:
        console.info(
            f"no image is in {report.images.folder}: they are those of LEVIR-CC, from {IMAGE_SOURCE}, under"
            f" its own license; put them there, or name their folder with --images"
        )
    if report.faults:
        kinds = ", ".join(pluralize(number, kind) for kind, number in count_by_kind(report.faults).items())
        raise PartialFailure(f"{folder} has faults: {kinds}; --json lists all of them")
    console.info(f"{folder}: no faults")


def _table(report: CheckReport) -> list[str]:
    """Lines of a table of files, and a line on images."""
    width = max((len(file.name) for file in report.files), default=0)
    lines = []
    for file in report.files:
        records = pluralize(file.records, "record")
        if file.expected is not None:
            records = f"{file.records:,} of {pluralize(file.expected, 'record')}"
        tasks = ", ".join(f"{task} {number:,}" for task, number in file.tasks.items())
        lines.append(f"{file.name:{width}s}  {records}  {tasks}".rstrip())
    images = report.images
    lines.append(
        f"{pluralize(images.named, 'image')} named in {images.folder}: {images.missing:,} missing,"
        f" {images.unreadable:,} unreadable, {images.other_size:,} of another size"
    )
    return lines


def _summary(folder: Path, report: CheckReport) -> dict[str, Any]:
    """JSON object of the report."""
    from dataclasses import asdict

    return {
        "folder": str(folder),
        "files": [asdict(file) for file in report.files],
        "pictures": asdict(report.images) | {"folder": str(report.images.folder)},
        "faults": [problem.to_json() for problem in report.faults],
        "notes": [problem.to_json() for problem in report.notes],
    }


data.command()(build)
