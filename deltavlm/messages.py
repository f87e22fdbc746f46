"""Words of messages: a number with its noun, and short forms of values that others wrote."""

from __future__ import annotations

import reprlib
from typing import Any

MAX_PREVIEW_CHARS = 60


def pluralize(number: int, noun: str) -> str:
    """`1 chip`, `2 chips`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Preview(reprlib.Repr):
    """`repr` that stops early, at any size and depth of the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = 4 * MAX_PREVIEW_CHARS

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 1024 else f"a number of {x.bit_length()} bits"


def preview(value: Any, max_chars: int = MAX_PREVIEW_CHARS) -> str:
    """`repr` of a value for a message, in at most `max_chars` characters; `nothing` for None.

    >>> preview({"a": [1, 2]}), preview("x" * 100, 9)
    ("{'a': [1, 2]}", "'xxxxx...")
    """
    text = "nothing" if value is None else _Preview().repr(value)
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
