"""From examples with their answers to figures, each with its protocol, number of examples and interval.

`strict` is the sound protocol: real words, the yes/no answer itself, our parsers, nothing like nothing is 1.
`paper` re-enacts the original's: ids of a word map, captions read as yes/no, its parsers, nothing like
nothing is 0. The page docs/evaluation.md says why they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from deltavlm.data.examples import Example, Problem
from deltavlm.errors import AnswerParseError, ToolError
from deltavlm.metrics import binary, counts, java, sets, text
from deltavlm.metrics.bootstrap import BOOTSTRAP_ROUNDS, Array, Metric, mean_metric
from deltavlm.scoring import paper
from deltavlm.scoring.predictions import HISTORIES, Prediction
from deltavlm.scoring.published import published
from deltavlm.tasks import TASKS, TaskName, classify, count, dialogue, locate

__all__ = ["Figure", "Protocol", "Scores", "Setup", "score"]

Protocol = Literal["strict", "paper"]
Pair = tuple[Example, Prediction]


@dataclass(frozen=True, slots=True)
class Setup:
    """How answers are read and how intervals are drawn.

    word_map: what `paper` turns words into. beside: whether the data are those of the published figures.
    """

    protocol: Protocol = "strict"
    word_map: Mapping[str, int] | None = None
    rounds: int = BOOTSTRAP_ROUNDS
    seed: int = 0
    beside: bool = True


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the table. group: which examples or which class; n: how many examples it is over."""

    task: str
    group: str
    metric: str
    protocol: Protocol
    value: float
    low: float | None
    high: float | None
    n: int
    published: float | None


Said = tuple[str, tuple[str, ...]]  # an answer and its references


@dataclass(frozen=True, slots=True)
class Words:
    """Sentences split into words, and what METEOR counts: of all at once, since Java takes long to start."""

    answers: Mapping[str, str]
    references: Mapping[str, str]
    matched: Mapping[Said, Array] | None  # by answer and references as they are split; None without METEOR


