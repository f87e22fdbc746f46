"""Batch inference over a dataset: every example of every image pair, with resuming and sharding.

An image pair is encoded once for all of its examples. Batches depend on the examples alone, and a batch of
which any prediction is missing is asked again as a whole, so that answers do not depend on where a run was
interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from deltavlm.data.examples import Dataset, Example, Problem, missing_images
from deltavlm.data.images import read_image
from deltavlm.errors import ConfigError, InputError, ModelError, ToolError
from deltavlm.messages import pluralize
from deltavlm.model.interface import ChangeModel, Pixels, Question, Reply, standard_question
from deltavlm.scoring.prediction_log import open_prediction_log
from deltavlm.scoring.predictions import Prediction, PredictionKey, PredictionSet, histories_of
from deltavlm.tasks import TASKS
from deltavlm.tasks.phrasing import PHRASEBOOKS, Phrasebook
from deltavlm.tasks.questions import task_of
from deltavlm.tasks.text import clean

__all__ = [
    "Inference",
    "PairExamples",
    "find_images",
    "group_by_pair",
    "predict",
    "predict_batches",
    "run_id",
    "select_pairs",
]

#: opens a progress bar for a number of image pairs, and gives its `update(finished, note)`
ProgressBar = Callable[[int], AbstractContextManager[Callable[[int, str], None]]]


@dataclass(frozen=True, slots=True)
class PairExamples:
    """An image pair and all examples about it."""

    before: str  # paths relative to the folder of images
    after: str
    examples: tuple[Example, ...]

    @property
    def keys(self) -> tuple[PredictionKey, ...]:
        """Keys of the predictions for these examples."""
        return tuple(
            (example.task, example.id, history)
            for example in self.examples
            for history in histories_of(example)
        )


@dataclass(frozen=True, slots=True)
class Inference:
    """A model to evaluate, and the options of asking it."""

    load_model: Callable[[], ChangeModel]  # called once, after all checks of the input
    images: Path  # folder of the images
    shard: tuple[int, int] = (1, 1)  # (I, N): every N-th image pair, from the I-th, counted from 1
    limit: int | None = None  # image pairs of the shard
    batch_size: int | None = None  # image pairs per batch; None: as the model proposes
    log: Path | None = None  # file to append predictions to, and to resume from
    fresh: bool = False  # discard an existing log
    progress: ProgressBar = lambda total: nullcontext(lambda finished, note: None)
    notify: Callable[[str], None] = lambda message: None  # receives messages for the user


def find_images(data: Path, images: Path | None) -> Path:
    """Folder of images: `images` if given, else images/ in the dataset's folder or next to it.

    Raises: InputError when it does not exist.
    """
    if images is not None:
        if not images.is_dir():
            raise InputError(f"{images} is not a folder; give the folder of the images with `images`")
        return images
    folder = data if data.is_dir() else data.absolute().parent
    for candidate in (folder / "images", folder.parent / "images"):
        if candidate.is_dir():
            return candidate
    raise InputError(f"{folder / 'images'} does not exist; give the folder of the images with `images`")


def group_by_pair(
    examples: Iterable[Example], shard: tuple[int, int] = (1, 1), limit: int | None = None
) -> list[PairExamples]:
    """Image pairs in the order of their first example; see `Inference` for `shard` and `limit`."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.before, example.after), []).append(example)
    pairs = [PairExamples(before, after, tuple(group)) for (before, after), group in groups.items()]
    return pairs[shard[0] - 1 :: shard[1]][:limit]


def select_pairs(examples: Sequence[Example], inference: Inference) -> list[PairExamples]:
    """Image pairs of the shard.

    Raises:
        ConfigError: the shard is empty.
        InputError: not one of the images exists.
    """
    pairs = group_by_pair(examples, inference.shard, inference.limit)
    if not pairs:
        index, count = inference.shard
        raise ConfigError(f"`shard={index}/{count}` is empty: there are fewer image pairs than shards")
    missing = missing_images([example for pair in pairs for example in pair.examples], inference.images)
    if len(missing) == len({name for pair in pairs for name in (pair.before, pair.after)}):
        raise InputError(f"none of the images exists, the first: {missing[0].message}; give `images`")
    return pairs


