"""The report of a scoring: as plain values for JSON, as Markdown, and as lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deltavlm import __version__
from deltavlm.data.examples import Dataset, Problem
from deltavlm.scoring.predictions import Matched, named
from deltavlm.scoring.published import SOURCE
from deltavlm.scoring.score import Figure, Scores, Setup

__all__ = ["findings", "markdown", "record", "table"]

_HEAD = ("task", "of", "metric", "value", "95 % interval", "n", "published")
_COUNTS = ("tp", "fp", "fn", "tn", "unreadable")
_PLAIN = ("mae", "rmse", *_COUNTS)  # everything else is shown times 100, as the papers do
_NAMES = {"bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4", "meteor": "METEOR"}
_NAMES |= {"rouge_l": "ROUGE-L", "cider": "CIDEr-D", "s_m": "S*m", "mae": "MAE", "rmse": "RMSE", "f1": "F1"}


def record(
    data: Dataset,
    matched: Matched,
    problems: Sequence[Problem],
    scores: Scores,
    setup: Setup,
    sources: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it; the same input gives the same record. sources: the files that were given."""
    per_task: dict[str, dict[str, int]] = {}
    answered = {(e.task, e.id): e for e, _ in matched.pairs}.values()
    for key, examples in (("answered", answered), ("missing", matched.missing)):
        for example in examples:
            per_task.setdefault(example.task, {"answered": 0, "missing": 0})[key] += 1
    return {
        "tool": "deltavlm eval",
        "version": __version__,
        "protocol": setup.protocol,
        "sources": dict(sources),
        "data": {"name": data.name, "split": data.split, "files": list(data.files)},
        "examples": per_task,
        "tokens": scores.tokens,
        "word_map_size": None if setup.word_map is None else len(setup.word_map),
        "bootstrap": {"rounds": setup.rounds, "seed": setup.seed, "share": 0.95},
        "published_source": f"{SOURCE}; comparable under the paper protocol only" if setup.beside else None,
        "figures": [
            {key: _json(value) for key, value in asdict(figure).items()} for figure in scores.figures
        ],
        "notes": scores.notes,
        "missing": [f"{example.task} {example.id}" for example in matched.missing],
        "unknown": [f"{one.task} {one.id}" for one in matched.unknown],
        "repeated": [f"{one.task} {one.id}" for one in matched.repeated],
        "problems": [problem.to_json() for problem in problems],
    }


def findings(matched: Matched, problems: Sequence[Problem]) -> list[str]:
    """A line for each kind of thing that was not scored: how many, and the first few by name."""
    lines = []
    for problem in (one for one in problems if one.kind in ("file", "variant")):
        lines.append(problem.message)
    whole = len({(e.task, e.id) for e, _ in matched.pairs}) + len(matched.missing)
    for names, what in (
        ([f"{e.task} {e.id}" for e in matched.missing], f"of {whole} examples have no answer"),
        ([f"{one.task} {one.id}" for one in matched.unknown], "predictions are of no example"),
        ([f"{one.task} {one.id}" for one in matched.repeated], "predictions repeat an id; the first counts"),
        (_places(problems, "duplicate"), "ids stand more than once in the data"),
        (_places(problems, "record"), "records do not follow the schema"),
        (_places(problems, "prediction"), "predictions cannot be used"),
        (_places(problems, "reference"), "references are in doubt"),
        (_places(problems, "image"), "images are missing, or cannot be read or paired"),
        (_places(problems, "answer"), "pairs of images got no answer"),
    ):
        if names:
            lines.append(f"{len(names)} {what}: {named(names)}")
    return lines


def table(figures: Iterable[Figure]) -> list[str]:
    """Lines in columns; rates and text scores times 100, as published."""
    rows = [_HEAD, *_rows(figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    aligned = ("<", "<", "<", ">", ">", ">", ">")
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def markdown(report: Mapping[str, Any], figures: Sequence[Figure], lines: Sequence[str]) -> str:
    """The report for people. lines: of `findings`."""
    data, draws = report["data"], report["bootstrap"]
    tokens = f" Words: {report['tokens']}." if report["tokens"] else ""
    parts = [
        f"# Scores on {data['name']}, {data['split']}, protocol `{report['protocol']}`",
        "",
        f"deltavlm {report['version']}. {_source(report['sources'])}.{tokens} Intervals:"
        f" 95 %, percentile bootstrap, {draws['rounds']} rounds, seed {draws['seed']}.",
        "",
        f"Published: {report['published_source'] or 'nothing on these data'}."
        " Rates and text scores are times 100.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|---|---|---|---:|---:|---:|---:|",
        *("| " + " | ".join(row) + " |" for row in _rows(figures)),
    ]
    told = [*report["notes"], *lines]
    if told:
        parts += ["", "## Notes", "", *(f"- {_escaped(line)}" for line in told)]
    return "\n".join(parts) + "\n"


def _rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for one in figures:
        limits = (
            "" if one.low is None or one.high is None else f"{_cell(one, one.low)} to {_cell(one, one.high)}"
        )
        known = "" if one.published is None else _cell(one, one.published)
        name = _NAMES.get(one.metric, one.metric.replace("_", " "))
        rows.append((one.task, one.group, name, _cell(one, one.value), limits, str(one.n), known))
    return rows


def _cell(figure: Figure, value: float) -> str:
    if math.isnan(value):
        return "-"
    if figure.metric in _COUNTS:
        return f"{value:.0f}"
    return f"{value:.2f}" if figure.metric in _PLAIN else f"{100 * value:.2f}"


def _source(sources: Mapping[str, Any]) -> str:
    if sources.get("model"):
        return f"Model: `{sources['model']['name']} {sources['model']['fingerprint']}`"
    return f"Predictions: `{sources['predictions']}`"


def _places(problems: Iterable[Problem], kind: str) -> list[str]:
    return [problem.location for problem in problems if problem.kind == kind]


def _escaped(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return "".join(f"\\{char}" if char in "\\`*_<>|[]" else char for char in line)


def _json(value: Any) -> Any:
    """JSON has no nan."""
    return None if isinstance(value, float) and math.isnan(value) else value
