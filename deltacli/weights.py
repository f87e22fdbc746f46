"""`deltavlm weights`: list models; fetch, inspect, convert and verify the published weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, grouped
from deltacli.options import MODEL, OUTPUT, flag
from deltavlm.extras import require_package, require_torch
from deltavlm.messages import pluralize

if TYPE_CHECKING:
    from deltavlm.upstream import kinds as model_kinds
    from deltavlm.upstream import plan as planning
    from deltavlm.upstream.checks import Check
    from deltavlm.upstream.convert import Converted
    from deltavlm.upstream.inspect import Inspection

weights = typer.Typer(
    help="List models; fetch, inspect, convert and verify the published weights.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

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
ModelKind = Annotated[
    str,
    flag("--kind", panel=PUBLISHED, metavar="KIND", help="deltavlm, mci, changechat or changevg."),
]
HeadsConfig = Annotated[
    Path | None,
    flag(
        "--heads-config",
        panel=PUBLISHED,
        metavar="FILE",
        show_default="expected.json in the checkpoint's folder, else the published model's",
        help="Model configuration (YAML or JSON) with the numbers of attention heads, which the shapes of "
        "weights do not show.",
    ),
]


@weights.command("list")
@grouped
def list_models(
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """List the models that --model knows by name, and others known to fit, which are not installed.

    More of these can be written down in models.yaml in DELTAVLM_HOME, as in configs/models.yaml.
    """
    from deltavlm.files import folder_bytes, format_bytes
    from deltavlm.model.folder import home, models
    from deltavlm.model.known import known_models

    known = known_models()
    records: list[dict[str, Any]] = [
        {"name": name, "bytes": folder_bytes(folder), "folder": str(folder)}
        for name, folder in sorted(models().items())
    ]
    if json_summary:
        listed = [asdict(model) for model in known]
        report = {"models": records, "home": str(home()), "known": listed}
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    for record in records:
        typer.echo(f"{record['name']:16s} {format_bytes(record['bytes']):>9s}  {record['folder']}")
    if not any(record["name"] == "deltavlm-7b" for record in records):
        typer.echo(f"{'deltavlm-7b':16s} {'missing':>9s}  deltavlm weights fetch deltavlm-7b")
    typer.echo("\nknown to fit, with size, license, ground and whether they were tried here:")
    for model in known:
        tried = "tried" if model.tried else "not tried here"
        typer.echo(f"{model.name}\n    {model.size}; {model.license}; {model.ground}; {tried}")
    typer.echo("deltavlm doctor --model NAME proves one on this machine")


@weights.command()
@grouped
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The published model: deltavlm-7b or mci.")
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
    vocab: Annotated[
        Path | None,
        flag(
            "--vocab",
            panel=PUBLISHED,
            metavar="FILE",
            help="mci: a local vocab.json, if the repository of the weights has none.",
        ),
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
    """Download a published model and convert it for --model NAME: deltavlm-7b, or mci of Change-Agent.

    Files in the cache are not downloaded again, and every file is checked.
    """
    from deltavlm.errors import InputError, OutputError
    from deltavlm.model.folder import home
    from deltavlm.upstream import fetch as fetching
    from deltavlm.upstream import plan as planning
    from deltavlm.upstream.components import MCI, parse_revisions, select_components
    from deltavlm.upstream.memory import published_memory

    if name not in ("deltavlm-7b", "mci"):
        raise InputError(f"no published model {name!r}; there are deltavlm-7b and mci")
    folder = None if no_convert else output or home() / name
    if folder is not None and not dry_run:
        require_torch("the conversion of the downloaded files (not --no-convert)")
    if folder is not None and folder.exists():
        raise OutputError(f"{folder} exists already; delete it to fetch again, or give another -o")
    components = (MCI,) if name == "mci" else select_components(language=llm is None, timm=timm)
    plan = planning.plan(
        components,
        vision=vision,
        cache_dir=cache_dir,
        offline=offline,
        revisions=parse_revisions(revision or (), components),
    )
    for line in plan.lines():
        console.info(line)
    for line in published_memory(name):
        console.info(line)
    if name == "mci" and folder is not None:
        _check_vocabulary(plan, vocab)
    if folder is not None:
        _check_space(planning.ConversionSpace.estimate(plan, folder, link_language=link_llm), dry_run)
    if not dry_run:
        fetched = fetching.fetch(
            plan, notify=console.info, progress=console.show_progress and console.verbosity >= 0
        )
        for component in fetched.components:
            console.info(f"{component.name}: {component.repo}={component.commit} in {component.path}")
        if folder is not None:
            if name == "mci":
                _convert_mci(fetched.components[0].folder, vocab, folder)
            else:
                from deltavlm.upstream.convert import convert

                converted = convert(
                    fetched.sources(llm),
                    folder,
                    difference=difference,
                    link_language=link_llm,
                    notify=console.info,
                )
                _print_converted(converted, difference)
            console.info(f"use it with --model {name if output is None else folder}")
    if json_summary:
        typer.echo(json.dumps(_fetch_record(plan, folder, dry_run)))


@weights.command("inspect")
@grouped
def inspect_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="checkpoint_best.pth; MCI_model.pth; folder of a LoRA.")
    ],
    kind: ModelKind = "deltavlm",
    vision: Annotated[
        Path | None,
        flag(
            "--vision",
            panel=PUBLISHED,
            metavar="FILE|DIR",
            help="A vision base to compare with its vision blocks.",
        ),
    ] = None,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Show a checkpoint's modules, and whether its difference module was trained and a vision base fits."""
    require_torch("weights inspect")
    from deltavlm.model.folder import DEFAULT_KIND
    from deltavlm.upstream import kinds

    if kind != DEFAULT_KIND:
        contents = kinds.inspect(kind, file)
        if json_summary:
            typer.echo(json.dumps(asdict(contents) | {"path": str(file)}, ensure_ascii=False))
        else:
            _print_contents(contents)
        return
    from deltavlm.upstream.inspect import inspect

    inspection = inspect(file, vision)
    _warn_about_base(inspection)
    if json_summary:
        typer.echo(json.dumps(_inspection_record(inspection), ensure_ascii=False))
    else:
        _print_inspection(inspection)


