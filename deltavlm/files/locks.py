"""Lock on an output, which also removes what killed processes left of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltavlm.errors import OutputError
from deltavlm.files.atomic import scratch_prefix
from deltavlm.files.opening import resolve_link

__all__ = ["lock", "lock_path", "remove_scratch_files"]


def lock_path(output: Path) -> Path:
    """File of the lock on an output: `out.gpkg` -> `.out.gpkg.lock`."""
    return output.with_name(f".{output.name}.lock")


@contextmanager
def lock(output: Path) -> Iterator[None]:
    """Exclusive lock on `output`, held by at most one process; removes scratch files of a killed one.

    Raises: OutputError when another process holds it, or the folder is not writable.
    """
    from filelock import FileLock, Timeout  # not needed to show the help

    path = lock_path(output)
    file_lock = FileLock(path, timeout=0)
    was_killed = path.exists()  # every other end of a process removes the file
    try:
        file_lock.acquire()
    except Timeout:
        raise OutputError(
            f"{output}: another run is writing it; wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        if was_killed:
            remove_scratch_files(output)
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            path.unlink()
        file_lock.release()
        with suppress(OSError):
            if os.name == "nt":
                path.unlink()


def remove_scratch_files(output: Path) -> None:
    """Remove what killed processes left of `atomic_file(output)` and `atomic_folder(output)`; no process may
    be writing it."""
    for scratch in resolve_link(output).parent.glob(f"{scratch_prefix(output)}*"):
        if scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch, ignore_errors=True)
            continue
        with suppress(OSError):
            scratch.unlink()
