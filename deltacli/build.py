"""`deltavlm data build`: a question set made of class masks, and of captions where there are some."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deltacli import options
from deltacli.console import console, pluralize, print_problems
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import flag
from deltacli.synth import free, whole

if TYPE_CHECKING:
    from deltavlm.data.build import BuildResult
    from deltavlm.data.endpoint import QuestionWriter

RULES, OPEN, OUTPUT = "Rules", "Open questions", options.OUTPUT
KEY = "DELTAVLM_LLM_KEY"


@grouped
def build(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of pictures: SPLIT/A/NAME and SPLIT/B/NAME.")
    ],
    masks: Annotated[
        Path,
        typer.Argument(metavar="MASKS", help="Folder of masks: SPLIT/label/NAME or SPLIT/NAME."),
    ],
    captions: Annotated[
        Path | None,
        typer.Argument(
            metavar="CAPTIONS", help="LevirCCcaptions.json, or a file like it.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path, flag("--output", "-o", panel=OUTPUT, metavar="DIR", help="Where the set goes.")
    ] = Path("built"),
    name: Annotated[
        str, flag("--name", panel=OUTPUT, metavar="NAME", help="Of the set: files are NAME_SPLIT*.json.")
    ] = "built",
    copy_images: Annotated[
        bool, flag("--copy-images", panel=OUTPUT, help="Copy pictures into DIR, instead of a link to IMAGES.")
    ] = False,
    split: Annotated[
        list[str] | None,
        flag(
            "--split",
            panel=OUTPUT,
            metavar="SPLIT",
            show_default="all in IMAGES",
            help="train, val or test; can be repeated.",
        ),
    ] = None,
    connectivity: Annotated[
        Literal["4", "8"],
        flag("--connectivity", panel=RULES, help="8: pixels that touch at a corner are one thing."),
    ] = "8",
    min_area: Annotated[
        int,
        flag("--min-area", panel=RULES, metavar="PX", min=1, help="Smaller things are left out."),
    ] = 1,
    cell_rule: Annotated[
        Literal["any", "share", "centroid"],
        flag(
            "--cell-rule",
            panel=RULES,
            help="Which cells are named: those with any pixel, with a share of pixels, or with a centroid.",
        ),
    ] = "any",
    cell_share: Annotated[
        float,
        flag("--cell-share", panel=RULES, min=0.0, max=1.0, metavar="SHARE", help="For --cell-rule share."),
    ] = 0.01,
    classes: Annotated[
        str | None,
        flag(
            "--class-map",
            panel=RULES,
            metavar="CLASS=VALUE,...",
            show_default="LEVIR-MCI's",
            help="Such as road=1,building=2 or road=#ffff00; background is 0, and what is given as such.",
        ),
    ] = None,
    llm_endpoint: Annotated[
        str | None,
        flag(
            "--llm-endpoint",
            panel=OPEN,
            metavar="URL",
            help=f"OpenAI-compatible, up to /v1, to write open questions; its key is read from {KEY}.",
        ),
    ] = None,
    llm_model: Annotated[
        str | None, flag("--llm-model", panel=OPEN, metavar="NAME", help="The model to ask there.")
    ] = None,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Yes/no, counts, cells and dialogues from masks of roads and buildings, as ChangeChat-105k has them.

    Pairs that cannot be used are named and left out; the exit code is then 3.
    """
    from deltavlm.data.build import SUFFIXES, find_splits
    from deltavlm.data.build import build as make
    from deltavlm.data.changechat import write_json_files
    from deltavlm.data.levircc import read_captions
    from deltavlm.data.masks import LEVIR_MCI, MaskRules, parse_class_map
    from deltavlm.errors import PartialFailure

    _check_name(name)
    chosen = _splits(split, find_splits(images))
    suffixes = {one: ("",) if one == "train" else SUFFIXES for one in chosen}
    targets = [output / f"{name}_{one}{suffix}.json" for one in chosen for suffix in suffixes[one]]
    free(targets, overwrite)
    place = output / "images"
    linking = _placing(images, place, copy_images, overwrite)
    known = LEVIR_MCI if classes is None else parse_class_map(classes)
    told, problems = (None, []) if captions is None else read_captions(captions)
    ask = _asker(llm_endpoint, llm_model, output / f"{name}_open_replies.jsonl")
    built = make(
        images,
        masks,
        told,
        name=name,
        splits=chosen,
        rules=MaskRules(8 if connectivity == "8" else 4, min_area, cell_rule, cell_share),
        classes=known,
        ask=ask,
        counting=lambda total: console.count_progress(total, "pairs"),
    )
    problems += built.problems
    with whole(output) as part:
        write_json_files(part, built.files)
        if linking:
            _place(images, part / "images", built.pictures if copy_images else None)
    for path in targets:  # of an earlier run with captions, or open questions
        if path.name not in built.files:
            path.unlink(missing_ok=True)
    _tell(built, output, ask)
    if json_summary:
        summary = {
            "folder": str(output),
            "pairs": built.pairs,
            "files": {file: len(content) for file, content in built.files.items()},
            "problems": [{"where": one.location, "what": one.message} for one in problems],
            "notes": [{"where": one.location, "what": one.message} for one in built.notes],
        }
        typer.echo(json.dumps(summary))
    if problems:
        print_problems(problems, "Left out")
        raise PartialFailure(
            f"{output} is written, and {pluralize(len(problems), 'problem')} met on the way; --json names all"
        )


