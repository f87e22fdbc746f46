"""Random conversations about a scene: questions as people type them, and follow-ups that refer to them.

`phrases` has the sentences of a data set's files; these are for training, and for scoring a model in a
conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deltavlm.data.synthetic import phrases
from deltavlm.data.synthetic.facts import Facts
from deltavlm.data.synthetic.phrases import QuestionAnswer
from deltavlm.tasks.caption import quantify

__all__ = ["follow_ups", "sample_conversation", "standalone_turns"]

Rng = np.random.Generator
Subject = Literal["building", "road"]
Kind = Literal["any", "count", "where"]

_QUESTIONS: Mapping[tuple[Subject, Kind], tuple[str, ...]] = {
    ("building", "any"): (
        "Are there any new buildings?",
        "Were any houses built?",
        "Have new buildings appeared?",
        "Has anything been built?",
    ),
    ("building", "count"): (
        "How many houses were built?",
        "How many new buildings are there?",
        "How many new houses can you see?",
        "Count the new buildings.",
    ),
    ("building", "where"): (
        "Where are the new buildings located?",
        "Where were houses built?",
        "Where are the new houses?",
    ),
    ("road", "any"): ("Are there any new roads?", "Was a road built?", "Have new roads appeared?"),
    ("road", "count"): (
        "How many roads were built?",
        "How many new roads are there?",
        "Count the new roads.",
    ),
    ("road", "where"): (
        "Where are the new roads located?",
        "Where were roads built?",
        "Where is the new road?",
    ),
}
_SAME_SUBJECT: Mapping[Kind, tuple[str, ...]] = {  # follow-ups on the subject of the previous turn
    "any": ("Are there any?",),
    "count": ("How many are there?", "How many?"),
    "where": ("Where are they?", "Where?"),
}
_OTHER_SUBJECT: Mapping[Subject, tuple[str, ...]] = {  # the previous question on the other subject
    "building": ("And the buildings?", "What about the houses?"),
    "road": ("And the roads?", "What about roads?"),
}
_PARAPHRASES: Mapping[str, tuple[str, ...]] = {
    "Were any buildings demolished?": ("Have houses been removed?", "Did any building disappear?"),
    "Have trees been removed?": ("Were trees cut down?", "Was the forest cleared?"),
    "Is there any new water?": ("Has a pond appeared?", "Is there a new pond?"),
    "What is the main change between the two images?": (
        "What has changed?",
        "What changed?",
        "What happened here?",
        "What is different?",
        "Describe the change.",
    ),
    "What was on the land before the new construction?": ("What was there before?",),
}
_CHANGED = ("Has anything changed?", "Has it changed?", "Is there any change?", "Did something change here?")
_LOCATION = ("Where did it change?", "Where is the change?")


@dataclass(frozen=True, slots=True)
class TopicTurn:
    """Turn of a conversation, with its topic where a follow-up can refer to it."""

    turn: QuestionAnswer
    topic: tuple[Subject, Kind] | None = None


def _answer(facts: Facts, subject: Subject, kind: Kind) -> str:
    number = facts.counts[f"{subject}_built"]
    noun = "house" if subject == "building" and kind == "any" else subject
    if kind == "where":
        return phrases.join_labels(facts.cells[f"{subject}_built"])
    if kind == "count":
        return f"{number or 'no'} new {noun}{'' if number == 1 else 's'}"
    return f"yes, {quantify(number, f'new {noun}')}" if number else f"no, there are no new {subject}s"


def standalone_turns(facts: Facts) -> list[TopicTurn]:
    """All questions that need no history, one turn for each wording."""
    turns = [
        TopicTurn(QuestionAnswer(question, _answer(facts, subject, kind)), (subject, kind))
        for (subject, kind), questions in _QUESTIONS.items()
        for question in questions
    ]
    for turn in phrases.open_questions(facts):
        for question in _PARAPHRASES.get(turn.question, ()):
            turns.append(TopicTurn(QuestionAnswer(question, turn.answer)))
        if turn.question in _PARAPHRASES:
            turns.append(TopicTurn(turn))
    answer = f"yes, {phrases.captions(facts)[0]}" if facts.changed else "no, there is no difference"
    turns += [TopicTurn(QuestionAnswer(question, answer)) for question in _CHANGED]
    location = phrases.join_labels(facts.main_cells if facts.changed else ())
    return turns + [TopicTurn(QuestionAnswer(question, location)) for question in _LOCATION]


def follow_ups(facts: Facts, topic: tuple[Subject, Kind]) -> list[TopicTurn]:
    """Short questions that refer to the previous turn, on new buildings or roads."""
    subject, kind = topic
    other: Subject = "road" if subject == "building" else "building"
    kinds: tuple[Kind, ...] = ("any", "count", "where")
    turns = [
        TopicTurn(QuestionAnswer(question, _answer(facts, subject, new_kind)), (subject, new_kind))
        for new_kind in kinds
        if new_kind != kind
        for question in _SAME_SUBJECT[new_kind]
    ]
    answer = _answer(facts, other, kind)
    return turns + [
        TopicTurn(QuestionAnswer(question, answer), (other, kind)) for question in _OTHER_SUBJECT[other]
    ]


def sample_conversation(
    rng: Rng, facts: Facts, turns: int, follow_up_share: float = 0.6
) -> list[QuestionAnswer]:
    """Draw a conversation of `turns` turns.

    follow_up_share: probability of a follow-up where the previous turn has a topic.
    """
    conversation: list[TopicTurn] = []
    for _ in range(turns):
        topic = conversation[-1].topic if conversation else None
        if topic is not None and rng.random() < follow_up_share:
            conversation.append(_choose(rng, follow_ups(facts, topic)))
        else:
            conversation.append(_choose(rng, standalone_turns(facts)))
    return [topic_turn.turn for topic_turn in conversation]


def _choose(rng: Rng, turns: Sequence[TopicTurn]) -> TopicTurn:
    """Draw an answer, then one of its wordings, so that many wordings do not make a question frequent."""
    answers = list(dict.fromkeys((turn.topic, turn.turn.answer) for turn in turns))
    answer = answers[int(rng.integers(len(answers)))]
    wordings = [turn for turn in turns if (turn.topic, turn.turn.answer) == answer]
    return wordings[int(rng.integers(len(wordings)))]
