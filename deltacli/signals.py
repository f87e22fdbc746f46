"""Signal handling: Ctrl-C, SIGTERM and SIGHUP unwind through `finally`, so no partial file remains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["SignalReceived", "SignalState", "catch_signals", "interactive_sigint"]

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: the terminal was closed; Windows has none


class SignalReceived(KeyboardInterrupt):
    """Raised in the main thread by the first signal; libraries let a KeyboardInterrupt through."""


class SignalState:
    """Signal that was received, kept even where a library turned the exception into one of its own."""

    signum: int | None = None
    hint: str = ""  # end of the message about the signal: how to continue

    @property
    def name(self) -> str:
        """Name such as `SIGTERM`; empty before a signal."""
        return signal.Signals(self.signum).name if self.signum else ""

    def check(self) -> None:
        """Raise `SignalReceived` again, for a library (numpy's `choice`) may have swallowed it."""
        if self.signum is not None:
            raise SignalReceived(self.name)


@contextmanager
def catch_signals() -> Iterator[SignalState]:
    """Raise `SignalReceived` at the first signal; a second one ends the process at once.

    A signal that the parent process ignores (`nohup`, `&` in a script) stays ignored.
    """
    state = SignalState()
    previous: dict[int, object] = {}

    def handler(signum: int, frame: FrameType | None) -> None:
        state.signum = signum
        for number in previous:
            signal.signal(number, signal.SIG_DFL)
        raise SignalReceived(signal.Signals(signum).name)

    try:
        for name in NAMES:
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) not in (signal.SIG_IGN, None):
                previous[signum] = signal.signal(signum, handler)
    except ValueError:  # not the main thread: signals belong to the program that imports us
        pass
    try:
        yield state
    finally:
        for signum, old_handler in previous.items():
            signal.signal(signum, old_handler)  # type: ignore[arg-type]


@contextmanager
def interactive_sigint() -> Iterator[None]:
    """Make every Ctrl-C raise KeyboardInterrupt, for a prompt that goes on after it; SIGTERM and SIGHUP end
    the program as before."""
    previous = signal.getsignal(signal.SIGINT)
    if previous in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
