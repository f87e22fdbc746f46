"""Counting: the numbers of new roads and new buildings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltavlm.errors import AnswerParseError
from deltavlm.tasks import caption, classify
from deltavlm.tasks.base import Form, Task
from deltavlm.tasks.text import says_no_change

__all__ = ["NONE_NEW", "PROMPT", "TASK", "Counts", "form", "format_answer", "parse", "score"]

PROMPT = "Please determine how many roads and buildings have changed?"

NONE_NEW = "no new roads or buildings"  # of a pair that has changed otherwise
MAX_COUNT = 9999  # more do not fit in a chip; a longer number is a repetition of digits by the model
_NOUNS = {"road": "roads", "roads": "roads", "building": "buildings", "buildings": "buildings"}
_WORDS = (  # 0 to 19
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {
    **{word: number for number, word in enumerate(_WORDS)},
    **{word: 10 * number for number, word in enumerate(_TENS, start=2)},
    **dict.fromkeys(("no", "none", "nothing"), 0),
}
_TOKEN = re.compile(r"-?[0-9]+(?:[.,][0-9]+)?|[^\W\d_]+")
_JOINING = {"or", "nor", "and", "new", "the", "any"}


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of new roads and new buildings in one chip."""

    roads: int
    buildings: int


def format_answer(value: Counts) -> str:
    """Write the counts in the form of ChangeChat.

    >>> format_answer(Counts(2, 5)), format_answer(Counts(0, 1))
    ('2 new roads and 5 new buildings', 'no new roads and 1 new building')
    >>> format_answer(Counts(0, 0))
    'there are no changes in roads or buildings'
    """
    if value == Counts(0, 0):
        return "there are no changes in roads or buildings"
    return f"{_phrase(value.roads, 'road')} and {_phrase(value.buildings, 'building')}"


def parse(text: str) -> Counts:
    """Parse both counts, in digits or words; a kind that is not named is 0.

    >>> parse("There are three new roads and no new buildings, north of the river.")
    Counts(roads=3, buildings=0)
    >>> parse("no roads has changed, and no buildings has changed")
    Counts(roads=0, buildings=0)

    Raises: AnswerParseError when a kind is named without a number, or with two that disagree.
    """
    tokens = _TOKEN.findall(text.lower())
    nouns = [index for index, token in enumerate(tokens) if token in _NOUNS]
    if not nouns:
        if says_no_change(text):
            return Counts(0, 0)
        raise AnswerParseError(f"neither roads nor buildings in {text!r}")
    number_first = _number(tokens[: nouns[0]]) is not None  # "2 new roads", else "roads: 2"
    counts: dict[str, int] = {}
    previous: int | None = None
    for order, index in enumerate(nouns):
        start = nouns[order - 1] + 1 if order else 0
        stop = nouns[order + 1] if order + 1 < len(nouns) else len(tokens)
        phrase = tokens[start:index] if number_first else tokens[index + 1 : stop]
        number = _number(phrase)
        if number is None and previous == 0 and number_first and _JOINING.issuperset(phrase):
            number = 0  # "no new roads or buildings"
        if number is None:
            raise AnswerParseError(f"no number of {tokens[index]} in {text!r}")
        kind = _NOUNS[tokens[index]]
        if counts.setdefault(kind, number) != number:
            raise AnswerParseError(f"two different numbers of {kind} in {text!r}")
        previous = number
    return Counts(counts.get("roads", 0), counts.get("buildings", 0))


def score(predicted: Counts, truth: Counts) -> dict[str, float]:
    """Absolute error of each kind, and `exact`: 1 if both are right."""
    return {
        "roads_error": float(abs(predicted.roads - truth.roads)),
        "buildings_error": float(abs(predicted.buildings - truth.buildings)),
        "exact": float(predicted == truth),
    }


