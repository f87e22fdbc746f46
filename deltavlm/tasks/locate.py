"""Localization: cells of a 3x3 grid over the chip with changed roads and buildings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deltavlm.errors import AnswerParseError
from deltavlm.tasks import caption, count
from deltavlm.tasks.base import Form, Task
from deltavlm.tasks.text import says_no_change

__all__ = ["LABELS", "PROMPT", "TASK", "Cells", "format_answer", "parse", "position", "score"]

PROMPT = (
    "Please indicate the locations where changes have occurred in the buildings and roads, using a 3x3 grid "
    "(namely, 'top', 'center', and 'bottom' vertically and 'left', 'center', 'right' horizontally)."
)

_ROWS = ("top", "center", "bottom")
_COLS = ("left", "center", "right")
LABELS = tuple(f"{row}-{col}" for row in _ROWS for col in _COLS)  # row-major, top-left first

_SORTED = "|".join(  # labels in row-major order without repeats, by the first of them
    f"'{first}'" + "".join(f"(, '{label}')?" for label in LABELS[index + 1 :])
    for index, first in enumerate(LABELS)
)
_NONE, _SOME, _ANY = r"\[\]", rf"\[({_SORTED})\]", rf"\[({_SORTED})?\]"

_LIST = r"\b{noun}s?\W*?\[(?P<labels>[^\[\]]*)\]"


@dataclass(frozen=True, slots=True)
class Cells:
    """Labels of the cells with changes of each kind, in row-major order and without repeats."""

    roads: tuple[str, ...] = ()
    buildings: tuple[str, ...] = ()


def position(label: str) -> tuple[int, int]:
    """(row, col) of a label, from 0 at the top left.

    >>> position("top-left"), position("bottom-center")
    ((0, 0), (2, 1))
    """
    return divmod(LABELS.index(label), 3)


def format_answer(value: Cells) -> str:
    """Write both lists in the form of ChangeChat.

    >>> format_answer(Cells(buildings=("top-left", "center-center")))
    "roads [] buildings ['top-left', 'center-center']"
    """
    return f"roads {list(_ordered(value.roads))} buildings {list(_ordered(value.buildings))}"


def parse(text: str) -> Cells:
    """Parse both lists, with any or no quotes, spaces instead of hyphens, and repeated labels.

    >>> parse('Roads: [top left, "top-left"], buildings: []')
    Cells(roads=('top-left',), buildings=())

    Raises: AnswerParseError when a list is missing or has a label that is not in the grid.
    """
    if "[" not in text and says_no_change(text):
        return Cells()
    return Cells(roads=_labels(text, "road"), buildings=_labels(text, "building"))


def score(predicted: Cells, truth: Cells) -> dict[str, float]:
    """For each kind, true positives, false positives and false negatives, and `exact`: `road_tp`, ..."""
    metrics: dict[str, float] = {}
    for kind, labels, true_labels in (
        ("road", {*predicted.roads}, {*truth.roads}),
        ("building", {*predicted.buildings}, {*truth.buildings}),
    ):
        metrics[f"{kind}_tp"] = float(len(labels & true_labels))
        metrics[f"{kind}_fp"] = float(len(labels - true_labels))
        metrics[f"{kind}_fn"] = float(len(true_labels - labels))
        metrics[f"{kind}_exact"] = float(labels == true_labels)
    return metrics


def form(described: str, counted: str) -> Form:
    """Form of cells that agree with the caption and the counts: some cells of a kind that is counted, none of
    others, and any of a kind that the caption says is gone, since counts are of new ones."""
    counts, removed = count.parse(counted), caption.kinds_removed(described)
    roads, buildings = (
        _SOME if number else _ANY if kind in removed else _NONE
        for kind, number in (("road", counts.roads), ("building", counts.buildings))
    )
    if roads is buildings is _NONE:
        return Form.of_texts(format_answer(Cells()))
    return Form(f"roads {roads} buildings {buildings}")


def _labels(text: str, noun: str) -> tuple[str, ...]:
    match = re.search(_LIST.format(noun=noun), text.lower())
    if match is None:
        raise AnswerParseError(f"no list of {noun}s in {text!r}: expected {noun}s ['top-left', ...]")
    names = [re.sub(r"[\W_]+", "-", name).strip("-") for name in match["labels"].split(",")]
    labels = [_standard_spelling(name) for name in names if name]
    for label in labels:
        if label not in LABELS:
            raise AnswerParseError(f"unknown cell {label!r} in {text!r}: known are {', '.join(LABELS)}")
    return _ordered(labels)


def _standard_spelling(label: str) -> str:
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
    scale_bound=True,
    unchanged=format_answer(Cells()),
    agrees_with=(caption.TASK, count.TASK),
    form=form,
)
