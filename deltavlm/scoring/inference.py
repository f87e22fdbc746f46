"""A model asked about every example of a set: pictures in, answers out, batch by batch.

A pair of pictures is encoded once for all that is asked about it. Batches are cut from the examples alone,
and one that is not answered whole is asked again whole: no answer depends on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from deltavlm.data.examples import Dataset, Example, Problem
from deltavlm.data.images import read_image
from deltavlm.errors import InputError, ModelError
from deltavlm.model.interface import ChangeModel, Pixels, Question, Reply
from deltavlm.scoring.predictions import Prediction
from deltavlm.tasks import TASKS, dialogue
from deltavlm.tasks.questions import task_of
from deltavlm.tasks.text import clean

__all__ = ["PairExamples", "group_by_pair", "predict_batches", "run_id"]

Key = tuple[str, str, str]  # task, id, history


@dataclass(frozen=True, slots=True)
class PairExamples:
    """A pair of pictures and all examples about it."""

    before: str
    after: str
    examples: tuple[Example, ...]

    @property
    def keys(self) -> tuple[Key, ...]:
        """What its answers are known by; a dialogue has two, one with each history."""
        return tuple(
            (example.task, example.id, history)
            for example in self.examples
            for history in (("own", "reference") if example.task == "dialogue" else ("own",))
        )


def group_by_pair(
    examples: Iterable[Example], shard: tuple[int, int] = (1, 1), limit: int | None = None
) -> list[PairExamples]:
    """Cases in the order of the examples; of those every `shard[1]`-th from `shard[0]` on, and of these the
    first `limit`."""
    pairs: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        pairs.setdefault((example.before, example.after), []).append(example)
    cases = [PairExamples(before, after, tuple(about)) for (before, after), about in pairs.items()]
    return cases[shard[0] - 1 :: shard[1]][:limit]


def run_id(model: ChangeModel, data: Dataset) -> str:
    """16 hex digits that stand for a model, the way it runs, and what the set asks: answers of runs with
    different names do not belong together."""
    asked = [(e.task, e.id, e.before, e.after, [turn.question for turn in e.turns]) for e in data.examples]
    told = json.dumps(
        [model.name, model.fingerprint, model.details, data.name, data.split, asked], default=str
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def predict_batches(
    model: ChangeModel,
    cases: Sequence[PairExamples],
    images: Path,
    batch: int,
    known: frozenset[Key] = frozenset(),
) -> Iterator[tuple[list[Prediction], list[Problem]]]:
    """For each batch of cases the answers that are not among the `known`, and what could not be answered."""
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        if known.issuperset(key for case in part for key in case.keys):
            yield [], []
            continue
        seen, problems = _read(part, images)
        predictions: list[Prediction] = []
        for _, alike in groupby(seen, key=lambda one: one.before.shape):  # pictures of one size at a time
            found, troubles = _asked(model, list(alike))
            predictions += found
            problems += troubles
        yield [one for one in predictions if (one.task, one.id, one.history) not in known], problems


@dataclass(frozen=True, slots=True)
class _Seen:
    case: PairExamples
    before: Pixels
    after: Pixels


def _read(cases: Sequence[PairExamples], images: Path) -> tuple[list[_Seen], list[Problem]]:
    seen, problems = [], []
    for case in cases:
        dates = []
        for name in (case.before, case.after):
            try:
                dates.append(read_image(images / name))
            except InputError as error:
                problems.append(Problem("image", name, str(error)))
        if len(dates) == 2 and dates[0].shape != dates[1].shape:
            sizes = " and ".join(f"{date.shape[2]} x {date.shape[1]}" for date in dates)
            problems.append(Problem("image", case.before, f"{case.before} and {case.after} are {sizes} px"))
        elif len(dates) == 2:
            seen.append(_Seen(case, *dates))
    return seen, problems


def _asked(model: ChangeModel, seen: Sequence[_Seen]) -> tuple[list[Prediction], list[Problem]]:
    """Answers of a batch; one that fails is halved, until what fails is alone and the rest is answered."""
    try:
        before, after = (np.stack([getattr(one, date) for one in seen]) for date in ("before", "after"))
        return _dialogues_and_all(model, model.encode(before, after), [one.case for one in seen]), []
    except ModelError as error:
        if len(seen) == 1:
            return [], [Problem("answer", seen[0].case.before, str(error))]
    half = len(seen) // 2
    (first, trouble), (second, more) = _asked(model, seen[:half]), _asked(model, seen[half:])
    return first + second, trouble + more


@dataclass(slots=True)
class _Thread:
    """One answer in the making: an example's turns, told so far with one of two histories."""

    pair: int
    example: Example
    history: str
    replies: list[Reply] = field(default_factory=list)

    def question(self) -> Question:
        """What is asked next."""
        turn = len(self.replies)
        words = self.example.turns[turn].question
        if self.history == "own":
            told = [reply.text for reply in self.replies]
        else:
            told = [known.answers[0] for known in self.example.turns[:turn]]
        said = [known.question for known in self.example.turns[:turn]]
        task = TASKS[task_of(words) if self.example.task == "dialogue" else self.example.task]
        prompt = dialogue.prompt_with_history(list(zip(said, told, strict=True)), words) if turn else words
        return Question(self.example.task, prompt, yes_no=task.yes_no, max_new_tokens=task.max_new_tokens)


def _dialogues_and_all(model: ChangeModel, encoded: Any, cases: Sequence[PairExamples]) -> list[Prediction]:
    """Turn by turn: first what has one turn and the first turns, then the turns that hang on an answer."""
    threads = [
        _Thread(pair, example, history)
        for pair, case in enumerate(cases)
        for example in case.examples
        for history in (("own", "reference") if example.task == "dialogue" else ("own",))
    ]
    while open_ := [thread for thread in threads if len(thread.replies) < len(thread.example.turns)]:
        replies = model.answer_rows(encoded, [(thread.pair, thread.question()) for thread in open_])
        for thread, reply in zip(open_, replies, strict=True):
            thread.replies.append(reply)
    return [
        Prediction(
            thread.example.id,
            thread.example.task,
            tuple(clean(reply.text) for reply in thread.replies),
            score=thread.replies[0].score if len(thread.replies) == 1 else None,
            history=thread.history,
        )
        for thread in threads
    ]
