"""Questions as people type them that the facts of a scene answer, and follow-ups that refer to them.

Their patterns, in `deltavlm/data/answerable.yaml`, say what a model trained on scenes is taught to answer;
`deltavlm.data.unanswerable` has questions that it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deltavlm.config import read_yaml
from deltavlm.data import wording
from deltavlm.data.synthetic import phrases
from deltavlm.data.synthetic.facts import Facts, union_of_labels
from deltavlm.data.synthetic.phrases import QuestionAnswer
from deltavlm.data.wording import choose
from deltavlm.tasks.locate import LABELS
from deltavlm.tasks.text import NO_CHANGE

__all__ = [
    "Topic",
    "answer",
    "lists_of",
    "load_patterns",
    "sample_follow_up",
    "sample_question",
    "sample_region",
    "sample_turns",
]

Rng = np.random.Generator
Subject = Literal["change", "building", "road", "tree", "water", "ground"]
Event = Literal["either", "gained", "lost"]
Aspect = Literal["any", "not", "count", "where", "what", "share", "cover", "is_cover"]

PATTERNS = Path(__file__).resolve().parent.parent / "answerable.yaml"
IN_CELLS: tuple[str, ...] = ("any", "not", "count", "what")  # aspects of questions about a part of the image
IN_CELLS_SHARE = 0.25  # of these
ABOUT_REGION_SHARE = (
    0.25  # of these: with the part as subject, as in "has the top row changed"; or with a noun
)
WEIGHTS: Mapping[str, float] = {"any": 1.5, "what": 2.0}  # of a question's aspect; 1 for others
KINDS: Mapping[str, tuple[str, str]] = {  # of change, as facts name them: gained, lost
    "building": ("building_built", "building_removed"),
    "road": ("road_built", "road_removed"),
    "tree": ("trees_planted", "trees_removed"),
    "water": ("water_new", "water_gone"),
    "ground": ("ground_opened", "ground_closed"),
}
OPEN_QUESTIONS: Mapping[str, str] = {  # of `phrases.open_questions`, about these kinds of change
    "building_built": "Are there any new buildings?",
    "building_removed": "Were any buildings demolished?",
    "road_built": "Are there any new roads?",
    "trees_removed": "Have trees been removed?",
    "water_new": "Is there any new water?",
}
STATEMENTS: Mapping[str, tuple[str, str]] = {  # answers to yes/no questions about the other kinds: yes, no
    "road_removed": ("yes, a road is removed", "no, no road was removed"),
    "trees_planted": ("yes, trees are planted", "no, no trees were planted"),
    "water_gone": ("yes, a pond disappears", "no, no pond has disappeared"),
    "ground_opened": ("yes, the land is cleared for construction", "no, no land was cleared"),
    "ground_closed": ("yes, a construction site is finished", "no, no construction site was finished"),
}
CLAUSES: Mapping[str, str] = {  # on a change in a part of the image, where numbers are not told
    **{"building_built": "new houses", "building_removed": "houses are demolished"},
    **{"road_built": "a new road", "road_removed": "a road is removed"},
    **{"trees_planted": "trees are planted", "trees_removed": "the trees are removed"},
    **{"water_new": "a pond appears", "water_gone": "a pond disappears"},
    **{"ground_opened": "the land is cleared", "ground_closed": "a construction site is finished"},
}
NONE: Mapping[Event, str] = {  # answers where no kind of change is found
    "either": NO_CHANGE[0],
    "gained": "nothing is new",
    "lost": "nothing is gone",
}
ROWS = (("top", "upper"), ("middle", "central"), ("bottom", "lower"))
COLS = (("left", "left hand"), ("middle", "central"), ("right", "right hand"))


@dataclass(frozen=True, slots=True)
class Topic:
    """Topic of a question: what it is about, whether that was gained or lost, and what is asked about it."""

    subject: Subject
    event: Event = "either"
    aspect: Aspect = "any"  # "not": whether it did not happen
    labels: tuple[str, ...] = LABELS  # cells that the question is about
    cover: str = ""  # of a question whether this kind of land was built on

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of change, as facts name them."""
        pairs = [KINDS[self.subject]] if self.subject in KINDS else [*KINDS.values()]
        chosen = {"either": (0, 1), "gained": (0,), "lost": (1,)}[self.event]
        return tuple(pair[index] for index in chosen for pair in pairs)


