"""Ctrl-C, SIGTERM and SIGHUP end a run through its `finally` blocks: no half-written file stays behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stop", "Stopped", "interruptible", "stoppable"]

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: the terminal was closed; Windows has none


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by the first signal; libraries let a KeyboardInterrupt through."""


class Stop:
    """Which signal came, kept even where a library turned the exception into one of its own."""

    signum: int | None = None

    @property
    def name(self) -> str:
        return signal.Signals(self.signum).name if self.signum else ""

    def check(self) -> None:
        """Raise `Stopped` again, for a library (numpy's `choice`) may have swallowed it."""
        if self.signum is not None:
            raise Stopped(self.name)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """While open, the first signal raises `Stopped` and a second one ends the process at once.

    A signal that the parent told us to ignore (`nohup`, `&` in a script) stays ignored.
    """
    stop = Stop()
    before: dict[int, object] = {}

    def handler(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        for known in before:
            signal.signal(known, signal.SIG_DFL)
        raise Stopped(signal.Signals(signum).name)

    try:
        for name in NAMES:
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) not in (signal.SIG_IGN, None):
                before[signum] = signal.signal(signum, handler)
    except ValueError:  # not the main thread: a library user's business
        pass
    try:
        yield stop
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)  # type: ignore[arg-type]


@contextmanager
def interruptible() -> Iterator[None]:
    """While open, Ctrl-C raises KeyboardInterrupt each time, for a program that goes on after it; SIGTERM and
    SIGHUP end it as before."""
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
