"""Words of messages: a number with its noun."""

from __future__ import annotations


def pluralize(number: int, noun: str) -> str:
    """`1 chip`, `2 chips`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