def predict(dataset: Dataset, pairs: Sequence[PairExamples], inference: Inference) -> PredictionSet:
    """Load the model and predict the answers of all examples, in their order.

    Raises:
        OutputError: the log is of another run, not writable, or locked.
        WriteError: writing it failed.
        ToolError: there is not a single answer.
    """
    model = inference.load_model()
    problems: list[Problem] = []
    with open_prediction_log(
        inference.log, run_id(model, dataset), model.label, fresh=inference.fresh
    ) as log:
        logged = log.keys
        resumed = sum(logged.issuperset(pair.keys) for pair in pairs)
        if log.lines is None:
            inference.notify(
                "predictions are not saved; with `output` they are, and an interrupted run can resume"
            )
        elif resumed:
            inference.notify(
                f"resuming: {resumed} of {pluralize(len(pairs), 'pair')} already in {inference.log}"
            )
        batch_size = inference.batch_size or model.auto_batch_size()
        finished = 0
        try:
            with inference.progress(len(pairs)) as report_progress:
                for predictions, failures in predict_batches(
                    model, pairs, inference.images, batch_size, logged
                ):
                    log.append(predictions)
                    problems += failures
                    finished = min(finished + batch_size, len(pairs))
                    report_progress(finished, pluralize(len(problems), "problem") if problems else "")
        except KeyboardInterrupt:
            if log.lines is not None and log.predictions:
                inference.notify(
                    f"{pluralize(len(log.predictions), 'answer is', 'answers are')} in {inference.log}; run "
                    "the same command again to resume"
                )
            raise
    order = {key: index for index, key in enumerate(key for pair in pairs for key in pair.keys)}
    predictions = [prediction for prediction in log.predictions if prediction.key in order]
    if not predictions:
        raise ToolError(problems[0].message if problems else "the model gave no answer")
    predictions.sort(key=lambda prediction: order[prediction.key])
    index, count = inference.shard
    settings = {"name": model.name, "fingerprint": model.fingerprint, **model.details}
    settings |= {"limit": inference.limit, "shard": None if count == 1 else f"{index}/{count}"}
    return PredictionSet(tuple(predictions), tuple(problems), model=settings)


def run_id(model: ChangeModel, dataset: Dataset) -> str:
    """16 hex digits that identify a model, its settings and the questions of a dataset.

    Predictions of runs with different ids must not be mixed.
    """
    questions = [
        (example.task, example.id, example.before, example.after, [turn.question for turn in example.turns])
        for example in dataset.examples
    ]
    identity = [model.name, model.fingerprint, model.details, dataset.name, dataset.split, questions]
    return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]


def predict_batches(
    model: ChangeModel,
    pairs: Sequence[PairExamples],
    images: Path,
    batch_size: int,
    skip: frozenset[PredictionKey] = frozenset(),
) -> Iterator[tuple[list[Prediction], list[Problem]]]:
    """Yield, for each batch of pairs, the predictions whose keys are not in `skip`, and the failures."""
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        if skip.issuperset(key for pair in batch for key in pair.keys):
            yield [], []
            continue
        loaded, problems = _load_images(batch, images)
        predictions: list[Prediction] = []
        for _, group in groupby(loaded, key=lambda pair: pair.before.shape):  # an array holds one size
            group_predictions, failures = _predict_or_halve(model, list(group))
            predictions += group_predictions
            problems += failures
        yield [prediction for prediction in predictions if prediction.key not in skip], problems


@dataclass(frozen=True, slots=True)
class _LoadedPair:
    pair: PairExamples
    before: Pixels  # (3, rows, cols)
    after: Pixels


def _load_images(pairs: Sequence[PairExamples], images: Path) -> tuple[list[_LoadedPair], list[Problem]]:
    loaded, problems = [], []
    for pair in pairs:
        dates = []
        for name in (pair.before, pair.after):
            try:
                dates.append(read_image(images / name))
            except InputError as error:
                problems.append(Problem("image", name, str(error)))
        if len(dates) == 2 and dates[0].shape != dates[1].shape:
            sizes = " and ".join(f"{date.shape[2]} x {date.shape[1]}" for date in dates)
            problems.append(Problem("image", pair.before, f"{pair.before} and {pair.after} are {sizes} px"))
        elif len(dates) == 2:
            loaded.append(_LoadedPair(pair, *dates))
    return loaded, problems


