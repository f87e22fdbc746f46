"""Space of disks: free bytes, size of a folder, and sizes in words."""

from __future__ import annotations

import shutil
from pathlib import Path

from deltavlm.errors import OutputError

__all__ = ["folder_bytes", "format_bytes", "free_bytes", "nearest_folder"]


def nearest_folder(path: Path) -> Path:
    """The path itself if it exists, else its nearest parent that does."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where `folder` is, or would be created. Raises: OutputError."""
    existing = nearest_folder(folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError as error:
        raise OutputError(
            f"cannot read the free space of {existing}: {error.strerror}; choose another folder"
        ) from error


def folder_bytes(folder: Path) -> int:
    """Size of all files at the top of `folder`."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def format_bytes(size: int) -> str:
    """Size for people, in decimal units as on the Hugging Face Hub.

    >>> format_bytes(13_476_800_000), format_bytes(231_508), format_bytes(7)
    ('13.5 GB', '232 kB', '7 B')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.{1 if size < 100 * unit else 0}f} {name}"
    return f"{size} B"
