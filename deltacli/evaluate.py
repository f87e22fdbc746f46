"""`deltavlm eval`: a model's answers against the references of a ChangeChat-format set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltacli import options, parsing
from deltacli.answering import answer_set, images_of
from deltacli.console import console, pluralize
from deltacli.flag_groups import CommonFlags, ModelFlags, grouped
from deltacli.options import MODEL, OUTPUT, flag
from deltavlm.errors import ConfigError, OutputError, PartialFailure, ToolError

if TYPE_CHECKING:
    from deltavlm.tasks import TaskName

SET, SCORES = "Set", "Scores"


@grouped
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Folder of a ChangeChat-format set, or one of its JSON files."),
    ],
    *,
    split: Annotated[
        Literal["train", "val", "test"], flag("--split", panel=SET, help="Which split of a folder.")
    ] = "test",
    tasks: Annotated[
        str | None,
        flag(
            "--tasks",
            panel=SET,
            metavar="TASK,...",
            show_default="all",
            help="Of caption, change, count, location, open, dialogue.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        flag(
            "--images",
            panel=SET,
            metavar="DIR",
            show_default="images beside DATA",
            help="Where the pictures are that the set names.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        flag("--limit", panel=SET, metavar="N", min=1, help="Only the first N pairs of pictures."),
    ] = None,
    shard: Annotated[
        str | None,
        flag("--shard", panel=SET, metavar="I/N", help="Only part I of N, to ask on several machines."),
    ] = None,
    predictions: Annotated[
        Path | None,
        flag(
            "--predictions",
            panel=MODEL,
            metavar="FILE",
            help="Answers made elsewhere, JSON or JSONL: id, task, answer, and score where there is one; no "
            "model is loaded.",
        ),
    ] = None,
    asked: ModelFlags,
    batch_size: options.BatchSize = "auto",
    protocol: Annotated[
        Literal["strict", "paper"],
        flag(
            "--protocol", panel=SCORES, help="strict is sound; paper re-enacts the published tables' scorer."
        ),
    ] = "strict",
    word_map: Annotated[
        Path | None,
        flag("--word-map", panel=SCORES, metavar="FILE", help="JSON of words and ids, for --protocol paper."),
    ] = None,
    bootstrap: Annotated[
        int,
        flag(
            "--bootstrap",
            panel=SCORES,
            metavar="N",
            min=0,
            max=10_000,
            help="Draws for the intervals; 0: none.",
        ),
    ] = 1000,
    seed: Annotated[int, flag("--seed", panel=SCORES, min=0, help="Of the draws.")] = 0,
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="FILE.json",
            help="The report; beside it FILE.md for people, and the answers in FILE.predictions.jsonl.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        flag(
            "--overwrite",
            panel=OUTPUT,
            help="Replace the report, and ask again what an earlier run has answered.",
        ),
    ] = False,
    json_summary: options.Json = False,
    common: CommonFlags,
) -> None:
    """Ask a model about every pair of a set, and score its answers, by id, beside the published numbers.

    The table goes to stdout. With -o answers are kept as they come, and the same command goes on where an
    interrupted one stopped. With --predictions answers made elsewhere are scored instead.
    """
    from deltavlm.data.read import read_dataset
    from deltavlm.scoring import report
    from deltavlm.scoring.paper import read_word_map
    from deltavlm.scoring.predictions import match, read_predictions
    from deltavlm.scoring.published import DATA
    from deltavlm.scoring.score import Setup, score
    from deltavlm.tasks import TASKS

    chosen, part, wanted_batch = (
        _tasks(tasks),
        parsing.parse_shard(shard),
        parsing.parse_batch_size(batch_size),
    )
    if protocol == "strict" and word_map is not None:
        raise ConfigError("--word-map belongs to --protocol paper; strict scores real words")
    if predictions is not None and (asked != ModelFlags() or limit or shard or images):
        raise ConfigError(
            "--predictions are answers already: leave the flags of a model and of pictures out, --limit and "
            "--shard too"
        )
    inputs = [data, *(path for path in (predictions, word_map) if path is not None)]
    targets = _targets(output, overwrite, inputs, asks=predictions is None)
    given, problems = ([], []) if predictions is None else read_predictions(predictions)
    if chosen is not None or predictions is None:
        scored = chosen or tuple(TASKS)
    else:
        scored = tuple(task for task in TASKS if any(one.task == task for one in given))
    if protocol == "paper" and "caption" in scored and "change" not in scored and chosen is None:
        scored = tuple(task for task in TASKS if task in (*scored, "change"))
    # the paper judges yes/no from captions
    needed = {"caption" if task == "change" and protocol == "paper" else task for task in scored}
    dataset = read_dataset(data, split)
    examples = [example for example in dataset.examples if example.task in needed]
    if not examples:
        there = ", ".join(dict.fromkeys(example.task for example in dataset.examples))
        broken = "".join(f"; {one.message}" for one in dataset.problems[:1] if one.kind == "file")
        raise ConfigError(f"{data} has no example of {', '.join(sorted(needed))}; there is {there}{broken}")
    words = None
    if word_map is not None:
        words = read_word_map(word_map)
    elif protocol == "paper" and any(TASKS[task].free_text for task in scored):
        raise ConfigError(
            "--protocol paper scores text on the ids of a word map: give --word-map FILE,"
            " or leave text out with --tasks change,count,location"
        )
    setup = Setup(protocol, words, bootstrap, seed, beside=(dataset.name, dataset.split) == DATA)
    by: dict[str, Any] | None = None
    if predictions is None:
        folder = images_of(data, images)
        examples, given, troubles, by = answer_set(
            dataset, examples, folder, asked, part, limit, wanted_batch, targets, overwrite
        )
        problems += troubles
    wanted = [one for one in given if one.task in needed]
    matched = match(examples, wanted)
    if not matched.pairs:
        theirs = f"they have {wanted[0].id!r}" if wanted else "they are of other tasks"
        raise ConfigError(
            f"no prediction in {predictions} has the id of an example:"
            f" {theirs}, {data} has {examples[0].id!r}"
        )
    scores = score(matched.pairs, scored, setup)
    if not scores.figures:
        raise ToolError("; ".join(scores.notes) or "no answer could be scored")
    trouble = [*dataset.problems, *problems, *scores.problems]
    for task in sorted({one.task for one in given} - needed) if chosen is None else ():
        if task == "change" and protocol == "paper":
            scores.note("the paper judges change from captions; yes/no answers are scored under strict only")
        else:
            scores.note(f"{task} was not asked for, and is not scored")
    sources = {
        "data": str(data),
        "predictions": None if predictions is None else str(predictions),
        "model": by,
        "word_map": None if word_map is None else str(word_map),
    }
    told = report.record(dataset, matched, trouble, scores, setup, sources)
    lines = report.findings(matched, trouble)
    for line in (*scores.notes, *lines):
        console.warning(line)
    pages = (json.dumps(told, indent=1) + "\n", report.markdown(told, scores.figures, lines))
    for path, content in reversed(list(zip(targets, pages, strict=False))):  # the report at the very end
        _write(path, content)
    if json_summary:
        typer.echo(json.dumps(told))  # ids may hold characters that no encoding has
    else:
        known = told["published_source"] or "nothing on these data"
        typer.echo(f"{dataset.name} {dataset.split}, protocol {protocol}; published: {known}")
        typer.echo("\n".join(report.table(scores.figures)))
    faults = [one for one in dataset.problems if one.kind in ("file", "record")]
    if faults:
        raise PartialFailure(
            f"{pluralize(len(faults), 'fault')} in {data}, what is there is scored: {faults[0].message}; "
            "deltavlm data check tells all"
        )
    if predictions is None and matched.missing:
        raise PartialFailure(
            f"{len(matched.missing)} of {len(examples)} examples have no answer, the first because: "
            f"{problems[0].message if problems else 'it was not asked'}"
        )


def _tasks(text: str | None) -> tuple[TaskName, ...] | None:
    """Raises: BadParameter for a task that is not one."""
    from deltavlm.config import suggest
    from deltavlm.tasks import TASKS

    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TASKS:
            raise typer.BadParameter(f"no task {name!r}{suggest(name, TASKS)}", param_hint="--tasks")
    return tuple(task for task in TASKS if task in names)


def _targets(output: Path | None, overwrite: bool, inputs: Sequence[Path], *, asks: bool) -> tuple[Path, ...]:
    """The report, its page, and the answers. Raises: OutputError when one cannot be written there."""
    if output is None:
        return ()
    if output.suffix != ".json":
        raise OutputError(f"{output} has an unknown suffix; the report is a .json file")
    paths = [output, output.with_suffix(".md")]
    paths += [output.with_suffix(".predictions.jsonl")] if asks else []
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give another name with -o")
        if path.resolve() in (given.resolve() for given in inputs):
            raise OutputError(f"{path} is an input; give another name with -o")
        half = asks and not paths[0].exists() and paths[2].exists()  # killed between the page and the report
        if path.exists() and not overwrite and path.suffix != ".jsonl" and not half:
            raise OutputError(f"{path} exists; give another -o, or --overwrite to replace it")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: the folder {output.absolute().parent} does not exist")
    return tuple(paths)


def _write(path: Path, content: str) -> None:
    """The whole file or nothing. Raises: OutputError."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_text(content, encoding="utf-8", errors="replace")
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)
