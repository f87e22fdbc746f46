"""Scores of a model on drawn scenes: what it says against what is true, answer by answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltavlm.data.synthetic import conversations, phrases
from deltavlm.data.synthetic.cache import open_cache
from deltavlm.data.synthetic.facts import Facts, facts_of
from deltavlm.errors import AnswerParseError
from deltavlm.metrics import binary, counts, sets
from deltavlm.model.interface import ChangeModel, Question, Reply
from deltavlm.tasks import TASKS, caption, classify, count, dialogue, locate
from deltavlm.text_norm import normalise

STANDARD_QUESTIONS = tuple(
    # the default of 64 tokens: the 128 of `location` are for word pieces of LLMs and exceed a small context
    Question(task.name, task.prompt, yes_no=task.yes_no)
    for task in TASKS.values()
    if task.prompt
)


def predict_scenes(
    model: ChangeModel, cache: Path, limit: int | None = None, batch: int = 16
) -> tuple[list[list[Reply]], list[Facts]]:
    """The four standing questions asked of every pair of a cache: replies as [pair][question], and the
    facts."""
    pictures, truth = open_cache(cache)
    number = min(limit or len(pictures), len(pictures))
    replies: list[list[Reply]] = []
    for start in range(0, number, batch):
        part = np.ascontiguousarray(pictures[start : min(start + batch, number)].transpose(1, 0, 4, 2, 3))
        replies += model.answer(model.encode(part[0], part[1]), STANDARD_QUESTIONS)
    return replies, [facts_of(*maps) for maps in truth[:number]]


def score_conversations(model: ChangeModel, cache: Path, turns: int = 4, batch: int = 16) -> dict[str, Any]:
    """Share of questions that are answered word for word, by how they are asked of every pair of a cache:
    `file`, in the words of a set's files; `typed`, as people would; `after_1` and so on, behind so many turns
    of a conversation with the true answers; `unheard`, the last question of all without what it refers to.
    """
    pictures, truth = open_cache(cache)
    hits: dict[str, list[bool]] = {}
    for start in range(0, len(pictures), batch):
        part = np.ascontiguousarray(pictures[start : start + batch].transpose(1, 0, 4, 2, 3))
        encoded = model.encode(part[0], part[1])
        rows: list[tuple[str, int, str, str]] = []  # how, pair, prompt, truth
        for pair, maps in enumerate(truth[start : start + batch]):
            facts, rng = facts_of(*maps), np.random.default_rng(start + pair)
            files = phrases.open_questions(facts)
            asked = files[int(rng.integers(len(files)))]
            rows.append(("file", pair, asked.question, asked.answer))
            typed = conversations.sample_conversation(rng, facts, 1)[0]
            rows.append(("typed", pair, typed.question, typed.answer))
            said = conversations.sample_conversation(rng, facts, turns, follow_up_share=1.0)
            for number in range(1, turns):
                past = [(turn.question, turn.answer) for turn in said[:number]]
                prompt = dialogue.prompt_with_history(past, said[number].question)
                rows.append((f"after_{number}", pair, prompt, said[number].answer))
            rows.append(("unheard", pair, said[-1].question, said[-1].answer))
        replies = model.answer_rows(encoded, [(pair, Question(how, prompt)) for how, pair, prompt, _ in rows])
        for (how, *_, true), reply in zip(rows, replies, strict=True):
            hits.setdefault(how, []).append(normalise(reply.text) == normalise(true))
    return {f"talk_{how}": float(np.mean(found)) for how, found in hits.items()}


def score_scenes(replies: Sequence[Sequence[Reply]], facts: Sequence[Facts]) -> dict[str, Any]:
    """What the nano table shows. An answer that cannot be read counts as "nothing" and is counted in
    `unreadable`."""
    unreadable = 0

    def read(task: Any, text: str, nothing: Any) -> Any:
        nonlocal unreadable
        try:
            return task.parse(text)
        except AnswerParseError:
            unreadable += 1
            return nothing

    changed = [fact.changed for fact in facts]
    chance = [reply[1].score for reply in replies]
    said_yes = [read(classify, reply[1].text, False) for reply in replies]
    counted = [read(count, reply[2].text, count.Counts(0, 0)) for reply in replies]
    true_counts = [phrases.counts_of(fact) for fact in facts]
    located = [read(locate, reply[3].text, locate.Cells()) for reply in replies]
    true_cells = [phrases.cells_of(fact) for fact in facts]
    exact = [
        caption.score(reply[0].text, phrases.captions(fact))["exact"]
        for reply, fact in zip(replies, facts, strict=True)
    ]
    roads = [(a.roads, b.roads) for a, b in zip(counted, true_counts, strict=True)]
    buildings = [(a.buildings, b.buildings) for a, b in zip(counted, true_counts, strict=True)]
    return {
        "pairs": len(facts),
        "changed_share": float(np.mean(changed)),
        "yes_no_accuracy": binary.accuracy(said_yes, changed),
        "yes_no_balanced": binary.balanced_accuracy(said_yes, changed),
        "yes_no_auc": binary.auc(chance, changed),
        "calibration_error": binary.calibration_error(chance, changed),
        "count_mae_buildings": counts.mae(*zip(*buildings, strict=True)),
        "count_mae_roads": counts.mae(*zip(*roads, strict=True)),
        "count_mae_all": counts.mae(*zip(*(roads + buildings), strict=True)),
        "count_mae_always_zero": counts.mae([0] * 2 * len(facts), [true for _, true in roads + buildings]),
        "cell_f1_buildings": sets.micro_average(
            [c.buildings for c in located], [c.buildings for c in true_cells]
        ).f1,
        "cell_f1_roads": sets.micro_average([c.roads for c in located], [c.roads for c in true_cells]).f1,
        "caption_exact": float(np.mean(exact)),
        "caption_exact_changed": _mean([e for e, c in zip(exact, changed, strict=True) if c]),
        "caption_exact_unchanged": _mean([e for e, c in zip(exact, changed, strict=True) if not c]),
        "unreadable": unreadable,
    }


def _mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return float(np.mean(values)) if values else float("nan")
