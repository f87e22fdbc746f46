"""`deltavlm eval`: score a model, or a file of predictions, on a dataset in the ChangeChat format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deltacli import options, parsing
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, EvidenceModelFlags, grouped
from deltacli.options import MODEL, OUTPUT, flag
from deltavlm.errors import ConfigError

if TYPE_CHECKING:
    from deltavlm.scoring.inference import Inference
    from deltavlm.scoring.predictions import PredictionSet
    from deltavlm.tasks import TaskName

DATASET, SCORES = "Dataset", "Scores"


@grouped
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Folder of a ChangeChat dataset, or one of its JSON files."),
    ],
    *,
    split: Annotated[
        Literal["train", "val", "test"], flag("--split", panel=DATASET, help="Split to read from a folder.")
    ] = "test",
    tasks: Annotated[
        str | None,
        flag(
            "--tasks",
            panel=DATASET,
            metavar="TASK,...",
            show_default="all",
            help="Tasks to score: caption, change, count, location, open, dialogue.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        flag(
            "--images",
            panel=DATASET,
            metavar="DIR",
            show_default="images in or next to DATA",
            help="Folder of the images that the dataset names.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        flag("--limit", panel=DATASET, metavar="N", min=1, help="Ask about the first N image pairs only."),
    ] = None,
    shard: Annotated[
        str | None,
        flag("--shard", panel=DATASET, metavar="I/N", help="Ask about part I of N only, for N machines."),
    ] = None,
    predictions: Annotated[
        Path | None,
        flag(
            "--predictions",
            panel=MODEL,
            metavar="FILE",
            help="Predictions to score, JSON or JSONL: id, task, answer, and optionally score. No model is "
            "loaded.",
        ),
    ] = None,
    model: EvidenceModelFlags,
    batch_size: options.BatchSize = "auto",
    protocol: Annotated[
        Literal["strict", "paper", "changeimti"],
        flag(
            "--protocol",
            panel=SCORES,
            help="strict is sound; paper reproduces DeltaVLM's scorer; changeimti has ChangeVG's metrics.",
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
            help="Bootstrap rounds for the confidence intervals; 0: no intervals.",
        ),
    ] = 1000,
    seed: Annotated[int, flag("--seed", panel=SCORES, min=0, help="Seed of the bootstrap.")] = 0,
    output: Annotated[
        Path | None,
        flag(
            *("--output", "-o"),
            panel=OUTPUT,
            metavar="FILE.json",
            help="Report; FILE.md, a page to read, and FILE.predictions.jsonl are written next to it.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        flag(
            "--overwrite",
            panel=OUTPUT,
            help="Replace the report, and discard the predictions of an earlier run.",
        ),
    ] = False,
    json_summary: options.Json = False,
    common: CommonFlags,
) -> None:
    """Ask a model about every image pair of a dataset, and score its answers next to the published values.

    The table goes to stdout. With -o predictions are saved as they are made, and the same command resumes an
    interrupted run. With --predictions a file of predictions is scored instead.
    """
    from deltavlm.data.read import read_dataset
    from deltavlm.scoring import report
    from deltavlm.scoring.evaluate import evaluate as evaluate_dataset
    from deltavlm.scoring.inference import Inference, find_images
    from deltavlm.scoring.paper import read_word_map
    from deltavlm.scoring.predictions import read_predictions
    from deltavlm.scoring.score import Setup

    task_names, shard_index = _parse_tasks(tasks), parsing.parse_shard(shard)
    pairs_per_batch = parsing.parse_batch_size(batch_size)
    if protocol != "paper" and word_map is not None:
        raise ConfigError(f"--word-map is for --protocol paper; {protocol} scores real words")
    if predictions is not None and (model != EvidenceModelFlags() or limit or shard or images):
        raise ConfigError(
            "--predictions loads no model: leave out the flags of the model, --images, --limit and --shard"
        )
    files = None
    if output is not None:  # checked before any work
        files = report.ReportFiles.next_to(output, with_predictions=predictions is None)
        data_files = [*data.glob("*.json"), *data.glob("*/*.json")] if data.is_dir() else [data]
        read = {"--predictions": predictions, "--word-map": word_map, "--config": common.config}
        parsing.check_files(files.named(), {"DATA": data_files, **read})
        files.check(overwrite=overwrite)
    dataset = read_dataset(data, split)
    source: Inference | PredictionSet
    if predictions is not None:
        source = read_predictions(predictions)
    else:
        source = Inference(
            load_model=model.load,
            images=find_images(data, images),
            shard=shard_index,
            limit=limit,
            batch_size=pairs_per_batch,
            log=None if files is None else files.predictions,
            fresh=overwrite,
            progress=lambda total: console.count_progress(total, "pairs"),
            notify=console.info,
        )
    words = None if word_map is None else read_word_map(word_map)
    setup = Setup(protocol, words, bootstrap, seed)
    evaluation = evaluate_dataset(dataset, source, setup, task_names)
    for line in (*evaluation.scores.notes, *report.findings(evaluation)):
        console.warning(line)
    content = report.record(evaluation, word_map)
    if files is not None:
        files.write(content, evaluation)
    if json_summary:
        typer.echo(json.dumps(content))  # ASCII: ids may have lone surrogates, which no encoding has
    else:
        published = content["published_source"] or "nothing on these data"
        typer.echo(f"{dataset.name} {dataset.split}, protocol {protocol}; published: {published}")
        typer.echo("\n".join(report.table(evaluation.scores.metrics)))
    evaluation.raise_if_partial()


def _parse_tasks(text: str | None) -> tuple[TaskName, ...] | None:
    """`"count,change"` -> ("change", "count"), in the order of `TASKS`. Raises: BadParameter."""
    from deltavlm.config import suggest
    from deltavlm.tasks import TASKS

    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TASKS:
            raise typer.BadParameter(f"no task {name!r}{suggest(name, TASKS)}", param_hint="--tasks")
    return tuple(task for task in TASKS if task in names)
