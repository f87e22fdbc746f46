"""Locate: which cells of a 3x3 grid over the chip hold changed roads and buildings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deltavlm.errors import AnswerParseError
from deltavlm.tasks.base import Task
from deltavlm.tasks.text import says_no_change

__all__ = ["LABELS", "PROMPT", "TASK", "Cells", "format_answer", "parse", "position", "score"]

PROMPT = (
    "Please indicate the locations where changes have occurred in the buildings and roads, using a 3x3 grid "
    "(namely, 'top', 'center', and 'bottom' vertically and 'left', 'center', 'right' horizontally)."
)

_ROWS = ("top", "center", "bottom")
_COLS = ("left", "center", "right")
LABELS = tuple(f"{row}-{col}" for row in _ROWS for col in _COLS)  # row-major, top-left first

_LIST = r"\b{noun}s?\W*?\[(?P<labels>[^\[\]]*)\]"


@dataclass(frozen=True, slots=True)
class Cells:
    """Labels of the changed cells, each kind in row-major order without repeats."""

    roads: tuple[str, ...] = ()
    buildings: tuple[str, ...] = ()


def position(label: str) -> tuple[int, int]:
    """(row, col) of a label, counted from the top left.

    >>> position("top-left"), position("bottom-center")
    ((0, 0), (2, 1))
    """
    return divmod(LABELS.index(label), 3)


def format_answer(value: Cells) -> str:
    """The two lists in ChangeChat's words.

    >>> format_answer(Cells(buildings=("top-left", "center-center")))
    "roads [] buildings ['top-left', 'center-center']"
    """
    return f"roads {list(_ordered(value.roads))} buildings {list(_ordered(value.buildings))}"


def parse(text: str) -> Cells:
    """The two lists of an answer: any quotes or none, spaces for hyphens, repeats allowed.

    >>> parse('Roads: [top left, "top-left"], buildings: []')
    Cells(roads=('top-left',), buildings=())

    Raises: AnswerParseError when a list is missing or names a cell that is not in the grid.
    """
    if "[" not in text and says_no_change(text):
        return Cells()
    return Cells(roads=_labels(text, "road"), buildings=_labels(text, "building"))


def score(said: Cells, truth: Cells) -> dict[str, float]:
    """For each kind the cells hit, invented and missed (`road_tp`, `_fp`, `_fn`), and `road_exact`."""
    counts: dict[str, float] = {}
    pairs = (("road", said.roads, truth.roads), ("building", said.buildings, truth.buildings))
    for kind, mine, theirs in pairs:
        counts[f"{kind}_tp"] = float(len({*mine} & {*theirs}))
        counts[f"{kind}_fp"] = float(len({*mine} - {*theirs}))
        counts[f"{kind}_fn"] = float(len({*theirs} - {*mine}))
        counts[f"{kind}_exact"] = float({*mine} == {*theirs})
    return counts


def _labels(text: str, noun: str) -> tuple[str, ...]:
    found = re.search(_LIST.format(noun=noun), text.lower())
    if found is None:
        raise AnswerParseError(f"no list of {noun}s in {text!r}: expected {noun}s ['top-left', ...]")
    named = [re.sub(r"[\W_]+", "-", part).strip("-") for part in found["labels"].split(",")]
    labels = [_spelled(label) for label in named if label]
    for label in labels:
        if label not in LABELS:
            raise AnswerParseError(f"unknown cell {label!r} in {text!r}: known are {', '.join(LABELS)}")
    return _ordered(labels)


def _spelled(label: str) -> str:
    words = ["center" if word in ("centre", "middle") else word for word in label.split("-")]
    return "center-center" if words == ["center"] else "-".join(words)


def _ordered(labels: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*labels}, key=LABELS.index))


TASK = Task(
    name="location",
    prompt=PROMPT,
    parse=parse,
    format=format_answer,
    score=score,
    max_new_tokens=128,
    unchanged=format_answer(Cells()),
)
