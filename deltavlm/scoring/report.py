"""Reports of an evaluation: JSON, a Markdown page, a table for the terminal, and their files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltavlm.data.examples import Problem
from deltavlm.errors import OutputError
from deltavlm.files import NamedPath, write_atomic
from deltavlm.messages import pluralize
from deltavlm.scoring.predictions import summarize_names
from deltavlm.scoring.published import SOURCES
from deltavlm.scoring.score import CONFUSION_COUNTS, MetricValue
from deltavlm.version import __version__

if TYPE_CHECKING:
    from deltavlm.scoring.evaluate import Evaluation

__all__ = ["ReportFiles", "findings", "markdown", "record", "table"]

TOLD = ("file", "variant", "repaired", "contradiction")  # kinds of problems that are told in full
_COLUMNS = ("task", "of", "metric", "value", "95 % interval", "n", "published")
_COUNTS = (*CONFUSION_COUNTS, "unreadable")
_UNSCALED = ("mae", "rmse", *_COUNTS)  # all other metrics are shown times 100, as in the papers
_NAMES = {"bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4", "meteor": "METEOR"}
_NAMES |= {"rouge_l": "ROUGE-L", "cider": "CIDEr-D", "s_m": "S*m", "mae": "MAE", "rmse": "RMSE", "f1": "F1"}


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Files of one evaluation: the report FILE.json, and FILE.md and FILE.predictions.jsonl next to it.

    predictions: log of a model's predictions; None where predictions are read from a file.
    """

    report: Path
    page: Path
    predictions: Path | None

    @classmethod
    def next_to(cls, report: Path, *, with_predictions: bool) -> ReportFiles:
        """Paths for a report. Raises: OutputError for a suffix other than .json."""
        if report.suffix != ".json":
            raise OutputError(f"{report} has an unknown suffix; the report is a .json file")
        log = report.with_suffix(".predictions.jsonl") if with_predictions else None
        return cls(report, report.with_suffix(".md"), log)

    def named(self) -> list[NamedPath]:
        """The files with their names in messages."""
        log = [] if self.predictions is None else [("the predictions of the report", self.predictions)]
        return [("the report", self.report), ("the page of the report", self.page), *log]

    def check(self, *, overwrite: bool) -> None:
        """Raises: OutputError when a file would replace an existing report, or cannot be written.

        A page without a report next to a log is replaced: the process was killed between the two.
        """
        log_exists = self.predictions is not None and self.predictions.exists()
        is_interrupted = log_exists and not self.report.exists()
        for path in filter(None, (self.report, self.page, self.predictions)):
            if path.is_dir():
                raise OutputError(f"{path} is a folder; give another name with `output`")
            is_replaceable = overwrite or path == self.predictions or is_interrupted
            if path.exists() and not is_replaceable:
                raise OutputError(f"{path} exists; give another `output`, or `overwrite=True` to replace it")
        folder = self.report.absolute().parent
        if not folder.is_dir():
            raise OutputError(f"{self.report}: the folder {folder} does not exist")

    def write(self, report: Mapping[str, Any], evaluation: Evaluation) -> None:
        """Write the page, and then the report, each atomically. Raises: OutputError."""
        pages = {
            self.page: markdown(report, evaluation),
            self.report: json.dumps(report, indent=1) + "\n",
        }
        for path, content in pages.items():
            try:
                # lone surrogates of file names have no UTF-8
                write_atomic(path, content.encode(errors="replace"))
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def record(evaluation: Evaluation, word_map: Path | None = None) -> dict[str, Any]:
    """Content of the JSON report, as plain values; equal input gives an equal record."""
    setup, matched, scores = evaluation.setup, evaluation.matched, evaluation.scores
    dataset, predictions = evaluation.dataset, evaluation.predictions
    per_task: dict[str, dict[str, int]] = {}
    answered = {(example.task, example.id): example for example, _ in matched.pairs}.values()
    for key, examples in (("answered", answered), ("missing", matched.missing)):
        for example in examples:
            per_task.setdefault(example.task, {"answered": 0, "missing": 0})[key] += 1
    return {
        "tool": "deltavlm eval",
        "version": __version__,
        "protocol": setup.protocol,
        "sources": {
            "data": str(dataset.path),
            "predictions": None if predictions.path is None else str(predictions.path),
            "model": predictions.model,
            "word_map": None if word_map is None else str(word_map),
        },
        "data": {"name": dataset.name, "split": dataset.split, "files": list(dataset.files)},
        "examples": per_task,
        "tokens": scores.tokenizer,
        "word_map_size": None if setup.word_map is None else len(setup.word_map),
        "bootstrap": {"rounds": setup.bootstrap_rounds, "seed": setup.seed, "share": 0.95},
        "published_source": SOURCES[setup.protocol] if setup.with_published else None,
        "figures": [
            {key: _none_if_nan(value) for key, value in asdict(metric).items()} for metric in scores.metrics
        ],
        "notes": scores.notes,
        "missing": [f"{example.task} {example.id}" for example in matched.missing],
        "unknown": [f"{prediction.task} {prediction.id}" for prediction in matched.unknown],
        "repeated": [f"{prediction.task} {prediction.id}" for prediction in matched.repeated],
        "problems": [problem.to_json() for problem in evaluation.problems],
    }


