"""Random wordings of questions: patterns with alternatives and lists, courtesies, typing errors.

A pattern is text with alternatives in parentheses, which may be empty or nested, and names of lists in
braces: `(are|is) there (any |)new {houses}`. The items of a list are patterns too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

__all__ = ["Lists", "as_typed", "choose", "read_lists", "sample", "sample_word"]

Rng = np.random.Generator
Lists = Mapping[str, Sequence[str]]

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
ONSETS, VOWELS, CODAS = (  # of syllables
    tuple(text.split(" "))
    for text in (
        "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kn l m n p ph pl pr qu r s sc sh sk sl sm sn sp st"
        " t th tr v w wr z",
        "a e i o u a e i o ai ea ee ie oa oo ou y au ei",
        "   b ck ct d ft g k l ll lt m mp n nd ng nk nt p r rd rk rm rn rt s sk sp st t tch x",
    )
)
ENDINGS = ("", "", "", "s", "er", "ing", "ed", "ion", "y", "al", "ment", "ness")
TYPING_ERRORS = (0.78, 0.17, 0.05)  # probability of none, one and two in a question

COURTESIES: Lists = {
    "opener": (
        "(hi|hello|hey|hi there|good (morning|afternoon|evening)|ok|well|so|and|now|next question|also|yo)",
        "((a |one |)(quick |small |last |first |)question|just (wondering|curious|checking)|um|hmm|sorry)",
        "(dear (sir|madam|all)|one more (thing|question)|i have a question|by the way|btw|first of all)",
        "for (my|the|our) (report|records|project|map|boss|client|team|thesis|survey|study|department|file)",
        "(my|our) (boss|client|colleague|teacher|neighbour|mother|manager) (asks|wants to know|says)",
        "(looking at|comparing|on|in) (the|these|both) (images|pictures|photos|scenes)",
    ),
    "request": (
        "(can|could|would) you (please |kindly |)(tell me|say|check|see|answer|find out)",
        "(please |)(tell me|answer|check|say|let me know|do you know|any idea)",
        "(i|we) (want|need|would like|wish) to know",
        "(i wonder|my question is|question)",
    ),
    "closer": (
        "(please|pls|plz|thanks|thank you|thx|or not|yes or no|right|do you know|can you tell|asap|exactly)",
        "(in short|just curious|or nah|then|in your opinion|if possible|if any|do you think)",
    ),
}


def read_lists(texts: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Lists from texts with one item a line."""
    return {name: tuple(text.splitlines()) for name, text in texts.items()}


def choose(rng: Rng, items: Sequence[str]) -> str:
    """Draw one of the items."""
    return items[int(rng.random() * len(items))]  # rng.integers takes several times as long


def sample(rng: Rng, pattern: str, lists: Lists) -> str:
    """Draw a text of a pattern; runs of spaces become one.

    >>> sample(np.random.default_rng(0), "(is|is) there (a |a |)new {thing}", {"thing": ["road(|)"]})
    'is there a new road'
    """
    return " ".join(_draw(rng, pattern, lists).split())


def _draw(rng: Rng, pattern: str, lists: Lists) -> str:
    texts = []
    for kind, *values in _parse(pattern):
        if kind == "list":
            values = [*lists[values[0]]]
        texts.append(values[0] if kind == "text" else _draw(rng, choose(rng, values), lists))
    return "".join(texts)


@cache
def _parse(pattern: str) -> tuple[tuple[str, ...], ...]:
    """Nodes of a pattern: ("text", TEXT), ("list", NAME) or ("any", PATTERN, ...)."""
    nodes: list[tuple[str, ...]] = []
    start = index = 0
    while index < len(pattern):
        if pattern[index] not in "({":
            index += 1
            continue
        nodes.append(("text", pattern[start:index]))
        if pattern[index] == "{":
            end = pattern.index("}", index)
            nodes.append(("list", pattern[index + 1 : end]))
        else:
            end, alternatives = _alternatives(pattern, index + 1)
            nodes.append(("any", *alternatives))
        start = index = end + 1
    return (*nodes, ("text", pattern[start:]))


def _alternatives(pattern: str, start: int) -> tuple[int, list[str]]:
    """Index of the closing parenthesis, and the alternatives before it. Raises: ValueError without one."""
    depth, alternatives = 0, []
    for index in range(start, len(pattern)):
        char = pattern[index]
        if depth == 0 and char in "|)":
            alternatives.append(pattern[start:index])
            start = index + 1
            if char == ")":
                return index, alternatives
        depth += (char == "(") - (char == ")")
    raise ValueError(f"a parenthesis is open in {pattern!r}")


def as_typed(rng: Rng, question: str) -> str:
    """The question as somebody types it: as it is, or with courtesies, typing errors, a question mark."""
    text = _add_courtesy(rng, question)
    for _ in range(int(rng.choice(len(TYPING_ERRORS), p=TYPING_ERRORS))):
        text = _mistype(rng, text)
    return f"{text}?" if rng.random() < 0.5 else text


def _add_courtesy(rng: Rng, question: str) -> str:
    """The question with words before or after it that do not change its meaning, or without any."""
    draw = rng.random()
    pattern = "{opener} " if draw < 0.12 else "{request} " if draw < 0.2 else ""
    pattern = "{opener} {request} " if draw < 0.03 else pattern
    opening = sample(rng, pattern, COURTESIES)
    closing = sample(rng, "{closer}", COURTESIES) if rng.random() < 0.1 else ""
    return f"{opening} {question} {closing}".strip()


def _mistype(rng: Rng, text: str) -> str:
    """Text with a typing error: two letters swapped, one dropped, doubled, or replaced by its neighbor on the
    keyboard, in a word of at least four letters; or a space left out."""
    words = text.split()
    long = [index for index, word in enumerate(words) if len(word) >= 4]
    if not long:
        return text
    index = long[int(rng.integers(len(long)))]
    word = words[index]
    at = int(rng.integers(1, len(word) - 1))
    first, letter, last = word[:at], word[at], word[at + 1 :]
    if index + 1 < len(words) and rng.random() < 0.06:
        words[index : index + 2] = [word + words[index + 1]]
        return " ".join(words)
    mistyped = (
        first + last[0] + letter + last[1:],
        first + last,
        first + 2 * letter + last,
        first + _neighbor(rng, letter) + last,
    )
    words[index] = choose(rng, mistyped)
    return " ".join(words)


def _neighbor(rng: Rng, letter: str) -> str:
    """Letter beside this one on the keyboard; the same where there is none."""
    for row in KEYBOARD:
        if letter in row:
            at = row.index(letter)
            return choose(rng, row[max(0, at - 1) : at] + row[at + 1 : at + 2])
    return letter


def sample_word(rng: Rng) -> str:
    """A word of one to three syllables that most often means nothing."""
    syllables = int(rng.choice((1, 2, 3), p=(0.3, 0.5, 0.2)))
    word = ""
    for number in range(syllables):
        is_closed = number == syllables - 1 or rng.random() < 0.3
        word += choose(rng, ONSETS) + choose(rng, VOWELS) + (choose(rng, CODAS) if is_closed else "")
    return word + choose(rng, ENDINGS)
