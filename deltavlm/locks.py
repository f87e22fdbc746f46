"""One run at a time writes an output. A leaf."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from deltavlm.errors import OutputError

__all__ = ["locked"]


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Only one run at a time writes an output. Raises: OutputError when another does."""
    path = output.with_name(f".{output.name}.lock")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"{output}: another run is writing it; wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            path.unlink()
        lock.release()
        with suppress(OSError):
            if os.name == "nt":
                path.unlink()