@dataclass(frozen=True, slots=True)
class Patterns:
    """Patterns of `answerable.yaml`."""

    lists: wording.Lists
    nouns: Mapping[str, Mapping[str, tuple[str, ...]]]  # by subject: `a`, singular; `s`, plural
    covers: wording.Lists
    questions: Mapping[tuple[Subject, Event, Aspect], tuple[str, ...]]
    regions: Mapping[tuple[str, str], tuple[str, ...]]  # by subject and event
    follow_ups: wording.Lists
    weights: tuple[float, ...] = field(default=())  # probability of each key of `questions`


@lru_cache(maxsize=1)
def load_patterns() -> Patterns:
    """Read the patterns. Buildings and roads share those of "built"."""
    values = read_yaml(PATTERNS)
    questions: dict[Any, tuple[str, ...]] = {}
    for key, text in values["questions"].items():
        subject, event, aspect = key.split()
        for each in ("building", "road") if subject == "built" else (subject,):
            earlier = questions.get((each, event, aspect), ())
            questions[each, event, aspect] = (*earlier, *text.splitlines())
    weights = np.array([WEIGHTS.get(key[2], 1.0) * len(texts) ** 0.5 for key, texts in questions.items()])
    return Patterns(
        wording.read_lists(values["lists"]),
        {subject: wording.read_lists(lists) for subject, lists in values["nouns"].items()},
        wording.read_lists(values["covers"]),
        questions,
        {
            (subject, event): tuple(text.splitlines())
            for key, text in values["regions"].items()
            for subject, event in [key.split()]
        },
        wording.read_lists(values["follow_ups"]),
        tuple((weights / weights.sum()).tolist()),
    )


def lists_of(subject: str, cover: str = "") -> dict[str, Sequence[str]]:
    """Word lists for the patterns of a subject."""
    patterns = load_patterns()
    nouns = patterns.nouns.get(subject, patterns.nouns["building"])
    return {**patterns.lists, **nouns, "cover": patterns.covers.get(cover, ())}


def sample_question(rng: Rng) -> tuple[str, Topic]:
    """Draw a question that needs no history, and its topic."""
    patterns = load_patterns()
    keys = list(patterns.questions)
    subject, event, aspect = key = keys[int(rng.choice(len(keys), p=patterns.weights))]
    topic, noun_subject = Topic(subject, event, aspect), subject
    if aspect in ("cover", "is_cover"):
        noun_subject = choose(rng, ("building", "building", "road"))  # type: ignore[assignment]
        topic = replace(topic, cover=choose(rng, list(patterns.covers)) if aspect == "is_cover" else "")
    text = wording.sample(rng, choose(rng, patterns.questions[key]), lists_of(noun_subject, topic.cover))
    if aspect not in IN_CELLS or rng.random() >= IN_CELLS_SHARE:
        return text, topic
    region, labels = sample_region(rng)
    topic = replace(topic, labels=labels)
    draw, region_patterns = rng.random(), patterns.regions.get((subject, event), ())
    if draw < ABOUT_REGION_SHARE and aspect == "any" and region_patterns:
        noun = f"the {region.split(' the ', 1)[-1]}"
        lists = lists_of(noun_subject) | {"at": [noun], "in": [region]}
        return wording.sample(rng, choose(rng, region_patterns), lists), topic
    if draw < 2 * ABOUT_REGION_SHARE and noun_subject in patterns.nouns:  # "the house on the left"
        nouns = {
            name: [f"{noun} {region}" for noun in nouns]
            for name, nouns in patterns.nouns[noun_subject].items()
        }
        in_region = wording.sample(rng, choose(rng, patterns.questions[key]), lists_of(noun_subject) | nouns)
        if region in in_region:
            return in_region, topic
    return f"{text} {region}", topic