def _predict_or_halve(
    model: ChangeModel, loaded: Sequence[_LoadedPair]
) -> tuple[list[Prediction], list[Problem]]:
    """Predictions of a batch. A batch that fails is split in half until the failing pairs are alone, whose
    examples are then asked about one by one."""
    encoded: Any = None
    try:
        before, after = (np.stack([getattr(pair, date) for pair in loaded]) for date in ("before", "after"))
        encoded = model.encode(before, after)
        return _predict_batch(model, encoded, [pair.pair for pair in loaded]), []
    except ModelError as error:
        if len(loaded) == 1:
            pair = loaded[0].pair
            if encoded is not None and len(pair.examples) > 1:
                return _predict_alone(model, encoded, pair)
            return [], [Problem("answer", pair.before, str(error))]
    predictions, failures = [], []
    middle = len(loaded) // 2
    for half in (loaded[:middle], loaded[middle:]):
        half_predictions, half_failures = _predict_or_halve(model, half)
        predictions += half_predictions
        failures += half_failures
    return predictions, failures


def _predict_alone(
    model: ChangeModel, encoded: Any, pair: PairExamples
) -> tuple[list[Prediction], list[Problem]]:
    """Predictions of a pair, one example after the other; a problem that several have is told once."""
    predictions: list[Prediction] = []
    failures: dict[Problem, None] = {}
    for example in pair.examples:
        try:
            predictions += _predict_batch(model, encoded, [replace(pair, examples=(example,))])
        except ModelError as error:
            failures[Problem("answer", pair.before, str(error))] = None
    return predictions, [*failures]


@dataclass(slots=True)
class _DialogueState:
    """Turns of one example that have been answered so far, under one history; most tasks have one turn."""

    pair: int  # index in the batch
    example: Example
    history: str
    book: Phrasebook
    replies: list[Reply] = field(default_factory=list)

    @property
    def is_standard(self) -> bool:
        """True if the first turn is the standard question of its task."""
        task = task_of(self.example.turns[0].question)
        return task != "open" and self.example.task in (task, "dialogue")

    @property
    def is_complete(self) -> bool:
        return len(self.replies) == len(self.example.turns)

    def next_question(self) -> Question:
        """The next turn, with the earlier turns as its history."""
        number = len(self.replies)
        question = self.example.turns[number].question
        earlier = self.example.turns[:number]
        if self.history == "own":
            answers = [reply.text for reply in self.replies]
        else:
            answers = [turn.answers[0] for turn in earlier]
        turns = [(turn.question, answer) for turn, answer in zip(earlier, answers, strict=True)]
        meant = self.book.task_for(question)
        if meant is not None:
            meant_question = standard_question(TASKS[meant], phrase=self.book.phrase(meant))
            return replace(meant_question, name=self.example.task)
        task = TASKS[task_of(question) if self.example.task == "dialogue" else self.example.task]
        if not earlier and self.is_standard:
            phrase = self.book.other_words(task.name)
            prompt = question if phrase is None else phrase.prompt
            return replace(standard_question(task, phrase=phrase), name=self.example.task, prompt=prompt)
        prompt, history = self.book.place_history(turns, question)
        return Question(
            self.example.task,
            prompt,
            yes_no=task.yes_no,
            max_new_tokens=task.max_new_tokens,
            history=history,
        )

    def prediction(self) -> Prediction:
        texts = [reply.text for reply in self.replies]
        if self.is_standard:
            texts[0] = self.book.in_words_of_task(task_of(self.example.turns[0].question), texts[0])
        for index, turn in enumerate(self.example.turns):
            meant = self.book.task_for(turn.question)
            if meant is not None:
                texts[index] = self.book.in_words_of_task(meant, texts[index])
        answers = tuple(clean(text) for text in texts)
        score = self.replies[0].score if len(self.replies) == 1 else None
        return Prediction(self.example.id, self.example.task, answers, score, self.history)


def _predict_batch(model: ChangeModel, encoded: Any, pairs: Sequence[PairExamples]) -> list[Prediction]:
    """Ask all first turns at once, then all second turns, and so on: a turn needs the earlier answers."""
    states = [
        _DialogueState(index, example, history, PHRASEBOOKS[model.phrasebook])
        for index, pair in enumerate(pairs)
        for example in pair.examples
        for history in histories_of(example)
    ]
    while pending := [state for state in states if not state.is_complete]:
        replies = model.answer_rows(encoded, [(state.pair, state.next_question()) for state in pending])
        for state, reply in zip(pending, replies, strict=True):
            state.replies.append(reply)
    return [state.prediction() for state in states]
