"""Ctrl-C, SIGTERM and SIGHUP as a wish, heeded between two steps, where a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@dataclass
class StopRequest:
    """Whether a run is to end, and which signal said so."""

    wanted: bool = False
    signum: int | None = None

    @property
    def by(self) -> str:
        return signal.Signals(self.signum).name if self.signum else "its time limit"


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """While open, the first signal sets the flag, and a second one ends the process at once.

    A signal that the parent told us to ignore (`nohup`) stays ignored.
    """
    stop, before = StopRequest(), dict[int, object]()

    def heed(signum: int, frame: object) -> None:
        stop.wanted, stop.signum = True, signum
        for known in before:
            signal.signal(known, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) not in (signal.SIG_IGN, None):
                before[signum] = signal.signal(signum, heed)
    try:
        yield stop
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)  # type: ignore[arg-type]
