"""Standard error that drops what cannot be written: a log that is full ends no run."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

__all__ = ["drop_what_stderr_refuses"]


class _LossyFile(io.FileIO):
    """File that drops what cannot be written: the disk is full, the pipe is closed or would block."""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written  # None: a non-blocking pipe is full


def drop_what_stderr_refuses() -> None:
    """Make stderr drop what cannot be written, by whatever library: a log that is full ends no run."""
    if sys.stderr is sys.__stderr__ and (os.name != "nt" or sys.stderr is None or not sys.stderr.isatty()):
        raw = _LossyFile(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
