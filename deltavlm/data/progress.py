"""Type of the progress callbacks of long jobs on data sets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

__all__ = ["CountProgress", "no_progress"]

CountProgress = Callable[[int], AbstractContextManager[Callable[[int, str], None]]]
"""Total -> context manager of `update(completed, note)`."""


def no_progress(total: int) -> AbstractContextManager[Callable[[int, str], None]]:
    """Progress that is not shown."""
    return nullcontext(lambda completed, note: None)