def sample_region(rng: Rng) -> tuple[str, tuple[str, ...]]:
    """Draw a phrase such as "in the upper left corner", and the cells that it means."""
    cells = [(row, col) for row in (None, 0, 1, 2) for col in (None, 0, 1, 2)]
    row, col = cells[int(rng.integers(1, len(cells)))]  # the first is the whole image
    labels = tuple(
        label for index, label in enumerate(LABELS) if row in (None, index // 3) and col in (None, index % 3)
    )
    area = "(part|area|section|third|region|side|portion)"
    if row is None:
        assert col is not None
        middle = f"in the (middle|central|center) column|in the {area} in the middle"
        names = (
            middle if col == 1 else f"(on|at|to) the {COLS[col][0]}|(on|along) the {COLS[col][0]} (side|edge)"
        )
        pattern = f"({names}|(in|on) the {COLS[col][1]} {area})"
    elif col is None:
        middle = "in the (middle|central|center) row"
        names = (
            middle
            if row == 1
            else f"(at|along|near) the {ROWS[row][0]}( edge|)|along the {ROWS[row][1]} edge"
        )
        pattern = f"({names}|in the {ROWS[row][1]} {area})"
    elif row == col == 1:
        pattern = "(in|at|near) the (very |)(center|centre|middle|central cell|middle cell)"
    elif row == 1 or col == 1:
        label = LABELS[3 * row + col].replace("-", "( |-)")
        pattern = f"(in|at|on) the ({label}( cell|)|{ROWS[row][1]} {COLS[col][0]} (cell|part|side|area))"
    else:
        corner = "(corner|part|area|cell|side|quadrant|section|third|)"
        names = f"({'|'.join(ROWS[row])})( |-){COLS[col][0]}|{COLS[col][0]} {ROWS[row][0]}"
        pattern = f"(in|at|on|near) the ({names}) {corner}"
    image = "(| of (the|this) (image|picture|photo|scene|chip|area|map))"
    return wording.sample(rng, pattern + image, {}), labels


def sample_follow_up(rng: Rng, topic: Topic) -> tuple[str, Topic]:
    """Draw a short question that refers to the turn before it, and what it means after that topic."""
    follow_ups = load_patterns().follow_ups
    draw = rng.random()
    if draw < 0.15 and topic.aspect == "any" and topic.subject != "change":
        region, labels = sample_region(rng)
        text = wording.sample(rng, choose(rng, follow_ups["region"]), {"at": [region]})
        return text, replace(topic, labels=labels)
    others = [
        replace(topic, subject=subject, labels=LABELS)  # type: ignore[arg-type]
        for subject in load_patterns().nouns
        if subject != topic.subject != "change" and topic.aspect in ("any", "where", "count")
    ]
    others = [other for other in others if _is_answered(other)]
    if draw < 0.4 and others:
        other = others[int(rng.integers(len(others)))]
        text = wording.sample(rng, choose(rng, follow_ups["subject"]), lists_of(other.subject))
        return text, other
    if draw < 0.46 and topic.subject != "change" and topic.aspect in ("any", "where", "count"):
        text = wording.sample(rng, choose(rng, follow_ups["scene"]), lists_of(topic.subject))
        aspect: Aspect = "count" if "many" in text.split() or text.startswith("count") else "where"
        if _is_answered(replace(topic, aspect=aspect)):
            return text, replace(topic, aspect=aspect, labels=LABELS)
    aspects: tuple[Aspect, ...] = ("any", "count", "where", "what", "cover")
    topics = [replace(topic, aspect=aspect, labels=LABELS) for aspect in aspects if aspect != topic.aspect]
    topics = [each for each in topics if _is_answered(each)]
    topic = topics[int(rng.integers(len(topics)))]
    return wording.sample(rng, choose(rng, follow_ups[topic.aspect]), lists_of(topic.subject)), topic


def _is_answered(topic: Topic) -> bool:
    """True if facts answer a question about this topic."""
    if topic.aspect == "count":
        return topic.subject in ("building", "road") and topic.event != "either"
    if topic.aspect == "what":
        return topic.subject == "change"
    if topic.aspect == "cover":
        return topic.subject in ("building", "road") and topic.event == "gained"
    return topic.aspect in ("any", "where")


def sample_turns(rng: Rng, facts: Facts, number: int, follow_up_share: float = 0.6) -> list[QuestionAnswer]:
    """Draw a conversation of `number` turns; the answers follow from the facts.

    follow_up_share: probability that a turn after the first is a follow-up.
    """
    turns: list[QuestionAnswer] = []
    topic: Topic | None = None
    for _ in range(number):
        if topic is not None and rng.random() < follow_up_share:
            text, topic = sample_follow_up(rng, topic)
        else:
            text, topic = sample_question(rng)
        turns.append(QuestionAnswer(wording.as_typed(rng, text), answer(facts, topic)))
    return turns


def answer(facts: Facts, topic: Topic) -> str:
    """Answer to a question about a topic, as the facts of a scene have it."""
    match topic.aspect:
        case "any":
            return _yes_or_no(facts, topic)
        case "not":
            reply = _yes_or_no(facts, replace(topic, aspect="any"))
            if reply.startswith("yes"):
                return reply.replace("yes", "no", 1)
            return "yes" if topic.labels != LABELS else reply.replace("no", "yes", 1)
        case "count":
            (kind,), noun = topic.kinds, topic.subject
            adjective = {"building_removed": "demolished", "road_removed": "removed"}.get(kind, "new")
            numbers = dict(zip(LABELS, facts.cell_counts[kind], strict=True))
            number = sum(numbers[label] for label in topic.labels)
            return f"{number or 'no'} {adjective} {noun}{'' if number == 1 else 's'}"
        case "where":
            is_total = topic.subject == "change" and topic.event == "either"
            cells = facts.main_cells if is_total and facts.changed else _cells(facts, topic.kinds)
            return phrases.join_labels(cells)
        case "what":
            if topic.labels != LABELS:
                kinds = [kind for kind in topic.kinds if {*_cells(facts, (kind,))} & {*topic.labels}]
                return " and ".join(CLAUSES[kind] for kind in kinds) or NONE[topic.event]
            if topic.subject == "change" and topic.event == "either":
                return phrases.captions(facts)[0]
            return " and ".join(_events(facts, topic)) or NONE[topic.event]
        case "share":
            shares = [facts.ground_shares.get(kind, 0.0) for kind in topic.kinds]
            return _percent(facts.changed_share * facts.changed if topic.subject == "change" else sum(shares))
    has_new = facts.counts["building_built"] + facts.counts["road_built"] > 0
    land = phrases.LAND.get(facts.replaced_cover or "", "different kinds of land")
    if topic.aspect == "cover":
        return land if has_new else "nothing was built"
    if not has_new:
        return "no, nothing was built"
    return f"{'yes' if facts.replaced_cover == topic.cover else 'no'}, {land}"


def _yes_or_no(facts: Facts, topic: Topic) -> str:
    """Answer to whether a change happened, anywhere or in the cells of the topic."""
    if topic.labels != LABELS:
        hits = [label for label in _cells(facts, topic.kinds) if label in topic.labels]
        return f"yes, {phrases.join_labels(tuple(hits))}" if hits else "no, not there"
    if topic.subject == "change" and topic.event == "either":
        return f"yes, {phrases.captions(facts)[0]}" if facts.changed else f"no, {NO_CHANGE[0]}"
    if len(topic.kinds) == 1:
        return _statement(facts, topic.kinds[0])
    events = _events(facts, topic)
    return f"yes, {' and '.join(events)}" if events else f"no, {NONE[topic.event]}"


def _events(facts: Facts, topic: Topic) -> list[str]:
    """Clauses on the changes of a topic that happened."""
    statements = [_statement(facts, kind) for kind in topic.kinds]
    return [text.removeprefix("yes, ") for text in statements if text.startswith("yes, ")]


def _statement(facts: Facts, kind: str) -> str:
    """Answer to whether one kind of change happened."""
    if kind in OPEN_QUESTIONS:
        answers = {turn.question: turn.answer for turn in phrases.open_questions(facts)}
        return answers[OPEN_QUESTIONS[kind]]
    yes, no = STATEMENTS[kind]
    if kind == "road_removed" and facts.counts[kind] > 1:
        yes = "yes, roads are removed"
    return yes if _cells(facts, (kind,)) else no


def _cells(facts: Facts, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Cells in which changes of these kinds happened."""
    cells = facts.cells | facts.ground_cells
    return union_of_labels(*(cells.get(kind, ()) for kind in kinds))


def _percent(share: float) -> str:
    """Share of the image in words, rounded."""
    if not share:
        return "nothing of the image"
    if share < 0.01:
        return "less than 1 percent of the image"
    steps = (1, 2, 5, *range(10, 101, 10))
    return f"about {min(steps, key=lambda step: abs(step - 100 * share))} percent of the image"