def _check_name(name: str) -> None:
    """Raises: BadParameter."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, flags=re.ASCII):
        raise typer.BadParameter(f"{name!r} is not letters, digits, - and _", param_hint="--name")
    if name == "changechat_105k":  # whose published figures would stand beside other data
        raise typer.BadParameter("is the released set's; give another", param_hint="--name")


def _splits(given: list[str] | None, there: tuple[str, ...]) -> tuple[str, ...]:
    """Raises: BadParameter for a split that the pictures do not have."""
    for one in given or ():
        if one not in there:
            raise typer.BadParameter(f"{one!r}; IMAGES has {', '.join(there)}", param_hint="--split")
    return tuple(one for one in there if given is None or one in given)


def _placing(images: Path, place: Path, copy: bool, overwrite: bool) -> bool:
    """Whether pictures are still to be put there. Raises: OutputError when something else is in the way."""
    from deltavlm.errors import OutputError

    if not os.path.lexists(place):
        return True
    if place.exists() and place.samefile(images) and not (copy and place.is_symlink()):
        return False
    if place.is_symlink() or not copy:  # never written through: what is behind it may be the originals
        raise OutputError(f"{place} is there, and leads elsewhere; delete it, or give another -o")
    free([place], overwrite)
    return True


def _place(images: Path, place: Path, pictures: Iterable[str] | None) -> None:
    """A link to the pictures, or copies of those that are named. Raises: OutputError."""
    from deltavlm.errors import OutputError

    if pictures is None:
        try:
            place.symlink_to(images.resolve(), target_is_directory=True)
        except (OSError, NotImplementedError) as error:
            raise OutputError(f"cannot make a link to {images} ({error}); give --copy-images") from error
        return
    for name in pictures:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images / name, place / name)


def _asker(endpoint: str | None, model: str | None, store: Path) -> QuestionWriter | None:
    """What asks for open questions. Raises: ConfigError when half of it is given."""
    from deltavlm.data.endpoint import Endpoint, QuestionWriter, ReplyLog
    from deltavlm.errors import ConfigError

    if endpoint is None and model is None:
        return None
    if endpoint is None or model is None:
        raise ConfigError("--llm-endpoint and --llm-model belong together; give both")
    asker = QuestionWriter(Endpoint(endpoint, model, os.environ.get(KEY) or None), ReplyLog(store))
    if asker.store.known:
        console.info(f"{pluralize(len(asker.store.known), 'pair')} answered before, in {store}")
    return asker


def _tell(built: BuildResult, output: Path, ask: QuestionWriter | None) -> None:
    print_problems(built.notes, "Odd, and left as it is")
    for file, content in built.files.items():
        console.info(f"{output / file}: {pluralize(len(content), 'record')}")
    if ask is not None:
        console.info(
            f"{ask.endpoint.model} was asked for {pluralize(ask.asked, 'pair')}; all in {ask.store.path}"
        )
    console.info(f"{pluralize(built.pairs, 'pair')} in {output}")