def form(draft: str, described: str, counted: int | None = None) -> Form:
    """Form of counts that agree with the caption: those of the draft, at least 1 of what the caption says is
    built, and as many as it says.

    counted: new buildings by the mask head, which the answer gives if it gives any; the caption agrees with
        that number, not the number with the caption.
    """
    counts = parse(draft)
    if counts == Counts(0, 0) and not caption.kinds_built(described):
        return Form.of_texts(draft)
    roads = _as_described("road", counts.roads, described)
    buildings = _as_described("building", counts.buildings, described, counted)
    if roads[0] == roads[1] and buildings[0] == buildings[1]:
        return Form.of_texts(f"{_phrase(roads[0], 'road')} and {_phrase(buildings[0], 'building')}")
    return Form(f"({_between(*roads, 'road')}) and ({_between(*buildings, 'building')})")


def _as_described(
    kind: caption.Kind, number: int, described: str, counted: int | None = None
) -> tuple[int, int]:
    """Lowest and highest number that agrees with the caption: that of the draft if it does, else those that
    the caption states; `counted` replaces what the caption states."""
    if kind not in caption.kinds_built(described):
        return number, number
    stated = None if counted is not None else caption.number_built(described, kind)
    low, high = stated or (1, MAX_COUNT)
    if low <= number <= high:
        return number, number
    return (low, high) if counted is None else _clipped(counted)


def _clipped(counted: int) -> tuple[int, int]:
    number = min(max(1, counted), MAX_COUNT)
    return number, number


def _form_of_draft(change: str, counted: int | None = None) -> Form:
    """Form of counts that agree with the answer to the yes/no question: 0 of an unchanged pair.

    counted: new buildings by the mask head, which the answer gives if it gives any.
    """
    none = format_answer(Counts(0, 0))
    if not classify.parse(change):
        return Form.of_texts(none)
    (roads, no_roads), (buildings, no_buildings) = (
        (_some(noun, number), _phrase(0, noun)) for noun, number in (("road", None), ("building", counted))
    )
    return Form(f"({roads}) and ({buildings}|{no_buildings})|{no_roads} and ({buildings})|{NONE_NEW}|{none}")


def _some(noun: str, number: int | None = None) -> str:
    """Regular expression of `_phrase` with a number from 1: this one, if it is given."""
    return _between(1, MAX_COUNT, noun) if number is None else _phrase(_clipped(number)[0], noun)


def _between(low: int, high: int, noun: str) -> str:
    """Regular expression of `_phrase` with a number from `low` to `high`; beyond 9 it has any number of more
    than one digit."""
    if low == high:
        return _phrase(low, noun)
    numbers = [str(number) for number in range(max(2, low), min(high, 9) + 1)]
    several = "|".join(numbers + [r"[1-9]\d{1,3}"] * (high > 9))
    return "|".join([f"1 new {noun}"] * (low <= 1) + [f"({several}) new {noun}s"])


def _phrase(number: int, noun: str) -> str:
    return f"{number or 'no'} new {noun}{'' if number == 1 else 's'}"


def _number(tokens: Sequence[str]) -> int | None:
    """The last number among the tokens; "a" and "an" are 1 if there is no other."""
    value: int | None = None
    tens = False  # the previous token was twenty, thirty, ...
    for token in tokens:
        if token in _NUMBERS:
            digit = token in _WORDS[1:10]
            value = value + _NUMBERS[token] if tens and digit and value is not None else _NUMBERS[token]
            tens = token in _TENS
        elif token[-1].isdigit():
            if not token.isdecimal() or len(token) > 4 or int(token) > MAX_COUNT:
                raise AnswerParseError(f"{token} is not a plausible count")
            value, tens = int(token), False
        else:
            tens = False
    if value is None and any(token in ("a", "an") for token in tokens):
        return 1
    return value


_DRAFT = Task(
    name="count",
    prompt=PROMPT,
    parse=parse,
    format=format_answer,
    score=score,
    max_new_tokens=48,  # also of an answer in single letters
    agrees_with=(classify.TASK,),
    form=_form_of_draft,
    counted=True,
)

TASK = replace(
    _DRAFT,
    scale_bound=True,
    unchanged=format_answer(Counts(0, 0)),
    agrees_with=(_DRAFT, caption.TASK),
    form=form,
)
