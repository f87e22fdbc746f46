"""Answers made elsewhere: read from JSON or JSONL, and laid beside the examples by id, never by order."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from deltavlm.config import suggest
from deltavlm.data.examples import Example, Problem, read_json
from deltavlm.errors import InputError
from deltavlm.tasks import TASKS

__all__ = ["Matched", "Prediction", "match", "read_predictions"]


HISTORIES = ("own", "reference")


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer; of a dialogue, one for each turn. score: of a yes/no answer, the probability of yes.

    history: whether later turns of a dialogue were asked behind the answers that it gave itself, or behind
    those of the reference.
    """

    id: str
    task: str
    answers: tuple[str, ...]
    score: float | None = None
    history: str = "own"

    def line(self, **more: str) -> str:
        """As a line of a file that `read_predictions` reads; `more` are fields of one's own."""
        told: dict[str, Any] = {"id": self.id, "task": self.task}
        told["answer"] = list(self.answers) if self.task == "dialogue" else self.answers[0]
        if self.score is not None and isfinite(self.score):
            told["score"] = self.score
        if self.task == "dialogue":
            told["history"] = self.history
        return json.dumps(told | more, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Matched:
    """Examples with their answers in the examples' order, and what has no partner.

    A dialogue may be there twice, with either history.
    """

    pairs: tuple[tuple[Example, Prediction], ...]
    missing: tuple[Example, ...]
    unknown: tuple[Prediction, ...]
    repeated: tuple[Prediction, ...]  # a second answer to the same example; the first counts


def read_predictions(path: Path) -> tuple[list[Prediction], list[Problem]]:
    """Records `{id, task, answer, score}` from a JSON list or a file of one object a line; score is optional.

    Raises: InputError when the file cannot be read or holds no prediction.
    """
    found: list[Prediction] = []
    problems: list[Problem] = []
    for where, record in _records(path):
        try:
            if isinstance(record, ValueError):
                raise record
            found.append(_prediction(record))
        except ValueError as error:
            problems.append(Problem("prediction", where, str(error)))
    if not found:
        detail = f": {problems[0].location}: {problems[0].message}" if problems else ""
        raise InputError(f"{path} holds no prediction{detail}")
    return found, problems


def match(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Matched:
    """Each example's prediction of the same task and id.

    Where only one example of a task is about a picture, the picture's path, file name or stem is as good as
    the id: "test/A/test_000004.png", "test_000004.png", "test_000004".
    """
    ids: dict[tuple[str, str], Example] = {(example.task, example.id): example for example in examples}
    others: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for example in examples:
        path = PurePosixPath(example.before)
        for name in (example.before, path.name, path.stem):
            others[example.task, name].add(example.id)
    aliases = {key: ids[key[0], next(iter(names))] for key, names in others.items() if len(names) == 1}
    answered: dict[tuple[str, str, str], Prediction] = {}
    unknown, repeated = [], []
    for prediction in predictions:
        key = (prediction.task, prediction.id)
        meant = ids.get(key) or aliases.get(key)
        if meant is None:
            unknown.append(prediction)
        elif answered.setdefault((meant.task, meant.id, prediction.history), prediction) is not prediction:
            repeated.append(prediction)
    return Matched(
        pairs=tuple(
            (example, answered[*key, history])
            for key, example in ids.items()
            for history in HISTORIES
            if (*key, history) in answered
        ),
        missing=tuple(
            example
            for key, example in ids.items()
            if all((*key, history) not in answered for history in HISTORIES)
        ),
        unknown=tuple(unknown),
        repeated=tuple(repeated),
    )


def named(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> named(["a", "b", "c", "d", "a"])
    'a (2 times), b, c and 1 more'
    """
    times = Counter(names)
    shown = [name if number == 1 else f"{name} ({number} times)" for name, number in times.items()]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")


def _records(path: Path) -> list[tuple[str, Any]]:
    """(place, record or the ValueError of its line)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    if text.lstrip().startswith("["):
        content = read_json(path)
        return [(f"record {number}", record) for number, record in enumerate(content, start=1)]
    records: list[tuple[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append((f"line {number}", json.loads(line)))
            except (ValueError, RecursionError):
                records.append((f"line {number}", ValueError("not a JSON object on one line")))
    return records


def _prediction(record: Any) -> Prediction:
    """Raises: ValueError saying what is wrong with the record."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object with id, task and answer")
    name, task, answer, score = (record.get(key) for key in ("id", "task", "answer", "score"))
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise ValueError("id is not text or a whole number")
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"{name}: no task {task!r}{suggest(str(task), TASKS)}")
    answers = answer if task == "dialogue" else [answer]
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
        wanted = "a list of texts, one for each turn" if task == "dialogue" else "text"
        raise ValueError(f"{name}: answer is not {wanted}")
    if score is not None and (
        isinstance(score, bool) or not isinstance(score, (int, float)) or not isfinite(score)
    ):
        raise ValueError(f"{name}: score is not a finite number")
    history = record.get("history", "own")
    if history not in HISTORIES or (history != "own" and task != "dialogue"):
        raise ValueError(f"{name}: history is not own or, of a dialogue, reference")
    return Prediction(str(name), task, tuple(answers), None if score is None else float(score), history)
