"""`deltavlm weights`: which models are here, and how the published one gets here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options
from deltacli.console import console
from deltacli.converted import Difference, LinkLanguage, print_converted, warn_of_base
from deltacli.fetch import fetch

if TYPE_CHECKING:
    from deltavlm.upstream.inspect import Inspection

weights = typer.Typer(
    help="Models that are here; fetch, inspect, convert and verify the published weights.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

Numbers = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default="expected.json beside the checkpoint, else the published model's",
        help="Where the numbers of attention heads stand, which weights do not show.",
    ),
]


@weights.command("list")
def list_models(
    json_summary: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    color: options.ColorMode = None,
    log_format: options.LogFormatName = None,
) -> None:
    """The models that --model knows by name, with their size and place."""
    from deltavlm.model.folder import home, models
    from deltavlm.upstream.disk import size_text

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


weights.command()(fetch)


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
    color: options.ColorMode = None,
    log_format: options.LogFormatName = None,
) -> None:
    """What a checkpoint holds, whether its difference module was trained, and whether a vision base fits."""
    from deltavlm.upstream.disk import size_text
    from deltavlm.upstream.inspect import inspect as look

    found = look(file, vision)
    warn_of_base(found)
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
    color: options.ColorMode = None,
    log_format: options.LogFormatName = None,
) -> None:
    """Make a checkpoint of ours of the published files; `--model DIR` then asks it."""
    from deltavlm.upstream.convert import convert as make
    from deltavlm.upstream.sources import Sources

    done = make(
        Sources(checkpoint, vision, llm, bert, numbers),
        output,
        difference=difference,
        link_language=link_llm,
        say=console.info,
    )
    print_converted(done, chosen=difference)
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
    color: options.ColorMode = None,
    log_format: options.LogFormatName = None,
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
        console.warning(
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
    console.info(
        f"equal to the original in {numbers}" if not failed else f"drift in {numbers}: see the table"
    )


def _inspected(found: Inspection) -> dict[str, Any]:
    from dataclasses import asdict

    from deltavlm.upstream.inspect import FITS

    return asdict(found) | {
        "path": str(found.path),
        "difference": found.difference,
        "base_fits": None if found.base_cosine is None else found.base_cosine >= FITS,
    }