@dataclass(slots=True)
class Scores:
    """The figures in the order of the tasks, what a reader must know of them, and references not usable."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    tokens: str | None = None  # what the words of captions are; None where no text was scored
    told: list[Said] = field(default_factory=list)  # every answer that may be scored as text
    words: Words | None = None  # of these, split when the first of them is scored

    def add(self, setup: Setup, task: str, group: str, tallies: Mapping[str, Metric]) -> None:
        for metric, tally in tallies.items():
            counted = metric in ("tp", "fp", "fn", "tn", "unreadable")
            limits = None if counted else tally.confidence_interval(setup.rounds, setup.seed)
            low, high = limits or (None, None)
            known = published(task, group, metric) if setup.beside else None
            self.figures.append(
                Figure(task, group, metric, setup.protocol, tally.value(), low, high, len(tally.rows), known)
            )

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def score(pairs: Sequence[Pair], tasks: Iterable[TaskName], setup: Setup) -> Scores:
    """The figures of the given tasks.

    Under `paper`, yes/no ("change") is judged from the captions among the pairs, not from yes/no answers.

    Raises: ValueError when `paper` is to score text without a word map.
    """
    scores = Scores()
    of: dict[str, list[Pair]] = {}
    for pair in pairs:
        of.setdefault(pair[0].task, []).append(pair)
    tasks = list(tasks)
    scores.told = [
        (answer, tuple(turn.answers))
        for task in tasks
        if TASKS[task].free_text
        for example, prediction in of.get(task, [])
        for turn, answer in zip(example.turns, prediction.answers, strict=False)
    ]
    for task in tasks:
        if task == "change" and setup.protocol == "paper":
            if of.get("caption"):
                _change(scores, setup, "change", of["caption"])
        elif task == "dialogue":
            for history in HISTORIES:
                told = [pair for pair in of.get(task, []) if pair[1].history == history]
                _dialogue(scores, setup, told, "" if history == "own" else ", reference history")
        elif of.get(task):
            _SCORERS[task](scores, setup, task, of[task])
    return scores


def _text(scores: Scores, setup: Setup, task: str, pairs: Sequence[Pair]) -> None:
    """For all, changed and unchanged pairs; a group without examples has no figures."""
    try:
        java.pycocoevalcap_folder()  # without it one note is enough
        known = scores.words = scores.words or _words(scores, setup)
        told = [
            (
                known.answers[prediction.answers[0]],
                tuple(known.references[one] for one in example.turns[0].answers),
            )
            for example, prediction in pairs
        ]
        for group, keep in (("all", None), ("changed", True), ("unchanged", False)):
            chosen = [
                one
                for one, (example, _) in zip(told, pairs, strict=True)
                if keep is None or example.changed == keep
            ]
            if chosen:
                matched = None if known.matched is None else np.stack([known.matched[one] for one in chosen])
                answers, references = zip(*chosen, strict=True)
                scores.add(setup, task, group, text.compute_metrics(answers, references, matched))
    except ToolError as error:
        scores.note(f"no scores of text: {error}")


def _words(scores: Scores, setup: Setup) -> Words:
    """The answers that may be scored as text, as the protocol splits them."""
    answers = list(dict.fromkeys(answer for answer, _ in scores.told))
    references = list(dict.fromkeys(one for _, known in scores.told for one in known))
    if setup.protocol == "paper":
        if setup.word_map is None:
            raise ValueError("the paper protocol scores text on the ids of a word map")
        words = setup.word_map
        scores.tokens = "word map"
        split = [paper.answer_ids(one, words) for one in answers]
        split += [paper.reference_ids(one, words) for one in references]
    else:
        try:
            split = java.ptb_tokenize([*answers, *references])
            scores.tokens = "ptb"
        except ToolError as error:
            scores.note(f"words are split by a simple rule instead of the PTB tokenizer: {error}")
            split = [text.simple_tokenize(one) for one in [*answers, *references]]
            scores.tokens = "simple"
    said = dict(zip(answers, split, strict=False))
    known = dict(zip(references, split[len(answers) :], strict=True))
    pairs = list(dict.fromkeys((said[one], tuple(known[each] for each in of)) for one, of in scores.told))
    matched: dict[Said, Array] | None = None
    try:
        matched = dict(zip(pairs, java.meteor_statistics(*zip(*pairs, strict=True)), strict=True))
    except ToolError as error:
        scores.note(f"no METEOR and no S*m: {error}")
    return Words(said, known, matched)


def _change(scores: Scores, setup: Setup, task: str, pairs: Sequence[Pair]) -> None:
    truth = [example.changed for example, _ in pairs]
    answers = [prediction.answers[0] for _, prediction in pairs]
    if setup.protocol == "paper":
        scores.add(
            setup, task, "all", binary.compute_metrics([paper.changed(answer) for answer in answers], truth)
        )
        return
    said = [_read(classify.parse, answer) for answer in answers]
    for example, _ in pairs:
        told = _read(classify.parse, example.turns[0].answers[0])
        if told is not None and told != example.changed:
            _doubt(
                scores, example, f"answer {told} and changeflag {example.changed} disagree; the flag counts"
            )
    scores.add(setup, task, "all", binary.compute_metrics(said, truth) | {"unreadable": _unreadable(said)})
    given = [(p.score, e.changed) for e, p in pairs if p.score is not None]
    if given and all(0 <= value <= 1 for value, _ in given):
        values, facts = zip(*given, strict=True)
        scores.add(setup, task, "all", {"calibration_error": binary.calibration_metric(values, facts)})
    elif given:
        scores.note("no calibration: a score of yes/no is the probability of yes, between 0 and 1")


def _count(scores: Scores, setup: Setup, task: str, pairs: Sequence[Pair]) -> None:
    kept = _with_truth(scores, pairs, count.parse)
    reader = paper.read_count if setup.protocol == "paper" else count.parse
    said = [_read(reader, prediction.answers[0]) for _, prediction, _ in kept]
    truth = [fact for *_, fact in kept]
    for group in ("roads", "buildings"):
        numbers = [None if one is None else getattr(one, group) for one in said]
        scores.add(
            setup, task, group, counts.compute_metrics(numbers, [getattr(one, group) for one in truth])
        )
    both = [one == fact for one, fact in zip(said, truth, strict=True)]
    scores.add(setup, task, "both", {"exact": mean_metric(both), "unreadable": _unreadable(said)})


def _location(scores: Scores, setup: Setup, task: str, pairs: Sequence[Pair]) -> None:
    kept = _with_truth(scores, pairs, locate.parse)
    is_paper = setup.protocol == "paper"
    reader = paper.read_cells if is_paper else locate.parse
    said = [_read(reader, prediction.answers[0]) for _, prediction, _ in kept]
    for group in ("roads", "buildings"):
        truth = [getattr(fact, group) for *_, fact in kept]
        named = [None if one is None else getattr(one, group) for one in said]
        for name, answers in ((group, named), (f"{group}, always empty", [()] * len(truth))):
            found = sets.compute_metrics(
                answers, truth, labels=len(locate.LABELS), empty=0.0 if is_paper else 1.0
            )
            scores.add(setup, task, name, found)
    scores.add(setup, task, "both", {"unreadable": _unreadable(said)})


def _dialogue(scores: Scores, setup: Setup, pairs: Sequence[Pair], history: str) -> None:
    """Each turn as the task that its question is; answers may be fewer than turns, and those are left out.

    The first turn has no history, and is scored once.
    """
    kinds = {dialogue.TURNS[0]: "change", dialogue.TURNS[1]: "count"}
    turns: dict[tuple[int, str], list[Pair]] = {}
    short = 0
    for example, prediction in pairs:
        short += len(prediction.answers) < len(example.turns)
        for number, (turn, answer) in enumerate(
            zip(example.turns, prediction.answers, strict=False), start=1
        ):
            kind = kinds.get(turn.question, "text")
            if history and number == 1:
                continue
            if kind == "change" and setup.protocol == "paper":
                scores.note(
                    "the paper has no score of dialogues and no reading of their yes/no; strict has both"
                )
                continue
            one = Example(example.id, example.task, (turn,), example.changed, example.before, example.after)
            given = Prediction(prediction.id, prediction.task, (answer,))
            turns.setdefault((number, kind), []).append((one, given))
    if short:
        scores.note(
            f"{short} of {len(pairs)} dialogues have fewer answers than turns; the rest is not scored"
        )
    for (number, kind), part in sorted(turns.items()):
        _SCORERS[kind](scores, setup, f"dialogue, turn {number}{history}", part)


_SCORERS: Mapping[str, Callable[[Scores, Setup, str, Sequence[Pair]], None]] = {
    "caption": _text,
    "open": _text,
    "text": _text,
    "change": _change,
    "count": _count,
    "location": _location,
}


def _with_truth(
    scores: Scores, pairs: Sequence[Pair], parse: Callable[[str], Any]
) -> list[tuple[Example, Prediction, Any]]:
    """Pairs with what their reference means; a reference that cannot be read is a problem, not an answer."""
    kept = []
    for example, prediction in pairs:
        fact = _read(parse, example.turns[0].answers[0])
        if fact is None:
            _doubt(scores, example, f"the reference {example.turns[0].answers[0]!r} cannot be read; left out")
        else:
            kept.append((example, prediction, fact))
    return kept


def _doubt(scores: Scores, example: Example, what: str) -> None:
    problem = Problem("reference", f"{example.task} {example.id}", what)
    if problem not in scores.problems:  # a dialogue may be there with two histories
        scores.problems.append(problem)


def _read(parse: Callable[[str], Any], answer: str) -> Any:
    """What an answer means; None where it cannot be read."""
    try:
        return parse(answer)
    except AnswerParseError:
        return None


def _unreadable(said: Sequence[Any]) -> Metric:
    flags = mean_metric([one is None for one in said])
    return Metric(flags.rows, lambda sums: float(sums[0]))
