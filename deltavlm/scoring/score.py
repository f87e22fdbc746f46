"""Metrics of predictions against references, under the protocols `strict`, `paper` and `changeimti`.

`strict`: text metrics on real words, yes/no from the yes/no answer, lenient parsers of `deltavlm.tasks`,
Jaccard of two empty sets is 1. `paper` reproduces the published evaluation: text metrics on ids of a word
map, yes/no from the caption, its own parsers, Jaccard of two empty sets is 0. `changeimti` is `strict`
with the metrics of ChangeVG's tables, and with both rules for empty sets. See docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from deltavlm.data.examples import Example, Problem
from deltavlm.errors import AnswerParseError, ToolError
from deltavlm.messages import pluralize
from deltavlm.metrics import binary, counts, java, sets, text
from deltavlm.metrics.bootstrap import BOOTSTRAP_ROUNDS, Array, Metric, mean_metric
from deltavlm.scoring import paper
from deltavlm.scoring.predictions import HISTORIES, Prediction
from deltavlm.scoring.published import published
from deltavlm.tasks import TASKS, TaskName, classify, count, dialogue, locate

__all__ = ["MetricValue", "Protocol", "Scores", "Setup", "score"]

Protocol = Literal["strict", "paper", "changeimti"]
Pair = tuple[Example, Prediction]
TextPair = tuple[str, tuple[str, ...]]  # an answer and its references
Parser = Callable[[str], Any]

CONFUSION_COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True, slots=True)
class Setup:
    """Protocol and confidence intervals.

    word_map: token ids of words, for text under `paper`. bootstrap_rounds: 0 for no intervals.
    with_published: add the published values; for the dataset that they were computed on.
    with_meteor: compute METEOR and S*m, whose tables Java reads anew each time, for some ten seconds.
    """

    protocol: Protocol = "strict"
    word_map: Mapping[str, int] | None = None
    bootstrap_rounds: int = BOOTSTRAP_ROUNDS
    seed: int = 0
    with_published: bool = True
    with_meteor: bool = True


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One metric of one group of examples (all, changed, unchanged) or class (roads, buildings, both).

    low, high: 95 % confidence interval; None for counts and without bootstrap. n: number of examples.
    """

    task: str
    group: str
    metric: str
    protocol: Protocol
    value: float
    low: float | None
    high: float | None
    n: int
    published: float | None


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Tokenized answers and references of all text tasks, and their METEOR statistics.

    Tokenized at once, since starting Java takes seconds. meteor: keyed by tokenized answer and references;
    None without METEOR.
    """

    answers: Mapping[str, str]
    references: Mapping[str, str]
    meteor: Mapping[TextPair, Array] | None


@dataclass(slots=True)
class Scores:
    """Metric values in the order of the tasks, notes for the reader, and references that cannot be used."""

    setup: Setup
    metrics: list[MetricValue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    tokenizer: str | None = None  # "ptb", "simple" or "word map"; None where no text was scored
    text_pairs: list[TextPair] = field(default_factory=list)  # of all text tasks
    tokenized: TokenizedText | None = None  # of `text_pairs`, made when the first of them is scored

    def add(self, task: str, group: str, metrics: Mapping[str, Metric]) -> None:
        """Evaluate metrics, with confidence intervals and published values."""
        setup = self.setup
        for name, metric in metrics.items():
            is_count = name in (*CONFUSION_COUNTS, "unreadable")
            interval = None if is_count else metric.confidence_interval(setup.bootstrap_rounds, setup.seed)
            low, high = interval or (None, None)
            reference = published(setup.protocol, task, group, name) if setup.with_published else None
            n = len(metric.rows)
            self.metrics.append(
                MetricValue(task, group, name, setup.protocol, metric.value(), low, high, n, reference)
            )

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


def score(pairs: Sequence[Pair], tasks: Iterable[TaskName], setup: Setup) -> Scores:
    """Compute the metrics of the given tasks from (example, prediction) pairs.

    Under `paper`, "change" is derived from the captions among the pairs, not from yes/no answers.

    Raises: ValueError when `paper` is to score text without a word map.
    """
    scores = Scores(setup)
    by_task: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_task.setdefault(pair[0].task, []).append(pair)
    tasks = list(tasks)
    scores.text_pairs = [
        (answer, tuple(turn.answers))
        for task in tasks
        if TASKS[task].free_text
        for example, prediction in by_task.get(task, [])
        for turn, answer in zip(example.turns, prediction.answers, strict=False)
    ]
    for task in tasks:
        if task == "change" and setup.protocol == "paper":
            if by_task.get("caption"):
                _score_yes_no(scores, "change", by_task["caption"])
        elif task == "dialogue":
            for history in HISTORIES:
                dialogues = [pair for pair in by_task.get(task, []) if pair[1].history == history]
                _score_dialogues(scores, dialogues, "" if history == "own" else ", reference history")
        elif by_task.get(task):
            _SCORERS.get(task, _score_text)(scores, task, by_task[task])
    return scores


def _score_text(scores: Scores, task: str, pairs: Sequence[Pair]) -> None:
    """Text metrics of all, changed and unchanged pairs; a group without examples has none."""
    try:
        java.pycocoevalcap_folder()  # one note is enough if it is not installed
        tokenized = scores.tokenized = scores.tokenized or _tokenize(scores)
        text_pairs = [
            (
                tokenized.answers[prediction.answers[0]],
                tuple(tokenized.references[reference] for reference in example.turns[0].answers),
            )
            for example, prediction in pairs
        ]
        for group, is_member in (
            ("all", lambda example: True),
            ("changed", lambda example: example.changed),
            ("unchanged", lambda example: not example.changed),
        ):
            members = [
                text_pair
                for text_pair, (example, _) in zip(text_pairs, pairs, strict=True)
                if is_member(example)
            ]
            if members:
                meteor = tokenized.meteor
                statistics = None if meteor is None else np.stack([meteor[member] for member in members])
                answers, references = zip(*members, strict=True)
                scores.add(task, group, text.compute_metrics(answers, references, statistics))
    except ToolError as error:
        scores.note(f"no text metrics: {error}")


def _tokenize(scores: Scores) -> TokenizedText:
    """Tokenize all text as the protocol does."""
    answers = list(dict.fromkeys(answer for answer, _ in scores.text_pairs))
    references = list(dict.fromkeys(text for _, texts in scores.text_pairs for text in texts))
    if scores.setup.protocol == "paper":
        if scores.setup.word_map is None:
            raise ValueError("the paper protocol scores text on the ids of a word map")
        word_map = scores.setup.word_map
        scores.tokenizer = "word map"
        tokenized = [paper.answer_ids(answer, word_map) for answer in answers]
        tokenized += [paper.reference_ids(reference, word_map) for reference in references]
    else:
        try:
            tokenized = java.ptb_tokenize([*answers, *references])
            scores.tokenizer = "ptb"
        except ToolError as error:
            scores.note(f"a simple rule tokenizes instead of the PTB tokenizer: {error}")
            tokenized = [text.simple_tokenize(sentence) for sentence in [*answers, *references]]
            scores.tokenizer = "simple"
    answer_tokens = dict(zip(answers, tokenized, strict=False))
    reference_tokens = dict(zip(references, tokenized[len(answers) :], strict=True))
    pairs = list(
        dict.fromkeys(
            (answer_tokens[answer], tuple(reference_tokens[text] for text in texts))
            for answer, texts in scores.text_pairs
        )
    )
    meteor: dict[TextPair, Array] | None = None
    if not scores.setup.with_meteor:
        return TokenizedText(answer_tokens, reference_tokens, None)
    try:
        meteor = dict(zip(pairs, java.meteor_statistics(*zip(*pairs, strict=True)), strict=True))
    except ToolError as error:
        scores.note(f"no METEOR and no S*m: {error}")
    return TokenizedText(answer_tokens, reference_tokens, meteor)


def _score_yes_no(scores: Scores, task: str, pairs: Sequence[Pair]) -> None:
    """Binary metrics against the change flag of the examples, and the calibration error of P(yes)."""
    truth = [example.changed for example, _ in pairs]
    answers = [prediction.answers[0] for _, prediction in pairs]
    if scores.setup.protocol == "paper":
        scores.add(task, "all", binary.compute_metrics([paper.changed(answer) for answer in answers], truth))
        return
    predicted = [_parse(classify.parse, answer) for answer in answers]
    for example, _ in pairs:
        reference = _parse(classify.parse, example.turns[0].answers[0])
        if reference is not None and reference != example.changed:
            _add_problem(
                scores,
                example,
                f"answer {reference} and changeflag {example.changed} disagree; the flag is the ground truth",
            )
    metrics = binary.compute_metrics(predicted, truth) | {"unreadable": _count_unparsed(predicted)}
    scores.add(task, "all", metrics)
    with_score = [(p.score, e.changed) for e, p in pairs if p.score is not None]
    if with_score and all(0 <= probability <= 1 for probability, _ in with_score):
        probabilities, flags = zip(*with_score, strict=True)
        scores.add(task, "all", {"calibration_error": binary.calibration_error(probabilities, flags)})
    elif with_score:
        scores.note("no calibration error: the score of yes/no must be P(yes), between 0 and 1")


def _score_counts(scores: Scores, task: str, pairs: Sequence[Pair]) -> None:
    """MAE, RMSE and exact matches of the numbers of roads and of buildings."""
    parse = paper.parse_count if scores.setup.protocol == "paper" else count.parse
    predicted, truth = _parse_pairs(scores, pairs, parse, count.parse)
    for kind in ("roads", "buildings"):
        numbers = [None if value is None else getattr(value, kind) for value in predicted]
        scores.add(task, kind, counts.compute_metrics(numbers, [getattr(value, kind) for value in truth]))
    exact = mean_metric([value == true for value, true in zip(predicted, truth, strict=True)])
    scores.add(task, "both", {"exact": exact, "unreadable": _count_unparsed(predicted)})


def _score_cells(scores: Scores, task: str, pairs: Sequence[Pair]) -> None:
    """Micro-averaged metrics of the cells with changed roads or buildings, and of a constant empty answer."""
    is_paper = scores.setup.protocol == "paper"
    predicted, truth = _parse_pairs(
        scores, pairs, paper.parse_cells if is_paper else locate.parse, locate.parse
    )
    for kind in ("roads", "buildings"):
        true_cells = [getattr(value, kind) for value in truth]
        cells = [None if value is None else getattr(value, kind) for value in predicted]
        for group, answers in ((kind, cells), (f"{kind}, always empty", [()] * len(true_cells))):
            empty_jaccard = 0.0 if is_paper else 1.0
            metrics = sets.compute_metrics(
                answers, true_cells, labels=len(locate.LABELS), empty=empty_jaccard
            )
            if scores.setup.protocol == "changeimti":
                empty_is_wrong = sets.compute_metrics(
                    answers, true_cells, labels=len(locate.LABELS), empty=0.0
                )
                metrics = {
                    "example_accuracy": metrics["jaccard"],
                    **{name: metrics[name] for name in ("precision", "recall", "f1", "subset")},
                    "jaccard_empty_0": empty_is_wrong["jaccard"],
                    "hamming": metrics["hamming"],
                }
            scores.add(task, group, metrics)
    scores.add(task, "both", {"unreadable": _count_unparsed(predicted)})


def _score_dialogues(scores: Scores, pairs: Sequence[Pair], suffix: str) -> None:
    """Score each turn by the task of its question; turns without an answer are left out.

    suffix: of the task names, for the history. The first turn has no history and is scored once.
    """
    task_of_turn = {dialogue.TURNS[0]: "change", dialogue.TURNS[1]: "count"}
    turn_pairs: dict[tuple[int, str], list[Pair]] = {}
    incomplete = 0
    for example, prediction in pairs:
        incomplete += len(prediction.answers) < len(example.turns)
        for number, (turn, answer) in enumerate(
            zip(example.turns, prediction.answers, strict=False), start=1
        ):
            task = task_of_turn.get(turn.question, "text")
            if suffix and number == 1:
                continue
            if task == "change" and scores.setup.protocol == "paper":
                scores.note(
                    "the paper has no metrics of dialogues and no parser of their yes/no; strict has both"
                )
                continue
            turn_example = Example(
                example.id, example.task, (turn,), example.changed, example.before, example.after
            )
            turn_prediction = Prediction(prediction.id, prediction.task, (answer,))
            turn_pairs.setdefault((number, task), []).append((turn_example, turn_prediction))
    if incomplete:
        scores.note(
            f"{incomplete} of {pluralize(len(pairs), 'dialogue')} with fewer answers than turns; "
            "turns without an answer are not scored"
        )
    for (number, task), group in sorted(turn_pairs.items()):
        _SCORERS.get(task, _score_text)(scores, f"dialogue, turn {number}{suffix}", group)


#: tasks with parsed answers; the others are scored as text
_SCORERS: Mapping[str, Callable[[Scores, str, Sequence[Pair]], None]] = {
    "change": _score_yes_no,
    "count": _score_counts,
    "location": _score_cells,
}


def _parse_pairs(
    scores: Scores, pairs: Sequence[Pair], parse: Parser, parse_reference: Parser
) -> tuple[list[Any], list[Any]]:
    """(predicted values, ground truth); a prediction that cannot be parsed is None.

    A pair with a reference that cannot be parsed is left out, and is a problem of the dataset.
    """
    predicted, truth = [], []
    for example, prediction in pairs:
        reference = example.turns[0].answers[0]
        value = _parse(parse_reference, reference)
        if value is None:
            _add_problem(scores, example, f"the reference {reference!r} cannot be parsed; left out")
        else:
            predicted.append(_parse(parse, prediction.answers[0]))
            truth.append(value)
    return predicted, truth


def _add_problem(scores: Scores, example: Example, message: str) -> None:
    problem = Problem("reference", f"{example.task} {example.id}", message)
    if problem not in scores.problems:  # a dialogue occurs once for each history
        scores.problems.append(problem)


def _parse(parser: Parser, answer: str) -> Any:
    """Value of an answer; None where it cannot be parsed."""
    try:
        return parser(answer)
    except AnswerParseError:
        return None


def _count_unparsed(values: Sequence[Any]) -> Metric:
    flags = mean_metric([value is None for value in values])
    return Metric(flags.rows, lambda sums: float(sums[0]))