def findings(evaluation: Evaluation) -> list[str]:
    """A line for each kind of example or prediction that was not scored: the number, and a few names."""
    matched, problems = evaluation.matched, evaluation.problems
    lines = [problem.message for problem in problems if problem.kind in TOLD]
    total = len({(example.task, example.id) for example, _ in matched.pairs}) + len(matched.missing)
    for names, noun, remark in (
        ([f"{e.task} {e.id}" for e in matched.missing], "example", f"of {total:,} without an answer"),
        ([f"{p.task} {p.id}" for p in matched.unknown], "prediction", "of no example"),
        (
            [f"{p.task} {p.id}" for p in matched.repeated],
            "prediction",
            "with an id again; the first is scored",
        ),
        (_locations(problems, "duplicate"), "id", "more than once in the dataset"),
        (_locations(problems, "record"), "record", "outside of the schema"),
        (_locations(problems, "prediction"), "prediction", "that cannot be parsed"),
        (_locations(problems, "reference"), "reference", "in doubt"),
        (_locations(problems, "image"), "image", "missing, unreadable, or of two sizes in a pair"),
        (_locations(problems, "answer"), "image pair", "without an answer"),
    ):
        if names:
            lines.append(f"{pluralize(len(names), noun)} {remark}: {summarize_names(names)}")
    return lines


def table(metrics: Iterable[MetricValue]) -> list[str]:
    """Lines of a table in aligned columns; rates and text metrics times 100, as published."""
    rows = [_COLUMNS, *_rows(metrics)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    alignments = ("<", "<", "<", ">", ">", ">", ">")
    return [
        "  ".join(
            f"{cell:{alignment}{width}}"
            for cell, alignment, width in zip(row, alignments, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def markdown(report: Mapping[str, Any], evaluation: Evaluation) -> str:
    """The Markdown page of a report, made by `record`."""
    data, bootstrap = report["data"], report["bootstrap"]
    tokens = f" Words: {report['tokens']}." if report["tokens"] else ""
    lines = [
        f"# Scores on {data['name']}, {data['split']}, protocol `{report['protocol']}`",
        "",
        f"deltavlm {report['version']}. {_describe_source(report['sources'])}.{tokens} Intervals:"
        f" 95 %, percentile bootstrap, {bootstrap['rounds']} rounds, seed {bootstrap['seed']}.",
        "",
        f"Published: {report['published_source'] or 'nothing on these data'}."
        " Rates and text metrics are times 100.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---|---|---|---:|---:|---:|---:|",
        *("| " + " | ".join(row) + " |" for row in _rows(evaluation.scores.metrics)),
    ]
    notes = [*report["notes"], *findings(evaluation)]
    if notes:
        lines += ["", "## Notes", "", *(f"- {_escape(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def _rows(metrics: Iterable[MetricValue]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for metric in metrics:
        interval = published = ""
        if metric.low is not None and metric.high is not None:
            interval = f"{_format(metric, metric.low)} to {_format(metric, metric.high)}"
        if metric.published is not None:
            published = _format(metric, metric.published)
        name = _NAMES.get(metric.metric, metric.metric.replace("_", " "))
        value = _format(metric, metric.value)
        rows.append((metric.task, metric.group, name, value, interval, str(metric.n), published))
    return rows


def _format(metric: MetricValue, value: float) -> str:
    if math.isnan(value):
        return "-"
    if metric.metric in _COUNTS:
        return f"{value:.0f}"
    return f"{value:.2f}" if metric.metric in _UNSCALED else f"{100 * value:.2f}"


def _describe_source(sources: Mapping[str, Any]) -> str:
    if sources["model"]:
        return f"Model: `{sources['model']['name']} {sources['model']['fingerprint']}`"
    return f"Predictions: `{sources['predictions']}`"


def _locations(problems: Iterable[Problem], kind: str) -> list[str]:
    return [problem.location for problem in problems if problem.kind == kind]


def _escape(text: str) -> str:
    """Text on one line, with the characters that Markdown interprets escaped."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return "".join(f"\\{char}" if char in "\\`*_<>|[]" else char for char in line)


def _none_if_nan(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