@weights.command("convert")
@grouped
def convert_checkpoint(
    output: Annotated[
        Path,
        flag(
            "--output", "-o", panel=OUTPUT, metavar="DIR", help="Checkpoint folder to create; must not exist."
        ),
    ],
    kind: ModelKind = "deltavlm",
    checkpoint: Annotated[
        Path | None,
        flag(
            "--checkpoint",
            panel=PUBLISHED,
            metavar="FILE",
            help="deltavlm: the published checkpoint_best.pth; mci: MCI_model.pth.",
        ),
    ] = None,
    vision: Annotated[
        Path | None,
        flag(
            "--vision",
            panel=PUBLISHED,
            metavar="FILE|DIR",
            help="deltavlm: the EVA-CLIP-g base: eva_vit_g.pth, the folder of instructblip-vicuna-7b, or "
            "timm's file; changechat: the folder of clip-vit-large-patch14-336.",
        ),
    ] = None,
    llm: Annotated[
        Path | None,
        flag(
            "--llm",
            panel=PUBLISHED,
            metavar="DIR",
            help="deltavlm: the language model, vicuna-7b-v1.5 or LLaVA-1.5-7b.",
        ),
    ] = None,
    bert: Annotated[
        Path | None,
        flag(
            "--bert",
            panel=PUBLISHED,
            metavar="DIR",
            help="deltavlm: folder with the vocab.txt of bert-base-uncased.",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        flag(
            "--base",
            panel=PUBLISHED,
            metavar="DIR",
            help="changechat: the folder of llava-v1.5-7b; changevg: that of Qwen2.5-VL-7B-Instruct.",
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        flag(
            "--adapter",
            panel=PUBLISHED,
            metavar="DIR",
            help="changevg, changechat: the folder of the LoRA, which is merged; none to train from.",
        ),
    ] = None,
    mci: Annotated[
        Path | None,
        flag(
            "--mci",
            panel=PUBLISHED,
            metavar="FILE|DIR",
            help="changevg: the guide: MCI_model.pth, the folder that has it, or a checkpoint of kind mci.",
        ),
    ] = None,
    vocab: Annotated[
        Path | None,
        flag("--vocab", panel=PUBLISHED, metavar="FILE", help="mci, changevg: the vocab.json of MCI."),
    ] = None,
    projector: Annotated[
        Path | None,
        flag(
            "--projector",
            panel=PUBLISHED,
            metavar="FILE",
            show_default="the adapter's if it has one, else the base's",
            help="changechat: an mm_projector.bin in place of that of the adapter and of the base.",
        ),
    ] = None,
    heads_config: HeadsConfig = None,
    difference: Difference = "auto",
    link_llm: LinkLanguage = False,
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Convert the published files of a model into a checkpoint folder for --model DIR."""
    require_torch("weights convert")
    from deltavlm.model.folder import DEFAULT_KIND
    from deltavlm.upstream import kinds

    paths = {
        "checkpoint": checkpoint,
        "vision": vision,
        "llm": llm,
        "bert": bert,
        "base": base,
        "adapter": adapter,
        "mci": mci,
        "vocab": vocab,
        "projector": projector,
        "heads_config": heads_config,
    }
    if kind != DEFAULT_KIND:
        made = kinds.convert(kind, paths, output, console.info)
        _print_made(made)
        if json_summary:
            record = asdict(made) | {"output": str(made.folder), "kind": kind}
            typer.echo(json.dumps({key: record[key] for key in record if key != "folder"}))
        return
    from deltavlm.upstream.components import Sources
    from deltavlm.upstream.convert import convert

    converted = convert(
        kinds.make_sources(Sources, kind, paths),
        output,
        difference=difference,
        link_language=link_llm,
        notify=console.info,
    )
    _print_converted(converted, difference)
    if json_summary:
        record = {
            "output": str(converted.folder),
            "kind": kind,
            "bytes": converted.bytes,
            "tensors": converted.tensors,
            "ignored": list(converted.ignored),
            "difference": converted.config.difference.mode,
            "sources": converted.config.sources,
            "inspection": _inspection_record(converted.inspection),
        }
        typer.echo(json.dumps(record, ensure_ascii=False))


@weights.command("verify")
@grouped
def verify_checkpoint(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A converted checkpoint.")],
    expected: Annotated[
        Path,
        flag(
            "--expected",
            panel=PUBLISHED,
            metavar="DIR",
            help="Folder with expected.json and expected.safetensors, results of the original.",
        ),
    ],
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"],
        flag("--dtype", panel=MODEL, help="fp32 must be equal; the others report the drift."),
    ] = "fp32",
    device: Annotated[
        str, flag("--device", panel=MODEL, metavar="auto|cpu|cuda|mps", help="Device.")
    ] = "cpu",
    quantize: Annotated[
        Literal["none", "int8", "int4"],
        flag("--quantize", panel=MODEL, help="Language model in 8 or 4 bit; reports the drift."),
    ] = "none",
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Compare a converted checkpoint with the original, stage by stage; exits with 1 if fp32 differs."""
    require_torch("weights verify")
    from deltavlm.errors import ModelError
    from deltavlm.upstream import kinds

    quantization = None if quantize == "none" else quantize
    checks = kinds.verify(folder, expected, dtype=dtype, device=device, quantize=quantization)
    _warn_about_difference(folder)
    if json_summary:
        typer.echo(json.dumps(_checks_record(checks, dtype, quantization)))
    else:
        for check in checks:
            error = "" if check.worst is None else f"  largest error {check.worst:.1e} of {check.size:.3g}"
            typer.echo(f"{check.name:28s} {check.equal:3d} of {check.cases:3d} equal{error}")
    failed = [check.name for check in checks if not check.passed]
    if dtype == "fp32" and quantization is None and failed:
        raise ModelError(
            f"{folder} is not equal to the original: {', '.join(failed)};"
            f" convert it again from the files that belong to {expected}"
        )
    precision = dtype if quantization is None else f"{dtype}, language model in {quantization}"
    console.info(
        f"equal to the original in {precision}" if not failed else f"drift in {precision}: see the table"
    )


@weights.command("export")
@grouped
def export_checkpoint(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Checkpoint folder with a mask head, as train writes it.")
    ],
    json_summary: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Write the graphs with which OpenVINO runs a checkpoint on a CPU, into its folder."""
    require_torch("weights export")
    require_package("onnx", "weights export")
    from deltavlm.files import format_bytes
    from deltavlm.model import checkpoint
    from deltavlm.model.folder import GRAPHS
    from deltavlm.model.graphs import export_graphs

    with console.waiting(f"exporting the graphs of {folder}"):
        _, model = checkpoint.load(folder)
        export_graphs(model, folder)
    sizes = {name: (folder / name).stat().st_size for name in GRAPHS}
    console.info(f"wrote {', '.join(GRAPHS)} ({format_bytes(sum(sizes.values()))}) into {folder}")
    if json_summary:
        typer.echo(json.dumps({"folder": str(folder), "files": sizes}))


def _print_inspection(inspection: Inspection) -> None:
    from deltavlm.files import format_bytes

    typer.echo(f"{inspection.path}: {format_bytes(inspection.size)}, epoch {inspection.epoch}")
    for module in inspection.modules:
        dtypes = ", ".join(module.dtypes)
        typer.echo(
            f"  {module.name:24s} {module.tensors:4d} tensors {module.parameters:12,d} parameters  {dtypes}"
        )
    if inspection.unknown:
        names = [*inspection.unknown[:5], *(["..."] if len(inspection.unknown) > 5 else [])]
        typer.echo(f"  unknown: {', '.join(names)}")
    blocks = ", ".join(map(str, inspection.blocks)) or "none (the vision tower was not fine-tuned)"
    typer.echo(f"vision blocks: {blocks}")
    verdict = {True: "was trained", False: "was not trained", None: "cannot be judged"}
    evidence = "; ".join(inspection.evidence)
    typer.echo(f"difference module {verdict[inspection.csrm_trained]}: {evidence}")
    typer.echo(f"difference: auto means {inspection.difference}")
    if inspection.base_cosine is not None:
        typer.echo(f"smallest cosine of the tuned blocks with the base: {inspection.base_cosine:.4f}")


def _inspection_record(inspection: Inspection) -> dict[str, Any]:
    return asdict(inspection) | {
        "path": str(inspection.path),
        "difference": inspection.difference,
        "base_fits": inspection.base_fits,
    }


def _print_contents(contents: model_kinds.Contents) -> None:
    """Print what a published file of another kind than DeltaVLM's holds."""
    from deltavlm.files import format_bytes

    typer.echo(f"{contents.path}: {format_bytes(contents.size)}")
    for name, tensors, parameters, dtypes in contents.parts:
        typer.echo(f"  {name:24s} {tensors:4d} tensors {parameters:12,d} parameters  {dtypes}")
    typer.echo(f"  {pluralize(len(contents.ignored), 'tensor')} of these are not read by the model")
    for name in contents.unknown:
        typer.echo(f"  unknown: {name}")
    for key, value in contents.dims.items():
        typer.echo(f"{key}: {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")


def _check_vocabulary(plan: planning.Plan, vocab: Path | None) -> None:
    """Raises: InputError before a download where there is no vocabulary for the weights."""
    from deltavlm.errors import InputError

    names = [file.name for item in plan.components for file in item.planned.files]
    if vocab is None and "vocab.json" not in names:
        raise InputError(
            "the repository has no vocab.json; get it from the folder LEVIR_MCI of the code "
            "(github.com/Chen-Yang-Liu/Change-Agent) and give it with `vocab`"
        )
    if vocab is not None and not vocab.is_file():
        raise InputError(f"no file {vocab}; give the vocab.json of the model with `vocab`")


def _convert_mci(fetched: Path, vocab: Path | None, folder: Path) -> None:
    """Convert the files of MCI in the folder of a fetched repository."""
    from deltavlm.upstream import kinds

    paths = {"checkpoint": fetched / "MCI_model.pth", "vocab": vocab or fetched / "vocab.json"}
    _print_made(kinds.convert("mci", paths, folder, console.info))


def _print_made(made: model_kinds.Converted) -> None:
    """Print the result of a conversion of another kind than DeltaVLM's."""
    from deltavlm.files import format_bytes

    console.info(
        f"{pluralize(made.tensors, 'tensor')} in {made.folder} ({format_bytes(made.bytes)}),"
        f" {len(made.ignored)} ignored; from {', '.join(made.sources.values())}"
    )


def _warn_about_difference(folder: Path) -> None:
    """Warn where a DeltaVLM is configured without the difference module with which it was compared."""
    from deltavlm.model.folder import read_values

    mode = read_values(folder).get("difference", {}).get("mode", "csrm")
    if mode != "csrm":
        console.warning(
            f"{folder} is configured with difference {mode}; it was compared with csrm, as the original"
        )


def _checks_record(checks: list[Check], dtype: str, kind: str | None) -> dict[str, Any]:
    from deltavlm.upstream.checks import TOLERANCE

    rows = [asdict(check) | {"passed": check.passed} for check in checks]
    return {"dtype": dtype, "quantize": kind, "tolerance": TOLERANCE, "checks": rows}


def _check_space(space: planning.ConversionSpace, dry_run: bool) -> None:
    from deltavlm.files import format_bytes

    console.info(
        f"then converted to {space.folder}: up to {format_bytes(space.size)}, {format_bytes(space.free)} free"
        f" there"
    )
    if not dry_run:
        space.check()


def _fetch_record(plan: planning.Plan, folder: Path | None, dry_run: bool) -> dict[str, Any]:
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


def _print_converted(converted: Converted, difference: str) -> None:
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
    _warn_about_base(inspection)


def _warn_about_base(inspection: Inspection) -> None:
    """Warn if the vision base is not the one that was fine-tuned."""
    if inspection.base_fits is False:
        console.warning(
            f"the vision base does not look like the one that was fine-tuned: smallest cosine"
            f" {inspection.base_cosine:.2f}, expected close to 1; the answers may be wrong"
        )
