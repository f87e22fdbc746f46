"""Metrics of a model on synthetic scenes, which are scored like the examples of `deltavlm eval`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltavlm.data.examples import Example, Turn
from deltavlm.data.synthetic import conversations, phrases
from deltavlm.data.synthetic.cache import open_cache
from deltavlm.data.synthetic.facts import Facts, facts_of
from deltavlm.errors import AnswerParseError
from deltavlm.metrics import binary
from deltavlm.model.interface import ChangeModel, Pixels, Question, Reply, standard_question
from deltavlm.scoring.predictions import Prediction
from deltavlm.scoring.score import Setup, score
from deltavlm.tasks import TASKS, TaskName, caption, classify, count, dialogue, locate
from deltavlm.text_norm import normalise

__all__ = ["STANDARD_QUESTIONS", "predict_scenes", "score_conversations", "score_scenes"]

STANDARD_TASKS = tuple(name for name, task in TASKS.items() if task.prompt)
STANDARD_QUESTIONS = tuple(
    # 64 tokens at most: the 128 of `location` are for word pieces of LLMs and exceed a small context
    replace(standard_question(TASKS[name]), max_new_tokens=min(64, TASKS[name].max_new_tokens))
    for name in STANDARD_TASKS
)


def predict_scenes(
    model: ChangeModel, cache: Path, limit: int | None = None, batch_size: int = 16
) -> tuple[list[list[Reply]], list[Facts]]:
    """Ask the standard questions about the first `limit` scenes of a cache.

    Returns: replies as [scene][question], in the order of STANDARD_QUESTIONS, and the facts of the scenes.
    """
    images, truth = open_cache(cache)
    number = min(limit or len(images), len(images))
    replies: list[list[Reply]] = []
    for before, after in _batches(images[:number], batch_size):
        replies += model.answer(model.encode(before, after), STANDARD_QUESTIONS)
    return replies, [facts_of(*arrays) for arrays in truth[:number]]


def score_scenes(replies: Sequence[Sequence[Reply]], facts: Sequence[Facts]) -> dict[str, Any]:
    """Metrics of the replies of `predict_scenes`, by name, as in the model card.

    An answer that cannot be parsed is scored as "no change" and counted in `unreadable`.
    """
    pairs: list[tuple[Example, Prediction]] = []
    unparsed = 0
    for number, (scene_replies, scene) in enumerate(zip(replies, facts, strict=True)):
        for example, reply in zip(_examples(str(number), scene), scene_replies, strict=True):
            task, answer = TASKS[example.task], reply.text
            try:
                task.parse(answer)
            except AnswerParseError:
                if not task.free_text:
                    unparsed += 1
                    answer = task.unchanged or answer
            pairs.append((example, Prediction(example.id, example.task, (answer,), reply.score)))
    parsed_tasks = [name for name in STANDARD_TASKS if not TASKS[name].free_text]
    scores = score(pairs, parsed_tasks, Setup(bootstrap_rounds=0, with_published=False))
    values = {(metric.task, metric.group, metric.metric): metric.value for metric in scores.metrics}
    mae = {kind: values["count", kind, "mae"] for kind in ("buildings", "roads")}
    numbers = [number for scene in facts for number in astuple(phrases.counts_of(scene))]
    changed = [scene.changed for scene in facts]
    yes_no = [prediction for example, prediction in pairs if TASKS[example.task].yes_no]
    predicted = [classify.parse(prediction.answers[0]) for prediction in yes_no]
    probabilities = [math.nan if prediction.score is None else prediction.score for prediction in yes_no]
    exact = [
        caption.score(prediction.answers[0], example.turns[0].answers)["exact"]
        for example, prediction in pairs
        if example.task == "caption"
    ]
    return {
        "pairs": len(facts),
        "changed_share": float(np.mean(changed)),
        "yes_no_accuracy": values["change", "all", "accuracy"],
        "yes_no_balanced": binary.balanced_accuracy(predicted, changed),
        "yes_no_auc": binary.auc(probabilities, changed),
        "calibration_error": values.get(("change", "all", "calibration_error"), math.nan),  # P(yes) was NaN
        "count_mae_buildings": mae["buildings"],
        "count_mae_roads": mae["roads"],
        "count_mae_all": (mae["buildings"] + mae["roads"]) / 2,
        "count_mae_always_zero": float(np.mean(numbers)),
        "cell_f1_buildings": values["location", "buildings", "f1"],
        "cell_f1_roads": values["location", "roads", "f1"],
        "caption_exact": _mean(exact),
        "caption_exact_changed": _mean([hit for hit, flag in zip(exact, changed, strict=True) if flag]),
        "caption_exact_unchanged": _mean([hit for hit, flag in zip(exact, changed, strict=True) if not flag]),
        "unreadable": unparsed,
    }


def score_conversations(
    model: ChangeModel, cache: Path, turns: int = 4, batch_size: int = 16
) -> dict[str, Any]:
    """Share of exact answers to open questions about the scenes of a cache, by the form of the question.

    `file`: phrased as in dataset files; `typed`: as people type; `after_N`: the next question after N turns
    of a conversation with the true answers; `unheard`: the last question of all without these turns.
    """
    images, truth = open_cache(cache)
    is_exact: dict[str, list[bool]] = {}
    for start, (before, after) in zip(
        range(0, len(images), batch_size), _batches(images, batch_size), strict=True
    ):
        rows: list[tuple[int, Question, str]] = []  # index of the pair, question, true answer
        for index, arrays in enumerate(truth[start : start + batch_size]):
            rng = np.random.default_rng(start + index)
            rows += [
                (index, question, answer) for question, answer in _questions(rng, facts_of(*arrays), turns)
            ]
        replies = model.answer_rows(
            model.encode(before, after), [(index, question) for index, question, _ in rows]
        )
        for (_, question, answer), reply in zip(rows, replies, strict=True):
            is_exact.setdefault(question.name, []).append(normalise(reply.text) == normalise(answer))
    return {f"talk_{form}": float(np.mean(hits)) for form, hits in is_exact.items()}


def _examples(scene_id: str, facts: Facts) -> Iterator[Example]:
    """Examples of the standard tasks, in their order, with references made from the facts."""
    references: dict[TaskName, tuple[str, ...]] = {
        "caption": phrases.captions(facts),
        "change": (classify.format_answer(facts.changed),),
        "count": (count.format_answer(phrases.counts_of(facts)),),
        "location": (locate.format_answer(phrases.cells_of(facts)),),
    }
    for task in STANDARD_TASKS:
        turn = Turn(TASKS[task].prompt, references[task])
        yield Example(scene_id, task, (turn,), facts.changed, before="", after="")


def _questions(rng: np.random.Generator, facts: Facts, turns: int) -> Iterator[tuple[Question, str]]:
    """Questions of `score_conversations` about one scene, named by their form, and their true answers."""
    file_turns = phrases.open_questions(facts)
    turn = file_turns[int(rng.integers(len(file_turns)))]
    yield Question("file", turn.question), turn.answer
    (turn,) = conversations.sample_conversation(rng, facts, 1)
    yield Question("typed", turn.question), turn.answer
    conversation = conversations.sample_conversation(rng, facts, turns, follow_up_share=1.0)
    for number, turn in enumerate(conversation):
        if number:
            history = [(earlier.question, earlier.answer) for earlier in conversation[:number]]
            prompt = dialogue.prompt_with_history(history, turn.question)
            yield Question(f"after_{number}", prompt), turn.answer
    yield Question("unheard", conversation[-1].question), conversation[-1].answer


def _batches(images: npt.NDArray[np.uint8], size: int) -> Iterator[tuple[Pixels, Pixels]]:
    """(before, after), each (size, 3, rows, cols), from the images of a cache, (N, 2, rows, cols, 3)."""
    for start in range(0, len(images), size):
        before, after = np.ascontiguousarray(images[start : start + size].transpose(1, 0, 4, 2, 3))
        yield before, after


def _mean(values: Sequence[float]) -> float:
    """Mean; NaN of no values."""
    return float(np.mean(values)) if values else float("nan")
