"""Caption: one sentence that describes the changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from deltavlm.errors import AnswerParseError
from deltavlm.tasks import classify
from deltavlm.tasks.base import Form, Task
from deltavlm.tasks.text import NO_CHANGE, clean, says_no_change, simplify

__all__ = [
    *("PROMPT", "TASK", "Kind", "denies_change", "form", "format_answer", "kinds_built", "kinds_removed"),
    *("parse", "score"),
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


def form(change: str, draft: str) -> Form:
    """Form of captions that agree with the answer to the yes/no question: the draft if it does; else one of
    NO_CHANGE under "no", and under "yes" a sentence that does not begin like a denial of change."""
    is_changed = classify.parse(change)
    if is_changed != denies_change(draft):
        return Form.of_texts(draft)
    return Form(r".*\w.*", rejects=_begins_denial) if is_changed else Form.of_texts(*NO_CHANGE)


def _begins_denial(text: str) -> bool:
    """True for a denial of change, and for the words with which one begins.

    The whole beginning is excluded, since a model that chose it for the denial would go on with what it was
    never taught, as in "there is a house built".
    """
    return _BEGINS_DENIAL.fullmatch(simplify(text)) is not None or denies_change(text)


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
    return _kinds(sentence)[0]


def kinds_removed(sentence: str) -> frozenset[Kind]:
    """Kinds that the caption states to be gone: subjects of "removed", "disappears" and the like.

    >>> sorted(kinds_removed("the trees are replaced by houses and a road is removed"))
    ['road']
    """
    return _kinds(sentence)[1]


@lru_cache(maxsize=4096)
def _kinds(sentence: str) -> tuple[frozenset[Kind], frozenset[Kind]]:
    """Kinds that are new, and kinds that are gone."""
    built: set[Kind] = set()
    removed: set[Kind] = set()
    conjuncts: list[set[Kind]] = [set()]  # nouns since the last verb, split at "and"
    is_subject, replaces = True, False
    words = simplify(sentence).split()
    for index, word in enumerate(words):
        kind = _NOUNS.get(word) or _NOUNS.get(word.removesuffix("s"))
        if (
            kind
            and "new" in words[max(0, index - 2) : index]
            and "no" not in words[max(0, index - 3) : index]
        ):
            built.add(kind)
        elif kind and is_subject:
            conjuncts[-1].add(kind)
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
)
