"""Predictions: parsed from JSON or JSONL files, and matched with the examples of a dataset by id."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from deltavlm.config import suggest
from deltavlm.data.examples import Example, Problem, read_json
from deltavlm.errors import InputError
from deltavlm.files import MAX_DATASET_BYTES, describe_read_error, parse_json, read_text
from deltavlm.tasks import TASKS

__all__ = [
    "HISTORIES",
    "Matched",
    "Prediction",
    "PredictionKey",
    "PredictionSet",
    "histories_of",
    "match",
    "read_predictions",
    "summarize_names",
]

#: answers that later turns of a dialogue are conditioned on: the model's own, or those of the reference
HISTORIES = ("own", "reference")

PredictionKey = tuple[str, str, str]  # task, example id, history


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answer to one example; a dialogue has one answer per turn.

    score: P(yes) of a yes/no answer. history: see `HISTORIES`; always "own" for tasks other than dialogue.
    """

    id: str
    task: str
    answers: tuple[str, ...]
    score: float | None = None
    history: str = "own"

    @property
    def key(self) -> PredictionKey:
        """Identity of the prediction within a run."""
        return self.task, self.id, self.history

    def record(self, **extra: str) -> dict[str, Any]:
        """Plain values for a line of a JSONL file that `read_predictions` parses, and `extra` fields."""
        record: dict[str, Any] = {"id": self.id, "task": self.task}
        record["answer"] = list(self.answers) if self.task == "dialogue" else self.answers[0]
        if self.score is not None and isfinite(self.score):
            record["score"] = self.score
        if self.task == "dialogue":
            record["history"] = self.history
        return record | extra


@dataclass(frozen=True, slots=True)
class PredictionSet:
    """Predictions, the records, images or pairs that gave none, and where the predictions come from.

    path: file that they were read from; None if a model was asked. model: its name, fingerprint and settings,
    for the report; None for a file.
    """

    predictions: tuple[Prediction, ...]
    problems: tuple[Problem, ...] = ()
    path: Path | None = None
    model: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Matched:
    """Examples with their predictions in the order of the examples, and what could not be matched.

    A dialogue occurs once for each history.
    """

    pairs: tuple[tuple[Example, Prediction], ...]
    missing: tuple[Example, ...]  # examples without a prediction
    unknown: tuple[Prediction, ...]  # predictions without an example
    repeated: tuple[Prediction, ...]  # further predictions of the same example; the first is scored


def histories_of(example: Example) -> tuple[str, ...]:
    """Histories under which the example is asked: both for a dialogue, else only "own"."""
    return HISTORIES if example.task == "dialogue" else HISTORIES[:1]


def read_predictions(path: Path) -> PredictionSet:
    """Parse records `{id, task, answer, score}` of a JSON list or a JSONL file; `score` is optional.

    Raises: InputError when the file cannot be read or has no usable record.
    """
    predictions: list[Prediction] = []
    problems: list[Problem] = []
    for location, record in _records(path):
        try:
            if isinstance(record, ValueError):
                raise record
            predictions.append(_parse_record(record))
        except ValueError as error:
            problems.append(Problem("prediction", location, str(error)))
    if not predictions:
        detail = f": {problems[0].location}: {problems[0].message}" if problems else ""
        raise InputError(f"{path} has no predictions{detail}")
    return PredictionSet(tuple(predictions), tuple(problems), path)


def match(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Matched:
    """Match predictions with examples of the same task and id.

    Where a task has only one example about an image, the image's path, file name or stem is accepted as the
    id: "test/A/test_000004.png", "test_000004.png", "test_000004".
    """
    by_key: dict[tuple[str, str], Example] = {(example.task, example.id): example for example in examples}
    ids_of_image: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for example in examples:
        path = PurePosixPath(example.before)
        for name in (example.before, path.name, path.stem):
            ids_of_image[example.task, name].add(example.id)
    aliases = {
        (task, name): by_key[task, next(iter(ids))]
        for (task, name), ids in ids_of_image.items()
        if len(ids) == 1
    }
    answered: dict[PredictionKey, Prediction] = {}
    unknown, repeated = [], []
    for prediction in predictions:
        key = (prediction.task, prediction.id)
        target = by_key.get(key) or aliases.get(key)
        if target is None:
            unknown.append(prediction)
        elif answered.setdefault((target.task, target.id, prediction.history), prediction) is not prediction:
            repeated.append(prediction)
    return Matched(
        pairs=tuple(
            (example, answered[*key, history])
            for key, example in by_key.items()
            for history in HISTORIES
            if (*key, history) in answered
        ),
        missing=tuple(
            example
            for key, example in by_key.items()
            if all((*key, history) not in answered for history in HISTORIES)
        ),
        unknown=tuple(unknown),
        repeated=tuple(repeated),
    )


def summarize_names(names: Sequence[str], limit: int = 3) -> str:
    """The first `limit` distinct names, with their counts, and the number of further ones.

    >>> summarize_names(["a", "b", "c", "d", "a"])
    'a (2 times), b, c and 1 more'
    """
    counts = Counter(names)
    labels = [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]
    hidden = len(labels) - limit
    return ", ".join(labels[:limit]) + (f" and {hidden} more" if hidden > 0 else "")


def _records(path: Path) -> list[tuple[str, Any]]:
    """(location in the file, record or the ValueError of its line)."""
    try:
        text = read_text(path, MAX_DATASET_BYTES)
    except OSError as error:
        raise InputError(describe_read_error(path, error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    if text.lstrip().startswith("["):
        content = read_json(path)
        return [(f"record {number}", record) for number, record in enumerate(content, start=1)]
    records: list[tuple[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append((f"line {number}", parse_json(line)))
            except ValueError:
                records.append((f"line {number}", ValueError("not a JSON object on one line")))
    return records


def _parse_record(record: Any) -> Prediction:
    """Raises: ValueError that says what is wrong with the record."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object with id, task and answer")
    name, task, answer, score = (record.get(key) for key in ("id", "task", "answer", "score"))
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise ValueError("id is not text or an integer")
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"{name}: no task {task!r}{suggest(str(task), TASKS)}")
    answers = answer if task == "dialogue" else [answer]
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
        expected = "a list of texts, one for each turn" if task == "dialogue" else "text"
        raise ValueError(f"{name}: answer is not {expected}")
    if score is not None and (
        isinstance(score, bool) or not isinstance(score, (int, float)) or not isfinite(score)
    ):
        raise ValueError(f"{name}: score is not a finite number")
    history = record.get("history", "own")
    if history not in HISTORIES or (history != "own" and task != "dialogue"):
        raise ValueError(f'{name}: history is not "own" or, for a dialogue, "reference"')
    return Prediction(str(name), task, tuple(answers), None if score is None else float(score), history)
