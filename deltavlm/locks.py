"""One run at a time writes an output, and takes away what a killed one has left of it. A leaf."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from deltavlm.errors import OutputError

__all__ = ["locked", "sync_folder", "unfinished_name"]


def unfinished_name(output: Path) -> str:
    """A hidden name, of its own, for a file that will become `output` when it is whole."""
    return f"{_mark(output)}{secrets.token_hex(4)}{output.suffix}"


def _mark(output: Path) -> str:
    return f".deltavlm-{zlib.crc32(output.name.encode('utf-8', 'surrogateescape')):08x}-"


def _sweep(output: Path) -> None:
    for left in (output.resolve() if output.is_symlink() else output).parent.glob(f"{_mark(output)}*"):
        with suppress(OSError):
            left.unlink()


def sync_folder(folder: Path) -> None:
    """Make new names in a folder outlast a power cut, where the system allows it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Only one run at a time writes an output; what one that was killed left half-written beside it, goes.

    Raises: OutputError when another run does.
    """
    path = output.with_name(f".{output.name}.lock")
    lock = FileLock(path, timeout=0)
    was_killed = path.exists()  # whoever ends in any other way takes the lock's file with him
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"{output}: another run is writing it; wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        if was_killed:
            _sweep(output)
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            path.unlink()
        lock.release()
        with suppress(OSError):
            if os.name == "nt":
                path.unlink()
