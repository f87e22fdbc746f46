"""Evaluation of a model, or of a file of predictions, on a dataset: `evaluate(...) -> Evaluation`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from deltavlm.data.examples import Dataset, Example, Problem
from deltavlm.errors import ConfigError, PartialFailure, ToolError
from deltavlm.messages import pluralize
from deltavlm.scoring.inference import Inference, predict, select_pairs
from deltavlm.scoring.predictions import Matched, Prediction, PredictionSet, match
from deltavlm.scoring.published import DATA
from deltavlm.scoring.score import Protocol, Scores, Setup, score
from deltavlm.tasks import TASKS, TaskName

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of a dataset, and everything that could not be scored."""

    dataset: Dataset
    setup: Setup
    matched: Matched
    scores: Scores
    predictions: PredictionSet

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Problems of the dataset, the predictions and the references, in this order."""
        return (*self.dataset.problems, *self.predictions.problems, *self.scores.problems)

    def raise_if_partial(self) -> None:
        """Raises: PartialFailure when the dataset has faults, a file of predictions has lines that are none
        or match no example, or an example has no answer."""
        faults = [problem for problem in self.dataset.problems if problem.kind in ("file", "record")]
        if faults:
            raise PartialFailure(
                f"{pluralize(len(faults), 'fault')} in {self.dataset.path}, the other records are scored: "
                f"{faults[0].message}; deltavlm data check lists all"
            )
        problems, matched = self.predictions.problems, self.matched
        total = len({(example.task, example.id) for example, _ in matched.pairs}) + len(matched.missing)
        unanswered = f"{len(matched.missing)} of {pluralize(total, 'example')} without an answer"
        if self.predictions.model is not None:
            if matched.missing:
                reason = problems[0].message if problems else "it was not asked"
                raise PartialFailure(f"{unanswered}, the first because: {reason}")
            return
        first = f": {problems[0].location}: {problems[0].message}" if problems else ""
        unusable = [
            f"{pluralize(len(problems), 'line')} cannot be parsed{first}" if problems else "",
            f"{pluralize(len(matched.unknown), 'prediction')} without an example" if matched.unknown else "",
            unanswered if matched.missing else "",
        ]
        if any(unusable):
            name = self.predictions.path or "the set of predictions"
            raise PartialFailure(f"{name} is scored in part: {'; '.join(filter(None, unusable))}")


def evaluate(
    dataset: Dataset,
    source: Inference | PredictionSet,
    setup: Setup,
    tasks: Collection[TaskName] | None = None,
) -> Evaluation:
    """Score the predictions of `source` on the dataset; a model is loaded and asked after all checks.

    tasks: tasks to score; None: all tasks for a model, those that occur for predictions. Published values
    are added where the dataset is the published one.

    Raises:
        ConfigError: the dataset has no example of the tasks, the predictions match no example, or the word
            map is missing.
        InputError, OutputError, WriteError, ModelError: see `inference.predict`.
        ToolError: no answer could be scored.
    """
    scored = _tasks_to_score(source, setup.protocol, tasks)
    # the paper protocol derives yes/no from captions
    required = {"caption" if task == "change" and setup.protocol == "paper" else task for task in scored}
    examples = _examples_of(dataset, required)
    if setup.protocol == "paper" and setup.word_map is None and any(TASKS[task].free_text for task in scored):
        raise ConfigError(
            "`protocol='paper'` scores text on the ids of a word map: give `word_map`,"
            " or leave text out with `tasks='change,count,location'`"
        )
    setup = replace(setup, with_published=(dataset.name, dataset.split) == DATA[setup.protocol])
    if isinstance(source, Inference):
        pairs = select_pairs(examples, source)
        examples = [example for pair in pairs for example in pair.examples]
        prediction_set = predict(dataset, pairs, source)
    else:
        prediction_set = source
    relevant = [prediction for prediction in prediction_set.predictions if prediction.task in required]
    matched = match(examples, relevant)
    if not matched.pairs:
        ids = f"they have {relevant[0].id!r}" if relevant else "they are of other tasks"
        file = f" in {prediction_set.path}" if prediction_set.path else ""
        raise ConfigError(
            f"no prediction{file} has the id of an example: {ids}, {dataset.path} has {examples[0].id!r}"
        )
    scores = score(matched.pairs, scored, setup)
    if not scores.metrics:
        raise ToolError("; ".join(scores.notes) or "no answer could be scored")
    if tasks is None:
        _note_unscored_tasks(scores, prediction_set.predictions, required, setup.protocol)
    return Evaluation(dataset, setup, matched, scores, prediction_set)


def _tasks_to_score(
    source: Inference | PredictionSet, protocol: Protocol, tasks: Collection[TaskName] | None
) -> tuple[TaskName, ...]:
    """Tasks to score, in the order of `TASKS`; captions also give the `change` of the paper protocol."""
    if tasks is not None:
        return tuple(name for name in TASKS if name in tasks)
    if isinstance(source, Inference):
        return tuple(TASKS)
    occurring: set[str] = {prediction.task for prediction in source.predictions}
    if protocol == "paper" and "caption" in occurring:
        occurring.add("change")
    return tuple(name for name in TASKS if name in occurring)


def _examples_of(dataset: Dataset, tasks: Collection[str]) -> list[Example]:
    """Examples of the tasks. Raises: ConfigError when there are none."""
    examples = [example for example in dataset.examples if example.task in tasks]
    if not examples:
        available = ", ".join(dict.fromkeys(example.task for example in dataset.examples))
        file_problems = [problem.message for problem in dataset.problems if problem.kind == "file"]
        raise ConfigError(
            f"{dataset.path} has no example of {', '.join(sorted(tasks))}; there is "
            + "; ".join([available, *file_problems[:1]])
        )
    return examples


def _note_unscored_tasks(
    scores: Scores, predictions: Sequence[Prediction], required: Collection[str], protocol: Protocol
) -> None:
    for task in sorted({prediction.task for prediction in predictions} - {*required}):
        if task == "change" and protocol == "paper":
            scores.note("the paper derives yes/no from captions; yes/no answers are scored by strict")
        else:
            scores.note(f"{task} was not asked for and is not scored")
