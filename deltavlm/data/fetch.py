"""Download of ChangeChat-105k from the Hugging Face Hub; its images are LEVIR-CC's and not included.

    planned = plan(cache_dir=None, offline=False)               # asks the Hub for sizes
    fetch(planned, Path("changechat-105k"), notify=print)       # downloads, checks, copies

Downloads are kept in huggingface_hub's cache and copied from there, so that a data set is a folder of plain
files.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deltavlm.data.changechat import RELEASED_RECORDS
from deltavlm.errors import InputError, OutputError, WriteError
from deltavlm.files import atomic_file, format_bytes, nearest_folder
from deltavlm.hub import (
    File,
    Hub,
    PlannedFiles,
    Repository,
    fetch_files,
    has_content,
    plan_files,
    select_all,
)

__all__ = ["IMAGES", "LICENCE", "REPO", "REVISION", "Plan", "fetch", "plan"]

REPO = "hlwu/changechat-105k"
LICENCE = "CC-BY-4.0, of the texts"
IMAGES = "https://github.com/Chen-Yang-Liu/LEVIR-CC-Dataset (on the Hub: lcybuaa/LEVIR-CC)"
REVISION = "2e467fccf34d24dfebff544858145ecb4c809acd"  # its head as others have recorded it in 2026


@dataclass(frozen=True, slots=True)
class Plan:
    """Files of ChangeChat-105k to download, with the Hub and cache to use."""

    hub: Hub
    planned: PlannedFiles

    @property
    def files(self) -> tuple[File, ...]:
        return self.planned.files

    @property
    def commit(self) -> str:
        return self.planned.commit

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.planned.size

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return self.planned.missing


def plan(
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    revision: str = REVISION,
    endpoint: str | None = None,
) -> Plan:
    """Sizes and commit of the data set, by asking the Hub, or offline from the cache.

    Raises: InputError if the repository, or offline a file, cannot be had.
    """
    hub = Hub.configure(cache_dir=cache_dir, offline=offline, endpoint=endpoint)
    names = tuple(RELEASED_RECORDS)
    return Plan(hub, plan_files(hub, Repository(REPO, revision, "dataset"), names, select_all(names)))


def fetch(
    plan: Plan,
    output: Path,
    *,
    overwrite: bool = False,
    notify: Callable[[str], None] = lambda text: None,
    progress: bool = False,
) -> tuple[Path, ...]:
    """Download the missing files, check all, and copy them to the folder `output`; return their paths.

    An equal file in `output` is kept. `notify` is called with a line for each copied file; `progress` shows
    huggingface_hub's bars.

    Raises: InputError for too little disk space, no network, a damaged file; OutputError if a different file
        of that name exists, or a folder is not writable; WriteError if the disk is full nevertheless.
    """
    to_copy = [file for file in plan.files if not _exists(output / file.name, file)]
    for file in to_copy:
        if (output / file.name).exists() and not overwrite:
            raise OutputError(
                f"{output / file.name} differs from the file of {REPO}; give another `output`, or "
                "`overwrite=True`"
            )
    _check_free_space(plan, output, sum(file.size for file in to_copy))
    folder = fetch_files(plan.hub, plan.planned, notify=notify, progress=progress)
    for file in to_copy:
        path = output / file.name
        try:
            output.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as scratch:
                shutil.copyfile(folder / file.name, scratch)
        except OSError as error:
            kind = WriteError if error.errno in (errno.ENOSPC, errno.EDQUOT) else OutputError
            raise kind(f"cannot write {path}: {error.strerror}; give another `output`") from error
        notify(f"{path}: {file.size / 1e6:.1f} MB")
    return tuple(output / file.name for file in plan.files)


def _check_free_space(plan: Plan, output: Path, bytes_to_copy: int) -> None:
    """Raises: InputError if the downloads and the copies do not fit on their disks."""
    needs: dict[int, tuple[Path, int]] = {}  # folder and bytes by device
    for path, size in ((plan.hub.cache_dir, plan.missing), (output, bytes_to_copy)):
        folder = nearest_folder(path)
        first, total = needs.get(folder.stat().st_dev, (folder, 0))
        needs[folder.stat().st_dev] = (first, total + size)
    for folder, size in needs.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"the disk of {folder} has {format_bytes(free)} free, and {format_bytes(size)} are needed;"
                f" free some space, or give `output` or `cache_dir` on another disk"
            )


def _exists(path: Path, file: File) -> bool:
    """True if `path` is that file already."""
    try:
        return has_content(path, file)
    except OSError:
        return False
