"""Caption: one sentence that describes the changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import regex

from deltavlm.errors import AnswerParseError
from deltavlm.tasks import classify
from deltavlm.tasks.base import Form, Task
from deltavlm.tasks.text import NO_CHANGE, clean, says_no_change, simplify

__all__ = [
    *("PROMPT", "TASK", "Kind", "denies_change", "form", "format_answer", "kinds_built", "kinds_removed"),
    *("number_built", "parse", "quantify", "score"),
]

PROMPT = "Please briefly describe the changes in these two images."

Kind = Literal["building", "road"]

_NOUNS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            *("house", "building", "villa", "apartment", "mansion", "bungalow", "cottage", "shed"),
            *("warehouse", "factory", "factories", "constructions"),
        ),
        "building",
    ),
    **dict.fromkeys(("road", "street", "highway", "motorway", "avenue", "lane", "crossroad"), "road"),
}
_ADJECTIVES = 3  # at most, between a number and its noun
_NUMBER_WORDS: dict[str, tuple[int, int]] = {  # the lowest and the highest number that a word may stand for
    **dict.fromkeys(("a", "an", "another", "single"), (1, 1)),
    **{
        word: (number, number)
        for number, word in enumerate(
            ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
        )
    },
    **dict.fromkeys(("couple", "few", "several", "some"), (2, 9)),
    **dict.fromkeys(("lot", "lots", "many", "numerous"), (5, 10**6)),
}
_APPEARS = re.compile(
    r"built|constructed|erected|completed|added|located|shows?|appear(s|ed)?|emerge(s|d)?|replaces?"
)
_ENDS = re.compile(r"removed|demolished|destroyed|disappear(s|ed)?|vanish(es|ed)?|replaced|turned")
_NOT_SUBJECT = {  # the noun behind one of these says where, or what stood there already
    *("in", "on", "at", "along", "near", "beside", "by", "between", "among", "across", "around", "next"),
    *("behind", "through", "within", "over", "under", "into", "to", "from", "old", "existing", "original"),
    *("no", "not", "without"),
}
_SCENE = r"(everything|all|it|((both|the|two) )*(image|scene|picture|area|place)s?)"
_DENIALS = tuple(
    map(
        re.compile,
        (
            r"(there (is|are|was|were) )?(almost )?(no|not any) (\w+ ){0,2}(difference|change)s?( .*)?",
            r"(almost )?nothing( (has|have|had|is|was))?( been)? (changed|different|new)( .*)?",
            rf"{_SCENE}( \w+){{1,2}} (identical|unchanged|the same)( .*)?",
            rf"{_SCENE} (has|have) not changed( .*)?",
        ),
    )
)

_BEGINS_DENIAL = re.compile(
    r"(there|almost|no|not|nothing)( .*)?|(both |the |these )*(two )?(image|picture|scene)s?( .*)?"
)


def format_answer(value: str) -> str:
    """Clean the sentence to one line, as in the training data."""
    return clean(value)


def parse(text: str) -> str:
    """Clean the sentence to one line. Raises: AnswerParseError when it has no words."""
    sentence = clean(text)
    if not simplify(sentence):
        raise AnswerParseError(f"no caption in {text!r}: expected one sentence")
    return sentence


@lru_cache(maxsize=4096)  # most chips share their caption
def denies_change(sentence: str) -> bool:
    """True if the caption states that nothing changed, and names no new building or road.

    >>> denies_change("There is no difference."), denies_change("the two images look the same")
    (True, True)
    >>> denies_change("no houses are built, but a road appears")
    False
    """
    words = simplify(sentence)
    is_denial = says_no_change(words) or any(pattern.fullmatch(words) for pattern in _DENIALS)
    return is_denial and "but" not in words.split() and not kinds_built(words)


def form(change: str, draft: str, counted: int | None = None) -> Form:
    """Form of captions that agree with the answer to the yes/no question: the draft if it does; else one of
    NO_CHANGE under "no", and under "yes" a sentence that does not begin like a denial of change.

    counted: new buildings by the mask head. A draft that states another number goes on from its place with
    the words for this one.
    """
    is_changed = classify.parse(change)
    if is_changed != denies_change(draft):
        recounted = None if counted is None else _form_of_number(draft, max(1, counted))
        return recounted or Form.of_texts(draft)
    return Form(r".*\w.*", rejects=_begins_denial) if is_changed else Form.of_texts(*NO_CHANGE)


def _form_of_number(draft: str, number: int) -> Form | None:
    """Form of sentences that begin like the draft, up to its number of new buildings, and state this number
    there; None if the draft states no other number, or several."""
    stated, words = number_built(draft, "building"), draft.split()
    nouns = [index for kind, index in _things(draft)[0] if kind == "building"]
    if stated is None or stated[0] <= number <= stated[1]:
        return None
    if len(nouns) != 1 or words != simplify(draft).split():
        return None
    (noun,) = nouns
    start, _ = _numeral(words, noun) or (noun, None)
    described = [word for word in words[start + 1 : noun] if word != "of"]
    singular = words[noun] if words[noun] in _NOUNS else words[noun].removesuffix("s")
    if singular not in _NOUNS or singular.endswith("s"):
        return None
    if words[max(0, start - 1) : start] == ["a"]:  # "a few", "a single"
        start -= 1
    phrase = quantify(number, " ".join([*described, singular]))
    return Form(regex.escape(" ".join([*words[:start], phrase])) + "( .*)?")


def quantify(number: int, noun: str) -> str:
    """Phrase for a number, as people write it: exact up to two, "several" up to five, then "many".

    >>> [quantify(number, "house") for number in (1, 2, 3, 6)]
    ['a house', 'two houses', 'several houses', 'many houses']
    """
    if number == 1:
        return f"a {noun}"
    return f"{'two' if number == 2 else 'several' if number <= 5 else 'many'} {noun}s"


def _begins_denial(text: str) -> bool:
    """True for a denial of change, and for the words with which one begins.

    The whole beginning is excluded, since a model that chose it for the denial would go on with what it was
    never taught, as in "there is a house built".
    """
    return _BEGINS_DENIAL.fullmatch(simplify(text)) is not None or denies_change(text)


def number_built(sentence: str, kind: Kind) -> tuple[int, int] | None:
    """Lowest and highest number of new buildings or roads that the caption may mean; None if it states none.

    >>> number_built("a house and two roads are built", "building"), number_built("many roads appear", "road")
    ((1, 1), (5, 1000000))
    >>> number_built("a row of houses is built", "building"), number_built("a road is removed", "road")
    (None, None)
    """
    words = simplify(sentence).split()
    numerals = [_numeral(words, index) for each, index in _things(sentence)[0] if each == kind]
    numbers = [numeral[1] for numeral in numerals if numeral]
    if not numbers or len(numbers) < len(numerals):
        return None
    return sum(low for low, _ in numbers), sum(high for _, high in numbers)


def _numeral(words: Sequence[str], noun: int) -> tuple[int, tuple[int, int]] | None:
    """Index of the word before a noun that states its number, and the lowest and highest that it may mean."""
    for index in range(noun - 1, max(-1, noun - 2 - _ADJECTIVES), -1):
        word = words[index]
        number = (int(word), int(word)) if word.isdecimal() else _NUMBER_WORDS.get(word)
        if number:
            is_plural = words[noun].endswith("s")
            return (index, number) if is_plural == (number != (1, 1)) else None
    return None


def kinds_built(sentence: str) -> frozenset[Kind]:
    """Kinds that the caption states to be new: subjects of "built", "appears" and the like, what something is
    replaced by, and nouns with "new" before them.

    >>> sorted(kinds_built("several houses and a road are built on the farmland"))
    ['building', 'road']
    >>> sorted(kinds_built("villas appear on both sides of the road and an old house is demolished"))
    ['building']
    >>> sorted(kinds_built("the trees are replaced by houses and a road is removed"))
    ['building']
    """
    return frozenset(kind for kind, _ in _things(sentence)[0])


def kinds_removed(sentence: str) -> frozenset[Kind]:
    """Kinds that the caption states to be gone: subjects of "removed", "disappears" and the like.

    >>> sorted(kinds_removed("the trees are replaced by houses and a road is removed"))
    ['road']
    """
    return frozenset(kind for kind, _ in _things(sentence)[1])


@lru_cache(maxsize=4096)
def _things(sentence: str) -> tuple[frozenset[tuple[Kind, int]], frozenset[tuple[Kind, int]]]:
    """Buildings and roads that are new, and those that are gone: kind, and index of its noun in the words."""
    built: set[tuple[Kind, int]] = set()
    removed: set[tuple[Kind, int]] = set()
    conjuncts: list[set[tuple[Kind, int]]] = [set()]  # nouns since the last verb, split at "and"
    is_subject, replaces = True, False
    words = simplify(sentence).split()
    for index, word in enumerate(words):
        kind = _NOUNS.get(word) or _NOUNS.get(word.removesuffix("s"))
        if (
            kind
            and "new" in words[max(0, index - 2) : index]
            and "no" not in words[max(0, index - 3) : index]
        ):
            built.add((kind, index))
        elif kind and is_subject:
            conjuncts[-1].add((kind, index))
        if _APPEARS.fullmatch(word) or _ENDS.fullmatch(word):
            if replaces:  # what is named before the last "and" is the new; the rest is the verb's subject
                built.update(*conjuncts[:-1])
                conjuncts = conjuncts[-1:]
            is_active = word == "replaced" and words[index - 1] in ("has", "have")
            (removed if _ENDS.fullmatch(word) and not is_active else built).update(*conjuncts)
            conjuncts, is_subject = [set()], True
            replaces = word == "replaced" and words[index + 1 : index + 2] in (["by"], ["with"])
        elif word == "and":
            conjuncts.append(set())
            is_subject = True
        elif word == "with" or (word == "by" and words[index - 1] == "replaced"):
            is_subject = True
        elif word in _NOT_SUBJECT:
            is_subject = False
    if replaces:
        built.update(*conjuncts)
    return frozenset(built), frozenset(removed)


def score(sentence: str, references: Sequence[str]) -> dict[str, float]:
    """`exact`: 1 if the sentence equals a reference, ignoring letter case and punctuation.

    BLEU, ROUGE, METEOR and CIDEr are metrics of all answers together: see `deltavlm.metrics.text`.
    """
    return {"exact": float(simplify(sentence) in {simplify(reference) for reference in references})}


_DRAFT = Task(name="caption", prompt=PROMPT, parse=parse, format=format_answer, score=score)

TASK = replace(
    _DRAFT,
    free_text=True,
    unchanged=NO_CHANGE[0],
    agrees_with=(classify.TASK, _DRAFT),
    form=form,
    counted=True,
)
