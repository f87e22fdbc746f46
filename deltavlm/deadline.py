"""Deadline of a call that waits for somebody else, such as a server that sends a byte now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

__all__ = ["call_within"]

T = TypeVar("T")


def call_within(seconds: float, call: Callable[[], T], progress: Callable[[], int] | None = None) -> T:
    """Result of `call`, which runs in a thread of its own and is left behind after `seconds`.

    progress: a count such as bytes received; where it has grown by 1,000 a second, the time begins anew.

    Raises: TimeoutError; or what `call` raises.
    """
    outcome: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:  # raised again below
            outcome.put((None, error))

    threading.Thread(target=run, name="deadline", daemon=True).start()
    count = progress() if progress else 0
    while True:
        try:
            result, error = outcome.get(timeout=seconds)
            break
        except Empty:
            begin, count = count, progress() if progress else count
            if count - begin < 1000 * seconds:
                raise TimeoutError(f"no whole answer in {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # a call that raised nothing
