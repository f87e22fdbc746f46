"""`deltavlm data`: sets of questions and answers: fetch one, check one, build one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options
from deltacli.console import counted, voice

if TYPE_CHECKING:
    from deltavlm.data.check import Checked
    from deltavlm.data.examples import Problem

data = typer.Typer(
    help="Sets of questions and answers: fetch ChangeChat-105k, check a copy, build one from masks.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

LEVIR_CC = "https://github.com/Chen-Yang-Liu/LEVIR-CC-Dataset"


@data.command()
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
    config: options.ConfigFile = None,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    progress: options.ShowProgress = None,
    color: options.ColorWhen = None,
) -> None:
    """Read every file of a set and open every picture it names; exits with 3 when something is amiss.

    The counts of ChangeChat-105k are compared with those of the released files.
    """
    from deltavlm.data.check import check as look
    from deltavlm.errors import PartialFailure

    checked = look(
        folder,
        images=images,
        size_px=size,
        full=full,
        counting=lambda total: voice.counting(total, "pictures"),
    )
    if json_summary:
        typer.echo(json.dumps(_record(folder, checked)))
    else:
        for line in _table(checked):
            typer.echo(line)
    tell_problems(checked.notes, "Odd, and left as it is")
    tell_problems(checked.faults, "Amiss")
    pictures = checked.pictures
    of_levir = any(file.expected is not None or "_task_data/" in file.name for file in checked.files)
    if of_levir and pictures.named and pictures.missing == pictures.named:
        voice.say(
            f"no picture is in {pictures.folder}: they are LEVIR-CC's, from {LEVIR_CC} (its own terms);"
            f" lay them there, or name their folder with --images"
        )
    if checked.faults:
        kinds = ", ".join(counted(number, kind) for kind, number in _kinds(checked.faults).items())
        raise PartialFailure(f"{folder}: amiss are {kinds}; --json names all")
    voice.say(f"{folder}: nothing is amiss")


def _table(checked: Checked) -> list[str]:
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


def _kinds(problems: Sequence[Problem]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for problem in problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    return kinds


def tell_problems(problems: Sequence[Problem], label: str, most: int = 3) -> None:
    """The first few of each kind, and how many there are."""
    for kind, number in _kinds(problems).items():
        told = [problem.what for problem in problems if problem.kind == kind]
        where = [problem.where for problem in problems if problem.kind == kind]
        shown = [
            what if place in what else f"{place}: {what}"
            for place, what in zip(where[:most], told[:most], strict=True)
        ]
        more = f"; and {number - most:,} more" if number > most else ""
        voice.warn(f"{label}: {counted(number, kind)}: {'; '.join(shown)}{more}")


def _record(folder: Path, checked: Checked) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "folder": str(folder),
        "files": [asdict(file) for file in checked.files],
        "pictures": asdict(checked.pictures) | {"folder": str(checked.pictures.folder)},
        "faults": [asdict(problem) for problem in checked.faults],
        "notes": [asdict(problem) for problem in checked.notes],
    }
