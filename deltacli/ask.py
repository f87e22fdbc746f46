"""`deltavlm ask`: questions of one's own about a pair of images."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltacli import options
from deltacli.analyze import analyze_pair
from deltacli.analyze_flags import RunFlags
from deltacli.console import warn_about_scale
from deltacli.flag_groups import (
    At,
    ChipFlags,
    CommonFlags,
    ModelFlags,
    OutputFlags,
    RasterFlags,
    WindowBbox,
    WindowFlags,
    grouped,
    open_rasters,
)
from deltacli.options import CHIPS, COMMON, MODEL, OUTPUT, flag
from deltavlm.errors import ConfigError, InputError

if TYPE_CHECKING:
    from deltavlm.tasks.questions import QuestionSpec


@dataclass(frozen=True, kw_only=True)
class AskedGround(ChipFlags):
    """One picture of the pair; with --all-chips, its chips as `analyze` cuts them."""

    at: At = None
    bbox: WindowBbox = None
    all_chips: Annotated[
        bool,
        flag(
            "--all-chips",
            panel=CHIPS,
            help="Ask about every chip and write a map, with all that analyze has for it.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class AskCommonFlags(CommonFlags):
    """-q is a question here."""

    quiet: Annotated[
        bool, flag("--quiet", panel=COMMON, callback=options.set_quiet, help="Say errors only.")
    ] = False


@grouped
def ask(
    before: options.Before,
    after: options.After,
    question: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="What you want to know; from stdin if piped, a line each."),
    ] = None,
    *,
    more: Annotated[
        list[str] | None,
        flag("--question", "-q", panel=MODEL, metavar="TEXT", help="A question; can be repeated."),
    ] = None,
    file: Annotated[
        Path | None,
        flag(
            *("--questions", "-Q"),
            panel=MODEL,
            metavar="FILE",
            help="Questions from a file: a line each, or a .yaml as analyze has it.",
        ),
    ] = None,
    asked: ModelFlags,
    cascade: options.Cascade = False,
    batch_size: options.BatchSize = "auto",
    ground: AskedGround,
    out: OutputFlags,
    geojson: Annotated[
        bool,
        flag(
            "--geojson",
            panel=OUTPUT,
            help="GeoJSON on stdout: the window, the cells that an answer names, the changed ground.",
        ),
    ] = False,
    json_record: Annotated[
        bool,
        flag(
            "--json",
            panel=COMMON,
            allow_from_autoenv=False,
            help="A JSON object a question: answer, score, window, model; with --all-chips that of analyze.",
        ),
    ] = False,
    rasters: RasterFlags,
    common: AskCommonFlags,
) -> None:
    """Ask about a pair of images: a small one whole, of a large one the place that you name.

    Answers go to stdout, a line each, in the order of the questions.
    """
    if geojson and (json_record or ground.all_chips):
        other = "--json" if json_record else "--all-chips; write -o FILE.geojson"
        raise typer.BadParameter(f"cannot be combined with {other}", param_hint="--geojson")
    specs = _questions([*(question or ()), *(more or ())], file)
    if ground.all_chips:
        if ground.at is not None:
            raise typer.BadParameter("cannot be combined with --all-chips", param_hint="--at")
        flags = RunFlags(
            out=out,
            model=asked,
            chips=ground,
            rasters=rasters,
            cascade=cascade,
            batch_size=batch_size,
            json_summary=json_record,
        )
        analyze_pair(before, after, specs, flags)
        return
    _refuse_flags_of_a_map(out, ground, cascade, batch_size)
    place = WindowFlags(at=ground.at, bbox=ground.bbox, bbox_crs=ground.bbox_crs, chip_size=ground.chip_size)
    runtime = asked.runtime_options()
    with open_rasters(before, after, place, rasters) as reader:
        from deltavlm.geo.sinks import geojson_text
        from deltavlm.model.folder import find_folder, read_config
        from deltavlm.pipeline.conversation import answer_features, answer_record, answers, encode_chip
        from deltavlm.pipeline.schema import ANSWERS

        runtime.apply_to(read_config(find_folder(asked.model)))
        asked.check_device()
        chip = place.select(reader)
        model, _ = asked.load()
        warn_about_scale(reader, model.training_gsd_m, chip.size / model.chip_px)
        picture = encode_chip(reader, model, chip)
        said = list(zip([spec.prompt for spec in specs], answers(model, picture, specs), strict=True))
        records = [answer_record(reader, model, picture, *one) for one in said]
        if geojson:
            origin: dict[str, Any] = {"tool": "deltavlm ask", "records": records}
            features = answer_features(model, picture, said)
            typer.echo(geojson_text(ANSWERS, features, reader.geobox.crs, origin), nl=False)
            return
    for told in records:
        typer.echo(json.dumps(told, ensure_ascii=False) if json_record else told["answer"])


def _questions(texts: list[str], file: Path | None) -> tuple[QuestionSpec, ...]:
    """Those of the command line, then those of the file; those of stdin if there are none.

    Raises: InputError when there is none, or one cannot be asked.
    """
    from deltavlm.pipeline.conversation import questions_of
    from deltavlm.tasks.ask import question
    from deltavlm.tasks.questions import load_questions

    if file is not None and file.suffix.lower() in (".yaml", ".yml"):
        if texts:
            raise ConfigError(f"{file} is a whole question set; write your question into it")
        return load_questions(file)
    if file is not None:
        try:
            texts += [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text") from error
        if not texts:
            raise InputError(f"{file} holds no question; write one a line")
    elif not texts and not sys.stdin.isatty():
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not texts:
        raise InputError("no question; write it behind the two images, or -q TEXT, -Q FILE, or pipe it in")
    return questions_of([question(text) for text in texts])


def _refuse_flags_of_a_map(out: OutputFlags, ground: AskedGround, cascade: bool, batch_size: str) -> None:
    """Raises: ConfigError for a flag that only many chips have a use for."""
    alone = {"at", "bbox", "bbox_crs", "chip_size", "all_chips"}
    given = [
        field.name
        for group in (out, ground)
        for field in fields(group)
        if field.name not in alone and getattr(group, field.name) != field.default
    ]
    given += ["cascade"] * cascade + ["batch_size"] * (batch_size != "auto")
    if given:
        name = {"resume": "no-resume"}.get(given[0], given[0].replace("_", "-"))
        raise ConfigError(f"--{name} is for many chips: add --all-chips, or leave it out")
