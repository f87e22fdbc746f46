"""What could not be used of a set, told in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltacli.console import counted, voice

if TYPE_CHECKING:
    from deltavlm.data.examples import Problem

__all__ = ["by_kind", "tell_problems"]


def by_kind(problems: Sequence[Problem]) -> dict[str, int]:
    """How many there are of each kind, in the order in which they came."""
    kinds: dict[str, int] = {}
    for problem in problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    return kinds


def tell_problems(problems: Sequence[Problem], label: str, most: int = 3) -> None:
    """The first few of each kind, and how many there are."""
    for kind, number in by_kind(problems).items():
        told = [problem.what for problem in problems if problem.kind == kind]
        where = [problem.where for problem in problems if problem.kind == kind]
        shown = [
            what if place in what else f"{place}: {what}"
            for place, what in zip(where[:most], told[:most], strict=True)
        ]
        more = f"; and {number - most:,} more" if number > most else ""
        voice.warn(f"{label}: {counted(number, kind)}: {'; '.join(shown)}{more}")
