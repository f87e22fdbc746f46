"""`deltavlm weights`: which models are here, and how the published one gets here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options
from deltacli.console import counted, voice

if TYPE_CHECKING:
    from deltavlm.upstream.convert import Converted
    from deltavlm.upstream.inspect import Inspection

weights = typer.Typer(
    help="Models that are here; fetch, inspect, convert and verify the published weights.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

Difference = Annotated[
    Literal["auto", "csrm", "concat"],
    typer.Option(
        "--difference",
        help="What stands between the two dates: csrm as in the paper, concat without it, auto as the "
        "inspection finds.",
    ),
]
Numbers = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default="expected.json beside the checkpoint, else the published model's",
        help="Where the numbers of attention heads stand, which weights do not show.",
    ),
]
LinkLanguage = Annotated[
    bool, typer.Option("--link-llm", help="Write down where the language model is instead of copying it.")
]


@weights.command("list")
def list_models(
    json_summary: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    color: options.ColorWhen = None,
) -> None:
    """The models that --model knows by name, with their size and place."""
    from deltavlm.model.folder import home, models
    from deltavlm.upstream.fetch import size_text

    found: list[dict[str, Any]] = [
        {
            "name": name,
            "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
            "folder": str(folder),
        }
        for name, folder in sorted(models().items())
    ]
    if json_summary:
        typer.echo(json.dumps({"models": found, "home": str(home())}, ensure_ascii=False))
        return
    for model in found:
        typer.echo(f"{model['name']:16s} {size_text(model['bytes']):>9s}  {model['folder']}")
    if not any(model["name"] == "deltavlm-7b" for model in found):
        typer.echo(f"{'deltavlm-7b':16s} {'not here':>9s}  deltavlm weights fetch deltavlm-7b")


@weights.command()
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
    color: options.ColorWhen = None,
) -> None:
    """Download the published model's four parts and make a checkpoint of them, which --model NAME then asks.

    What is in the cache is not downloaded again, and every file is checked.
    """
    from deltavlm.errors import InputError, OutputError
    from deltavlm.model.folder import home
    from deltavlm.upstream import fetch as hub

    if name != "deltavlm-7b":
        raise InputError(f"no published model {name!r}; there is deltavlm-7b")
    folder = output or home() / name
    if not no_convert and folder.exists():
        raise OutputError(f"{folder} is there already; delete it to fetch anew, or give another -o")
    parts = [part for part in hub.PARTS if llm is None or part.name != hub.LANGUAGE]
    if timm:
        parts = [hub.TIMM_BASE if part.name == hub.VISION else part for part in parts]
    planned = hub.plan(
        parts,
        vision=vision,
        cache_dir=cache_dir,
        offline=offline,
        revisions=_revisions(revision, {part.repo: part.name for part in parts}),
    )
    for line in planned.lines():
        voice.say(line)
    if not no_convert:
        needed = sum(part.size for part in planned.parts if not (link_llm and part.part.name == hub.LANGUAGE))
        free = hub.free_bytes(folder)
        voice.say(f"then made into {folder}: up to {hub.size_text(needed)}, {hub.size_text(free)} free there")
        same_disk = planned.missing if _same_disk(folder, planned.cache_dir) else 0
        if needed + same_disk > free and not dry_run:
            raise InputError(
                f"{folder} needs up to {hub.size_text(needed + same_disk)} with the downloads,"
                f" {hub.size_text(free)} are free; give -o on another disk,"
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
    got = hub.fetch(planned, say=voice.say, progress=voice.progress and voice.verbosity >= 0)
    for part in got.parts:
        voice.say(f"{part.name}: {part.repo}={part.commit} in {part.path}")
    if not no_convert:
        from deltavlm.upstream.convert import Sources
        from deltavlm.upstream.convert import convert as make

        sources = Sources(
            got.path(hub.CHECKPOINT),
            got.path(hub.VISION),
            llm or got.path(hub.LANGUAGE),
            got.path(hub.VOCABULARY),
        )
        done = make(sources, folder, difference=difference, link_language=link_llm, say=voice.say)
        tell_converted(done, chosen=difference)
        voice.say(f"ask it with --model {name if output is None else folder}")
    if json_summary:
        typer.echo(json.dumps(record | {"dry_run": False}))


def _revisions(given: list[str] | None, names: dict[str, str]) -> dict[str, str]:
    """`REPO=COMMIT` pairs as the names of parts and their revisions. Raises: InputError."""
    from deltavlm.config import nearest
    from deltavlm.errors import InputError

    found = {}
    for pair in given or []:
        repo, equals, commit = pair.partition("=")
        if not (equals and commit and repo in names):
            raise InputError(f"--revision {pair!r} is not REPO=COMMIT of a repository{nearest(repo, names)}")
        found[names[repo]] = commit
    return found


def _same_disk(one: Path, other: Path) -> bool:
    """Whether two places, or the nearest folders above them that are there, are on one disk."""
    devices = [
        next(place for place in (path.absolute(), *path.absolute().parents) if place.exists()).stat().st_dev
        for path in (one, other)
    ]
    return devices[0] == devices[1]


@weights.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published checkpoint_best.pth.")],
    vision: Annotated[
        Path | None,
        typer.Option(
            "--vision", metavar="FILE|DIR", help="A vision base, to see whether it is the right one."
        ),
    ] = None,
    json_summary: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    color: options.ColorWhen = None,
) -> None:
    """What a checkpoint holds, whether its difference module was trained, and whether a vision base fits."""
    from deltavlm.upstream.fetch import size_text
    from deltavlm.upstream.inspect import inspect as look

    found = look(file, vision)
    _warn(found)
    if json_summary:
        typer.echo(json.dumps(_inspected(found), ensure_ascii=False))
        return
    typer.echo(f"{found.path}: {size_text(found.size)}, epoch {found.epoch}")
    for organ in found.organs:
        kinds = ", ".join(organ.dtypes)
        typer.echo(f"  {organ.name:24s} {organ.tensors:4d} tensors {organ.parameters:12,d} numbers  {kinds}")
    if found.unknown:
        typer.echo(f"  unknown: {', '.join(found.unknown[:5])}{' ...' if len(found.unknown) > 5 else ''}")
    blocks = ", ".join(map(str, found.blocks)) or "none (the vision tower was not tuned)"
    typer.echo(f"vision blocks: {blocks}")
    verdict = {True: "was trained", False: "was never trained", None: "cannot be judged"}[found.csrm_trained]
    typer.echo(f"difference module {verdict}: {'; '.join(found.evidence)}")
    typer.echo(f"difference: auto means {found.difference}")
    if found.base_cosine is not None:
        typer.echo(f"least cosine of the tuned blocks with the base: {found.base_cosine:.4f}")


@weights.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", metavar="FILE", help="The published checkpoint_best.pth.")
    ],
    vision: Annotated[
        Path,
        typer.Option(
            "--vision",
            metavar="FILE|DIR",
            help="The EVA-CLIP-g base: eva_vit_g.pth, the folder of instructblip-vicuna-7b, or timm's file.",
        ),
    ],
    llm: Annotated[
        Path, typer.Option("--llm", metavar="DIR", help="The language model: vicuna-7b-v1.5 or LLaVA-1.5-7b.")
    ],
    bert: Annotated[
        Path, typer.Option("--bert", metavar="DIR", help="Folder with the vocab.txt of bert-base-uncased.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the checkpoint goes; must be new.")
    ],
    numbers: Numbers = None,
    difference: Difference = "auto",
    link_llm: LinkLanguage = False,
    json_summary: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    color: options.ColorWhen = None,
) -> None:
    """Make a checkpoint of ours of the published files; `--model DIR` then asks it."""
    from deltavlm.upstream.convert import Sources
    from deltavlm.upstream.convert import convert as make

    done = make(
        Sources(checkpoint, vision, llm, bert, numbers),
        output,
        difference=difference,
        link_language=link_llm,
        say=voice.say,
    )
    tell_converted(done, chosen=difference)
    if json_summary:
        record = {
            "output": str(done.folder),
            "bytes": done.bytes,
            "tensors": done.filled,
            "ignored": list(done.ignored),
            "difference": done.config.difference.mode,
            "sources": done.config.sources,
            "inspection": _inspected(done.inspection),
        }
        typer.echo(json.dumps(record, ensure_ascii=False))


@weights.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A converted checkpoint.")],
    expected: Annotated[
        Path,
        typer.Option(
            "--expected",
            metavar="DIR",
            help="Folder with expected.json and expected.safetensors, what the original computed.",
        ),
    ],
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option("--dtype", help="fp32 must be equal; the others report how far they drift."),
    ] = "fp32",
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where it runs.")
    ] = "cpu",
    quantize: Annotated[
        Literal["none", "int8", "int4"],
        typer.Option("--quantize", help="Language model in 8 or 4 bit: reports how far it drifts."),
    ] = "none",
    json_summary: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    color: options.ColorWhen = None,
) -> None:
    """Compare a converted checkpoint with the original, stage by stage; exits with 1 where fp32 differs."""
    from dataclasses import asdict

    from deltavlm.errors import ModelError
    from deltavlm.model.folder import read_config
    from deltavlm.upstream.verify import TOLERANCE
    from deltavlm.upstream.verify import verify as compare

    coarse = None if quantize == "none" else quantize
    checks = compare(folder, expected, dtype=dtype, device=device, quantize=coarse)
    mode = read_config(folder).difference.mode
    if mode != "csrm":
        voice.warn(
            f"{folder} is asked with difference {mode}; it was compared with csrm, as the original runs"
        )
    failed = [check for check in checks if not check.passed]
    if json_summary:
        rows = [asdict(check) | {"passed": check.passed} for check in checks]
        record = {"dtype": dtype, "quantize": coarse, "tolerance": TOLERANCE, "checks": rows}
        typer.echo(json.dumps(record))
    else:
        for check in checks:
            off = "" if check.worst is None else f"  largest difference {check.worst:.1e} of {check.size:.3g}"
            typer.echo(f"{check.name:24s} {check.equal:3d} of {check.cases:3d} equal{off}")
    if dtype == "fp32" and coarse is None and failed:
        raise ModelError(
            f"{folder} is not equal to the original: {', '.join(check.name for check in failed)};"
            f" convert it again from the files that belong to {expected}"
        )
    numbers = dtype if coarse is None else f"{dtype}, language model in {coarse}"
    voice.say(f"equal to the original in {numbers}" if not failed else f"drift in {numbers}: see the table")


def tell_converted(done: Converted, chosen: str) -> None:
    """What was made, and what to mind."""
    from deltavlm.upstream.fetch import size_text

    mode = done.config.difference.mode
    voice.say(
        f"{counted(done.filled, 'tensor')} in {done.folder} ({size_text(done.bytes)}),"
        f" {len(done.ignored)} ignored; language model {done.config.sources['language']}"
    )
    if chosen == "auto":
        found = done.inspection
        verdict = "was trained" if found.csrm_trained else "was NEVER trained"
        tell = voice.say if mode == "csrm" else voice.warn
        tell(f"difference: {mode}, because the difference module {verdict} ({'; '.join(found.evidence)})")
    else:
        voice.say(f"difference: {mode}, as asked for")
    _warn(done.inspection)


def _warn(found: Inspection) -> None:
    from deltavlm.upstream.inspect import FITS

    if found.base_cosine is not None and found.base_cosine < FITS:
        voice.warn(
            f"the vision base does not look like the one that was tuned: least cosine"
            f" {found.base_cosine:.2f}, expected close to 1; its answers may be wrong"
        )


def _inspected(found: Inspection) -> dict[str, Any]:
    from dataclasses import asdict

    from deltavlm.upstream.inspect import FITS

    return asdict(found) | {
        "path": str(found.path),
        "difference": found.difference,
        "base_fits": None if found.base_cosine is None else found.base_cosine >= FITS,
    }
