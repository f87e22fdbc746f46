"""Questions that a model trained on scenes is not taught to answer, each with the same honest answer.

Objects that no scene teaches, properties, dates, names, causes, one date alone, forecasts, opinions, the
images as files, other languages, nonsense and small talk, from patterns in `deltavlm/data/unanswerable.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from deltavlm.config import read_yaml
from deltavlm.data import wording
from deltavlm.data.synthetic.typed_questions import lists_of, load_patterns
from deltavlm.data.synthetic.typed_questions import sample_question as sample_answerable
from deltavlm.data.wording import choose

__all__ = ["KINDS", "sample_follow_up", "sample_question"]

Rng = np.random.Generator

PATTERNS = Path(__file__).resolve().parent / "unanswerable.yaml"
KINDS: Mapping[str, float] = {  # share of each kind
    **{"object": 0.24, "property": 0.13, "time": 0.08, "name": 0.08, "cause": 0.09, "one_date": 0.1},
    **{"prediction": 0.04, "opinion": 0.06, "image": 0.04, "self": 0.02, "talk": 0.03, "instruction": 0.02},
    **{"knowledge": 0.02, "language": 0.02, "nonsense": 0.03},
}
UNKNOWN_WORD = 0.35  # share of the unknown things and events that are no words at all
NEAR = "(near|next to|behind|on|beside|around|close to|in front of|opposite|under) (the|a|our|their|my) {a}"
VERB_LISTS = (  # of answerable questions, that say what happened
    *("built", "build", "came", "come", "lost", "lose", "went", "go", "felled", "fell", "planted", "plant"),
    *("changed", "describe", "find", "see"),
)
OTHER_EVENT = 0.3  # share of the disguised questions with such a list: about another event
DISGUISED = 0.6  # share of the questions about objects that are answerable but for the object


@dataclass(frozen=True, slots=True)
class Patterns:
    """Patterns of `unanswerable.yaml`."""

    lists: wording.Lists
    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    questions: wording.Lists  # by kind
    follow_ups: tuple[str, ...]
    foreign: tuple[str, ...]  # sentences in other languages


@lru_cache(maxsize=1)
def load_unanswerable() -> Patterns:
    """Read the patterns."""
    values = read_yaml(PATTERNS)
    lists = wording.read_lists(values["lists"])
    return Patterns(
        lists | {"if": load_patterns().lists["if"]},
        _words(values["objects"]),
        _words(values["verbs"]),
        wording.read_lists(values["questions"]),
        tuple(values["follow_ups"].splitlines()),
        _words(values["languages"].replace(",", " ").replace(";", ",")),
    )


def _words(text: str) -> tuple[str, ...]:
    """Words of a text with commas or line ends between them."""
    return tuple(word.strip() for word in text.replace("\n", ",").split(",") if word.strip())


def sample_question(rng: Rng) -> tuple[str, str]:
    """Draw a question that cannot be answered, and its kind."""
    kind = list(KINDS)[int(rng.choice(len(KINDS), p=list(KINDS.values())))]
    if kind == "language":
        return _foreign(rng), kind
    if kind == "nonsense":
        return _nonsense(rng), kind
    patterns = load_unanswerable()
    if kind == "object" and rng.random() < DISGUISED:
        return _disguised(rng), kind
    return wording.sample(rng, choose(rng, patterns.questions[kind]), _lists(rng)), kind


def sample_follow_up(rng: Rng) -> str:
    """Draw a short question that refers to the turn before it, and cannot be answered whatever that was."""
    return wording.sample(rng, choose(rng, load_unanswerable().follow_ups), _lists(rng))


def _lists(rng: Rng) -> wording.Lists:
    singular = _object(rng)
    return {**load_unanswerable().lists, "a": [singular], "s": [_plural(_object(rng))]}


def _object(rng: Rng) -> str:
    """Name of an object that scenes do not teach."""
    return _unknown(rng, load_unanswerable().objects)


def _unknown(rng: Rng, words: tuple[str, ...]) -> str:
    """One of the words, or one that means nothing."""
    return wording.sample_word(rng) if rng.random() < UNKNOWN_WORD else choose(rng, words)


def _plural(noun: str) -> str:
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def _disguised(rng: Rng) -> str:
    """An answerable question, but about another thing, about another event, or at a thing."""
    _, topic = sample_answerable(rng)
    pattern = choose(rng, load_patterns().questions[topic.subject, topic.event, topic.aspect])
    lists = lists_of(topic.subject, topic.cover)
    verbs = [name for name in VERB_LISTS if f"{{{name}}}" in pattern]
    if verbs and rng.random() < OTHER_EVENT:
        verb = _unknown(rng, load_unanswerable().verbs)
        text = wording.sample(rng, pattern, lists | {choose(rng, verbs): [verb]})
        if verb in text.split():
            return text
    noun = _object(rng)
    text = wording.sample(rng, pattern, lists | {"a": [noun], "s": [_plural(noun)]})
    if noun not in text or rng.random() < 0.15:
        return f"{text} {wording.sample(rng, NEAR, _lists(rng))}"
    return text


def _foreign(rng: Rng) -> str:
    """A sentence in another language, or words of two."""
    foreign = load_unanswerable().foreign
    text = choose(rng, foreign)
    if rng.random() < 0.4:
        words = f"{text} {choose(rng, foreign)}".split()
        return " ".join(words[index] for index in rng.permutation(len(words))[: int(rng.integers(2, 8))])
    return text


def _nonsense(rng: Rng) -> str:
    """Words that mean nothing, letters of a keyboard, numbers, or known words in a random order."""
    draw = rng.random()
    if draw < 0.35:
        return " ".join(wording.sample_word(rng) for _ in range(int(rng.integers(1, 7))))
    letters = "abcdefghijklmnopqrstuvwxyz"
    if draw < 0.6:
        row = choose(rng, ("asdfghjkl", "qwertyuiop", "zxcvbnm", letters, "jkl", "asdf", "uiop", "fghj"))
        lengths = rng.integers(2, 9, int(rng.integers(1, 5)))
        return " ".join("".join(choose(rng, tuple(row)) for _ in range(length)) for length in lengths)
    if draw < 0.7:
        return " ".join(
            str(rng.integers(0, 10 ** int(rng.integers(1, 6)))) for _ in range(int(rng.integers(1, 4)))
        )
    if draw < 0.8:
        return " ".join(
            choose(rng, tuple(letters)) * int(rng.integers(1, 6)) for _ in range(int(rng.integers(1, 4)))
        )
    words = [*sample_answerable(rng)[0].split(), wording.sample_word(rng), _object(rng)]
    return " ".join(words[index] for index in rng.permutation(len(words))[: int(rng.integers(2, 9))])
