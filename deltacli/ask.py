"""`deltavlm ask`: ask your own questions about a pair of images."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltacli import options, parsing
from deltacli.analyze import analyze_pair
from deltacli.analyze_flags import RunFlags
from deltacli.console import console, print_remarks
from deltacli.flag_groups import (
    At,
    CalibratedModelFlags,
    ChipFlags,
    CommonFlags,
    OutputFlags,
    RasterFlags,
    WindowBbox,
    WindowFlags,
    given_flags,
    grouped,
    open_rasters,
)
from deltacli.options import CHIPS, COMMON, MODEL, OUTPUT, flag
from deltavlm.errors import ConfigError, InputError

if TYPE_CHECKING:
    from deltavlm.tasks.questions import QuestionSpec


@dataclass(frozen=True, kw_only=True)
class AskChipFlags(ChipFlags):
    """Window of one image; with --all-chips, the chips as `analyze` cuts them."""

    at: At = None
    bbox: WindowBbox = None
    all_chips: Annotated[
        bool,
        flag(
            "--all-chips",
            panel=CHIPS,
            help="Ask about every chip and write a map; the options of analyze apply.",
        ),
    ] = False

    @property
    def window(self) -> WindowFlags:
        """Flags of the one image."""
        return WindowFlags(at=self.at, bbox=self.bbox, bbox_crs=self.bbox_crs, chip_size=self.chip_size)


@dataclass(frozen=True, kw_only=True)
class AskCommonFlags(CommonFlags):
    """Shared flags, except that -q is --question."""

    quiet: Annotated[bool, flag("--quiet", panel=COMMON, callback=options.set_quiet, help="Errors only.")] = (
        False
    )


@grouped
def ask(
    before: options.Before,
    after: options.After,
    question: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="Your question; if piped, one per line of stdin."),
    ] = None,
    *,
    question_flags: Annotated[
        list[str] | None,
        flag("--question", "-q", panel=MODEL, metavar="TEXT", help="A question; can be repeated."),
    ] = None,
    file: Annotated[
        Path | None,
        flag(
            *("--questions", "-Q"),
            panel=MODEL,
            metavar="FILE",
            help="File of questions: one per line, or a .yaml as for analyze.",
        ),
    ] = None,
    model: CalibratedModelFlags,
    cascade: options.Cascade = False,
    batch_size: options.BatchSize = "auto",
    chips: AskChipFlags,
    out: OutputFlags,
    geojson: Annotated[
        bool,
        flag(
            "--geojson",
            panel=OUTPUT,
            help="GeoJSON on stdout: the window, the cells named in answers, and the change mask.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        flag(
            "--json",
            panel=COMMON,
            allow_from_autoenv=False,
            help="One JSON object per question: answer, status, score...; with --all-chips, the summary.",
        ),
    ] = False,
    rasters: RasterFlags,
    common: AskCommonFlags,
) -> None:
    """Ask about a pair of images: a small pair as a whole, a large one at the place that you name.

    Answers go to stdout, one line each, in the order of the questions; stderr names the questions if there
    are several. nano answers questions about what changed between the dates: whether anything changed, what,
    where and how much; new or gone buildings and roads, how many and where; trees planted or cut, ponds,
    construction sites. Answers to open questions are often wrong.
    """
    from deltavlm.model.kinds import follows_instructions

    if geojson and (as_json or chips.all_chips):
        other = "--json" if as_json else "--all-chips; write -o FILE.geojson"
        raise typer.BadParameter(f"cannot be combined with {other}", param_hint="--geojson")
    _check_is_image(after)
    questions = _read_questions(
        [*(question or ()), *(question_flags or ())],
        file,
        one_per_task=chips.all_chips,
        any_words=follows_instructions(model.model),
    )
    if chips.all_chips:
        if chips.at is not None:
            raise typer.BadParameter("cannot be combined with --all-chips", param_hint="--at")
        flags = RunFlags(
            out=out,
            model=model,
            chips=chips,
            rasters=rasters,
            cascade=cascade,
            batch_size=batch_size,
            json_summary=as_json,
        )
        read = parsing.named_files({"-Q": file, "--config": common.config})
        analyze_pair(before, after, [spec for _, spec in questions], flags, read)
        return
    _check_no_run_flags(out, chips, cascade, batch_size)
    with open_rasters(before, after, chips.window, rasters) as reader:
        from deltavlm.geo.sinks import check_can_hold, geojson_text
        from deltavlm.pipeline.conversation import answer_features, answer_record, answers, encode_chip
        from deltavlm.pipeline.schema import ANSWERS

        if geojson:
            check_can_hold(None, (ANSWERS,), reader.geobox.crs, [reader.geobox.footprint])
        model.read_spec()
        model.read_evidence_spec()
        model.check_device()
        chip = chips.window.select(reader)
        change_model = model.load_for(reader, chip)
        encoded = encode_chip(reader, change_model, chip)
        answered = answers(change_model, encoded, [spec for _, spec in questions])
        turns = [(text, answer) for (text, _), answer in zip(questions, answered, strict=True)]
        records = [
            answer_record(reader, change_model, encoded, spec, answer, text)
            for (text, spec), answer in zip(questions, answered, strict=True)
        ]
        if geojson:
            origin = {"tool": "deltavlm ask", "records": records}
            features = answer_features(change_model, encoded, turns)
            typer.echo(geojson_text(ANSWERS, features, reader.geobox.crs, origin), nl=False)
            return
    for record in records:
        if len(records) > 1 and not as_json:
            console.info(record["question"])
        print_remarks(record)
        typer.echo(json.dumps(record, ensure_ascii=False) if as_json else record["answer"])


def _check_is_image(after: str) -> None:
    """Raises: BadParameter where the second argument is a question, as only one image was named."""
    is_sentence = after.rstrip().endswith("?") or (" " in after and not Path(after).suffix)
    if is_sentence and "://" not in after and not Path(after).exists():
        raise typer.BadParameter(
            f"{after!r} is no image; name the earlier image, the later one, then the question",
            param_hint="AFTER",
        )


def _read_questions(
    texts: list[str], file: Path | None, *, one_per_task: bool, any_words: bool
) -> list[tuple[str, QuestionSpec]]:
    """Questions of the command line, then those of the file; without any, those of stdin.

    Each is a pair: as it was typed, and as it is asked; `any_words` as in `questions_of`.

    Raises: InputError when there is none, or one cannot be asked.
    """
    from deltavlm.files import describe_read_error, read_text
    from deltavlm.pipeline.conversation import questions_of
    from deltavlm.tasks.ask import question
    from deltavlm.tasks.questions import load_questions

    if file is not None and file.suffix.lower() in (".yaml", ".yml"):
        if texts:
            raise ConfigError(f"{file} is a whole question set; add your question to it")
        return [(spec.prompt, spec) for spec in load_questions(file)]
    if file is not None:
        try:
            texts += _nonblank_lines(read_text(file))
        except OSError as error:
            raise InputError(describe_read_error(file, error)) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text") from error
        if not texts:
            raise InputError(f"{file} holds no question; write one per line")
    elif not texts and not sys.stdin.isatty():
        texts = _nonblank_lines(parsing.read_stdin())
    if not texts:
        raise InputError("no question; write it after the two images, or use -q TEXT, -Q FILE, or a pipe")
    texts = [question(text) for text in texts]
    specs = questions_of(texts, one_per_task=one_per_task, any_words=any_words)
    return list(zip(texts, specs, strict=True))


def _nonblank_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _check_no_run_flags(out: OutputFlags, chips: AskChipFlags, cascade: bool, batch_size: str) -> None:
    """Raises: ConfigError for a flag that has an effect only with --all-chips."""
    window_flags = {"at", "bbox", "bbox_crs", "chip_size", "all_chips"}
    names = given_flags(out, chips, ignored=window_flags)
    names += ["--cascade"] * cascade + ["--batch-size"] * (batch_size != "auto")
    if "--output" in names:
        raise ConfigError(
            "--output is for many chips: add --all-chips, or use --geojson > FILE for one window"
        )
    if names:
        raise ConfigError(f"{names[0]} is for many chips: add --all-chips, or leave it out")
