"""Answer parsers of the published evaluation, with their quirks, for metrics comparable to its tables.

An answer on which the original notebooks stop with an error cannot be parsed here. Written from the behavior
of test_cap, test-cls, test-count, test-loc and test_open_questions in scripts/ of hanlinwu/DeltaVLM at commit
fa34e9b.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from deltavlm.data.examples import read_json
from deltavlm.errors import AnswerParseError, InputError
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import LABELS, Cells
from deltavlm.tasks.text import NO_CHANGE

__all__ = ["answer_ids", "changed", "parse_cells", "parse_count", "read_word_map", "reference_ids"]

_UNKNOWN = "<unk>"
_MAX_COUNT = 10**9  # larger errors would make a mean meaningless


def read_word_map(path: Path) -> dict[str, int]:
    """Read a word map, {word: id}. Raises: InputError when the file is none, or lacks an id for `<unk>`."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(type(number) is int for number in content.values()):
        raise InputError(f"{path} is not a word map: expected one JSON object of words and integers")
    if _UNKNOWN not in content:
        raise InputError(f"{path} is not a word map: it has no {_UNKNOWN}")
    return content


def reference_ids(text: str, words: Mapping[str, int]) -> str:
    """Ids of a reference: each " ." is removed, letter case is kept, unknown words are `<unk>`.

    >>> reference_ids("a house appears .", {"a": 20, "house": 7, "<unk>": 465})
    '20 7 465'
    """
    return _ids(text.replace(" .", "").strip(), words)


def answer_ids(text: str, words: Mapping[str, int]) -> str:
    """Ids of an answer: each full stop is removed, letter case is kept, a space at either end is `<unk>`.

    >>> answer_ids("A house.", {"a": 20, "house": 7, "<unk>": 465})
    '465 7'
    """
    return _ids(text.replace(".", ""), words)


def changed(caption: str) -> bool:
    """False only for a caption that equals one of the five no-change sentences exactly.

    >>> changed("no change has occurred"), changed("No change has occurred."), changed("no")
    (False, True, True)
    """
    return caption not in NO_CHANGE


def parse_count(text: str) -> Counts:
    """Numbers before the first "new" and between the first and the second; 0 where "no" occurs there.

    >>> parse_count("3 new roads and 2 new buildings"), parse_count("no new roads or buildings")
    (Counts(roads=3, buildings=2), Counts(roads=0, buildings=0))
    >>> parse_count("3 new roads in the north and 2 new buildings")  # "north" contains "no"
    Counts(roads=3, buildings=0)

    Raises: AnswerParseError where the original code stops with an error.
    """
    if "there are no changes in roads or buildings" in text or "no new roads or buildings" in text:
        return Counts(0, 0)
    phrases = text.split("new")
    if len(phrases) < 2:
        raise AnswerParseError(f'no "new" in {text!r}')
    return Counts(_number(phrases[0]), _number(phrases[1]))


def parse_cells(text: str) -> Cells:
    """Both lists, as Python literals after the lower-case words "roads" and "buildings".

    >>> parse_cells("roads ['top-left', 'middle'] buildings []")
    Cells(roads=('top-left',), buildings=())

    Raises: AnswerParseError where the original code stops with an error.
    """
    if "roads [] buildings []" in text:
        return Cells()
    return Cells(_labels(text, "roads"), _labels(text, "buildings"))


def _ids(text: str, words: Mapping[str, int]) -> str:
    return " ".join(str(words.get(word, words[_UNKNOWN])) for word in text.split(" "))


def _number(text: str) -> int:
    if "no" in text:
        return 0
    digits = re.search(r"\d+", text)
    if digits is None or len(digits[0]) > 9 or int(digits[0]) > _MAX_COUNT:
        raise AnswerParseError(f"no number in {text!r}")
    return int(digits[0])


def _labels(text: str, noun: str) -> tuple[str, ...]:
    match = re.search(rf"{noun}\s*(\[[^\]]*\])", text)
    if match is None:
        raise AnswerParseError(f"no list of {noun} in {text!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarnings of Python about the literal
            labels = ast.literal_eval(match[1])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise AnswerParseError(f"the list of {noun} in {text!r} is no Python literal") from error
    return tuple(label for label in LABELS if label in labels)
