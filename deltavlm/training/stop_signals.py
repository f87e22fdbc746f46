"""Stop requests: Ctrl-C, SIGTERM and SIGHUP end a run between two steps, after a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@dataclass
class StopRequest:
    """Flag that asks a run to stop, and the signal that set it (None: the time limit)."""

    requested: bool = False
    signum: int | None = None

    @property
    def reason(self) -> str:
        return signal.Signals(self.signum).name if self.signum else "its time limit"


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn the first stop signal into a `StopRequest`; a second one ends the process at once.

    A signal that the parent process ignores (`nohup`) stays ignored.
    """
    stop, previous = StopRequest(), dict[int, object]()

    def handle(signum: int, frame: object) -> None:
        stop.requested, stop.signum = True, signum
        for caught in previous:
            signal.signal(caught, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) not in (signal.SIG_IGN, None):
                previous[signum] = signal.signal(signum, handle)
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
