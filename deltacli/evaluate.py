"""`deltavlm eval`: answers against the references of a ChangeChat-format set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deltacli import options
from deltacli.console import voice
from deltacli.options import ASK, OUTPUT, flag

if TYPE_CHECKING:
    from deltavlm.data.examples import Task


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Folder of a ChangeChat-format set, or one of its JSON files."),
    ],
    predictions: Annotated[
        Path | None,
        flag(
            "--predictions",
            panel=ASK,
            metavar="FILE",
            help="Answers made elsewhere, JSON or JSONL: id, task, answer, and score where there is one.",
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"], flag("--split", panel=ASK, help="Which split of a folder.")
    ] = "test",
    tasks: Annotated[
        str | None,
        flag(
            "--tasks",
            panel=ASK,
            metavar="TASK,...",
            show_default="all that have predictions",
            help="Of caption, change, count, location, open, dialogue.",
        ),
    ] = None,
    protocol: Annotated[
        Literal["strict", "paper"],
        flag("--protocol", panel=ASK, help="strict is sound; paper re-enacts the published tables' scorer."),
    ] = "strict",
    word_map: Annotated[
        Path | None,
        flag("--word-map", panel=ASK, metavar="FILE", help="JSON of words and ids, for --protocol paper."),
    ] = None,
    bootstrap: Annotated[
        int,
        flag(
            "--bootstrap",
            panel=ASK,
            metavar="N",
            min=0,
            max=10_000,
            help="Draws for the intervals; 0: none.",
        ),
    ] = 1000,
    seed: Annotated[int, flag("--seed", panel=ASK, min=0, help="Of the draws.")] = 0,
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="FILE.json",
            help="The report; the same for people goes beside it, as FILE.md.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json_summary: options.Json = False,
    config: options.ConfigFile = None,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    color: options.ColorWhen = None,
) -> None:
    """Score answers against references, by id, beside the published numbers.

    The table goes to stdout; no model is loaded and no image is opened.
    """
    from deltavlm.data.examples import TASKS, read_set
    from deltavlm.errors import ConfigError, ToolError
    from deltavlm.scoring import report
    from deltavlm.scoring.paper import read_word_map
    from deltavlm.scoring.predictions import match, read_predictions
    from deltavlm.scoring.published import DATA
    from deltavlm.scoring.score import Setup, score

    chosen = _tasks(tasks)
    if predictions is None:
        raise ConfigError("running a model is not there yet; give its answers with --predictions FILE")
    if protocol == "strict" and word_map is not None:
        raise ConfigError("--word-map belongs to --protocol paper; strict scores real words")
    targets = _targets(output, overwrite, [data, predictions, *([] if word_map is None else [word_map])])
    given, problems = read_predictions(predictions)
    asked = chosen or tuple(task for task in TASKS if any(one.task == task for one in given))
    if protocol == "paper" and "caption" in asked and "change" not in asked and chosen is None:
        asked = tuple(task for task in TASKS if task in (*asked, "change"))
    # the paper judges yes/no from captions
    needed = {"caption" if task == "change" and protocol == "paper" else task for task in asked}
    dataset = read_set(data, split)
    examples = [example for example in dataset.examples if example.task in needed]
    if not examples:
        there = ", ".join(dict.fromkeys(example.task for example in dataset.examples))
        raise ConfigError(f"{data} has no example of {', '.join(sorted(needed))}; there is {there}")
    words = None
    if word_map is not None:
        words = read_word_map(word_map)
    elif protocol == "paper" and {"caption", "open", "dialogue"} & {*asked}:
        raise ConfigError(
            "--protocol paper scores text on the ids of a word map: give --word-map FILE,"
            " or leave text out with --tasks change,count,location"
        )
    setup = Setup(protocol, words, bootstrap, seed, beside=(dataset.name, dataset.split) == DATA)
    wanted = [one for one in given if one.task in needed]
    matched = match(examples, wanted)
    if not matched.pairs:
        theirs = f"they have {wanted[0].id!r}" if wanted else "they are of other tasks"
        raise ConfigError(
            f"no prediction in {predictions} has the id of an example:"
            f" {theirs}, {data} has {examples[0].id!r}"
        )
    scores = score(matched.pairs, asked, setup)
    if not scores.figures:
        raise ToolError("; ".join(scores.notes) or "no answer could be scored")
    trouble = [*dataset.problems, *problems, *scores.problems]
    for task in sorted({one.task for one in given} - needed):
        if task == "change" and protocol == "paper":
            scores.note("the paper judges change from captions; yes/no answers are scored under strict only")
        else:
            scores.note(f"{task} was not asked for, and is not scored")
    sources = {
        "data": str(data),
        "predictions": str(predictions),
        "word_map": None if word_map is None else str(word_map),
    }
    told = report.record(dataset, matched, trouble, scores, setup, sources)
    lines = report.findings(matched, trouble)
    for line in (*scores.notes, *lines):
        voice.warn(line)
    pages = (json.dumps(told, indent=1) + "\n", report.markdown(told, scores.figures, lines))
    for path, content in zip(targets, pages, strict=False):
        _write(path, content)
    if json_summary:
        typer.echo(json.dumps(told))  # ids may hold characters that no encoding has
    else:
        known = told["published_source"] or "nothing on these data"
        typer.echo(f"{dataset.name} {dataset.split}, protocol {protocol}; published: {known}")
        typer.echo("\n".join(report.table(scores.figures)))


def _tasks(text: str | None) -> tuple[Task, ...] | None:
    """Raises: BadParameter for a task that is not one."""
    from deltavlm.config import nearest
    from deltavlm.data.examples import TASKS

    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TASKS:
            raise typer.BadParameter(f"no task {name!r}{nearest(name, TASKS)}", param_hint="--tasks")
    return tuple(task for task in TASKS if task in names)


def _targets(output: Path | None, overwrite: bool, inputs: Sequence[Path]) -> tuple[Path, ...]:
    """The report and its page. Raises: OutputError when one cannot be written there."""
    from deltavlm.errors import OutputError

    if output is None:
        return ()
    if output.suffix != ".json":
        raise OutputError(f"{output} has an unknown suffix; the report is a .json file")
    paths = (output, output.with_suffix(".md"))
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give another name with -o")
        if path.resolve() in (given.resolve() for given in inputs):
            raise OutputError(f"{path} is an input; give another name with -o")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists; give another -o, or --overwrite to replace it")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: the folder {output.absolute().parent} does not exist")
    return paths


def _write(path: Path, content: str) -> None:
    """The whole file or nothing. Raises: OutputError."""
    from deltavlm.errors import OutputError

    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_text(content, encoding="utf-8", errors="replace")
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)
