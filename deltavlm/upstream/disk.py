"""Bytes, for people and on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from deltavlm.errors import OutputError


def size_text(size: int) -> str:
    """Bytes for people, decimal as on the Hub.

    >>> size_text(13_476_800_000), size_text(231_508), size_text(7)
    ('13.5 GB', '232 kB', '7 B')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.{1 if size < 100 * unit else 0}f} {name}"
    return f"{size} B"


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where `folder` is, or would be. Raises: OutputError."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise OutputError(
            f"cannot look at the disk of {place}: {error.strerror}; give another cache"
        ) from error
