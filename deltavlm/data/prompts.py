"""Random (prompt, answer) pairs about a synthetic scene, for training."""

from __future__ import annotations

import numpy as np

from deltavlm.data import unanswerable, wording
from deltavlm.data.synthetic import conversations, phrases, typed_questions
from deltavlm.data.synthetic.facts import Facts
from deltavlm.data.synthetic.phrases import QuestionAnswer
from deltavlm.messages import UNSUPPORTED
from deltavlm.tasks import caption, classify, count, dialogue, locate

__all__ = ["sample_prompts"]

Rng = np.random.Generator


def sample_prompts(
    rng: Rng, facts: Facts, extra: float = 0.5, first_caption: float = 0.8
) -> list[tuple[str, str]]:
    """Draw (prompt, answer) pairs about a scene: the four fixed tasks, and `extra` questions on average.

    An extra question is an open question, or a later turn of a dialogue or a conversation with the true
    answers as its history; about one in six cannot be answered from the scene.

    first_caption: probability of the first of the five captions. With equal probabilities the few sentences
    that say "no change" would each outweigh the many that describe a change, and greedy decoding would
    choose them.
    """
    captions = phrases.captions(facts)
    answer = captions[0] if rng.random() < first_caption else captions[int(rng.integers(len(captions)))]
    rows = [
        (caption.PROMPT, answer),
        (classify.PROMPT, classify.format_answer(facts.changed)),
        (count.PROMPT, phrases.count_answer(facts.changed, phrases.counts_of(facts))),
        (locate.PROMPT, locate.format_answer(phrases.cells_of(facts))),
    ]
    number = int(extra)
    return rows + [_sample_question(rng, facts) for _ in range(number + (rng.random() < extra - number))]


def _sample_question(rng: Rng, facts: Facts) -> tuple[str, str]:
    draw = rng.random()
    if draw < 0.2:
        questions = phrases.open_questions(facts)
        turns = [questions[int(rng.integers(len(questions)))]]
    elif draw < 0.3:
        turns = list(phrases.dialogue(facts)[: int(rng.integers(2, 4))])
    elif draw < 0.5:
        turns = conversations.sample_conversation(rng, facts, turns=int(rng.integers(1, 6)))
    elif draw < 0.82:
        turns = typed_questions.sample_turns(rng, facts, number=int(rng.integers(1, 6)))
    else:
        turns = typed_questions.sample_turns(rng, facts, number=int(rng.integers(0, 4)))
        is_follow_up = bool(turns) and rng.random() < 0.3
        question = (
            unanswerable.sample_follow_up(rng) if is_follow_up else unanswerable.sample_question(rng)[0]
        )
        turns = [*turns, QuestionAnswer(wording.as_typed(rng, question), UNSUPPORTED)]
    *history, last = turns
    if not history:
        return last.question, last.answer
    return dialogue.prompt_with_history(
        [(turn.question, turn.answer) for turn in history], last.question
    ), last.answer
