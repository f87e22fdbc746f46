"""Facts in conversation: questions as people type them, and follow-ups that mean something only behind what
was said before.

`words` holds the sentences of a set's files; these are for training, and for scoring a model that talks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deltavlm.data.synthetic import phrases
from deltavlm.data.synthetic.facts import Facts
from deltavlm.data.synthetic.phrases import Turn

if TYPE_CHECKING:
    import numpy as np

    Rng = np.random.Generator

Subject = Literal["building", "road"]
Kind = Literal["any", "count", "where"]

_BUILT: Mapping[tuple[Subject, Kind], tuple[str, ...]] = {
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
_AGAIN: Mapping[Kind, tuple[str, ...]] = {  # about what the turn before was about
    "any": ("Are there any?",),
    "count": ("How many are there?", "How many?"),
    "where": ("Where are they?", "Where?"),
}
_OTHER: Mapping[Subject, tuple[str, ...]] = {  # asked of the other thing what was asked before
    "building": ("And the buildings?", "What about the houses?"),
    "road": ("And the roads?", "What about roads?"),
}
_WAYS: Mapping[str, tuple[str, ...]] = {
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
_WHERE = ("Where did it change?", "Where is the change?")


@dataclass(frozen=True, slots=True)
class Said:
    """A turn, and what it was about where a follow-up can refer to that."""

    turn: Turn
    about: tuple[Subject, Kind] | None = None


def _built(facts: Facts, subject: Subject, kind: Kind) -> str:
    number = facts.counts[f"{subject}_built"]
    noun = "house" if subject == "building" and kind == "any" else subject
    if kind == "where":
        return phrases.join_labels(facts.cells[f"{subject}_built"])
    if kind == "count":
        return f"{number or 'no'} new {noun}{'' if number == 1 else 's'}"
    return f"yes, {phrases.quantify(number, f'new {noun}')}" if number else f"no, there are no new {subject}s"


def standalone_turns(facts: Facts) -> list[Said]:
    """Every question that stands alone, each wording of it a turn."""
    said = [
        Said(Turn(question, _built(facts, subject, kind)), (subject, kind))
        for (subject, kind), ways in _BUILT.items()
        for question in ways
    ]
    for turn in phrases.open_questions(facts):
        for question in _WAYS.get(turn.question, ()):
            said.append(Said(Turn(question, turn.answer)))
        if turn.question in _WAYS:
            said.append(Said(turn))
    told = f"yes, {phrases.captions(facts)[0]}" if facts.changed else "no, there is no difference"
    said += [Said(Turn(question, told)) for question in _CHANGED]
    said += [Said(Turn(question, phrases.join_labels(facts.where))) for question in _WHERE]
    return said


def follow_ups(facts: Facts, about: tuple[Subject, Kind]) -> list[Said]:
    """What can be asked in few words behind a turn about new buildings or roads."""
    subject, kind = about
    other: Subject = "road" if subject == "building" else "building"
    kinds: tuple[Kind, ...] = ("any", "count", "where")
    said = [
        Said(Turn(question, _built(facts, subject, again)), (subject, again))
        for again in kinds
        if again != kind
        for question in _AGAIN[again]
    ]
    return said + [
        Said(Turn(question, _built(facts, other, kind)), (other, kind)) for question in _OTHER[other]
    ]


def sample_conversation(rng: Rng, facts: Facts, turns: int, follow_up_share: float = 0.6) -> list[Turn]:
    """So many turns; `follow_up_share` is the chance of a follow-up where there can be one."""
    said: list[Said] = []
    for _ in range(turns):
        about = said[-1].about if said else None
        if about is not None and rng.random() < follow_up_share:
            said.append(_one_of(rng, follow_ups(facts, about)))
        else:
            said.append(_one_of(rng, standalone_turns(facts)))
    return [one.turn for one in said]


def _one_of(rng: Rng, said: Sequence[Said]) -> Said:
    """One of the subjects first, then one of its wordings, so that none is asked often for its many names."""
    answers = list(dict.fromkeys((one.about, one.turn.answer) for one in said))
    chosen = answers[int(rng.integers(len(answers)))]
    ways = [one for one in said if (one.about, one.turn.answer) == chosen]
    return ways[int(rng.integers(len(ways)))]
