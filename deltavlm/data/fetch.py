"""ChangeChat-105k's files from the Hugging Face Hub: what they weigh, what is cached, and the download.

    planned = plan(cache_dir=None, offline=False)   # asks for sizes
    fetch(planned, Path("changechat-105k"), say=print)               # downloads, checks, lays them there

Downloads land in huggingface_hub's cache and are copied from there, so that a set is a folder of plain
files. Its pictures are LEVIR-CC's, and not part of it.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deltavlm.data.changechat import RELEASED_RECORDS
from deltavlm.errors import InputError, OutputError, WriteError
from deltavlm.hub import TIMEOUT_S, File, bars, checked, digest_of, is_same, no_hub, not_cached, translated

__all__ = ["LICENCE", "PICTURES", "REPO", "REVISION", "File", "Plan", "fetch", "plan"]

REPO = "hlwu/changechat-105k"
LICENCE = "CC-BY-4.0, of the texts"
PICTURES = "https://github.com/Chen-Yang-Liu/LEVIR-CC-Dataset (on the Hub: lcybuaa/LEVIR-CC)"
REVISION = "2e467fccf34d24dfebff544858145ecb4c809acd"  # its head as others have recorded it in 2026


@dataclass(frozen=True, slots=True)
class Asked:
    """The repository at a commit, as `hub` wants it told."""

    revision: str
    repo: str = REPO
    told: str = "the files"
    page: str = f"datasets/{REPO}"
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fetch would do."""

    revision: str
    commit: str
    files: tuple[File, ...]
    cache_dir: Path
    offline: bool
    endpoint: str

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files if not file.cached)


def plan(
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    revision: str = REVISION,
    endpoint: str | None = None,
) -> Plan:
    """Sizes and the commit, by asking the Hub, or offline by looking into the cache.

    Raises: InputError where the repository, or offline a file, cannot be had.
    """
    from huggingface_hub import HfApi, constants, is_offline_mode, try_to_load_from_cache

    cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if offline or is_offline_mode():
        return _cached(cache_dir, revision, endpoint)
    asked = Asked(revision)
    with translated(asked, cache_dir, endpoint):
        info = HfApi(endpoint=endpoint).dataset_info(
            REPO, revision=revision, files_metadata=True, timeout=TIMEOUT_S
        )
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    lacking = [name for name in RELEASED_RECORDS if name not in siblings]
    if lacking:
        raise InputError(f"{REPO} has no {', '.join(lacking)} at {revision}; give another --revision")
    files = []
    for name in RELEASED_RECORDS:
        sibling = siblings[name]
        if info.sha is None or sibling.size is None:
            raise no_hub(asked, endpoint, ValueError("no commit or no sizes"))
        digest = digest_of(sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id)
        there = try_to_load_from_cache(REPO, name, cache_dir, info.sha, repo_type="dataset")
        files.append(File(name, sibling.size, digest, isinstance(there, str)))
    return Plan(revision, info.sha or "", tuple(files), cache_dir, False, endpoint)


def fetch(
    planned: Plan,
    output: Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = False,
) -> tuple[Path, ...]:
    """Downloads what is missing, checks every file, and lays them into `output`; the files there.

    A file that is there already, and the same, stays. `progress` shows huggingface_hub's bars.

    Raises: InputError for too little disk, no network, a damaged file; OutputError where another file of that
    name is there, or a folder cannot be written; WriteError where the disk runs full nevertheless.
    """
    todo = [file for file in planned.files if not _holds(output / file.name, file)]
    for file in todo:
        if (output / file.name).exists() and not overwrite:
            raise OutputError(
                f"{output / file.name} is another file than that of {REPO}; give another -o, or --overwrite"
            )
    _check_room(planned, output, sum(file.size for file in todo))
    snapshot = _snapshot(planned, progress)
    for file in planned.files:
        checked(Asked(planned.revision), file, snapshot / file.name)
    for file in todo:
        scratch = output / f".{file.name}.part"
        try:
            output.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / file.name, scratch)
            scratch.replace(output / file.name)
        except OSError as error:
            kind = WriteError if error.errno in (errno.ENOSPC, errno.EDQUOT) else OutputError
            raise kind(f"cannot write {output / file.name}: {error.strerror}; give another -o") from error
        finally:
            if scratch.exists():
                scratch.unlink()
        say(f"{output / file.name}: {file.size / 1e6:.1f} MB")
    return tuple(output / file.name for file in planned.files)


def _cached(cache_dir: Path, revision: str, endpoint: str) -> Plan:
    """The plan of what the cache has. Raises: InputError naming the first file that is not there."""
    from huggingface_hub import try_to_load_from_cache

    files = []
    commit = ""
    for name in RELEASED_RECORDS:
        path = try_to_load_from_cache(REPO, name, cache_dir, revision, repo_type="dataset")
        if not isinstance(path, str):
            raise not_cached(Asked(revision), name, cache_dir)
        blob = Path(path).resolve()  # named by its checksum, where the system has links
        digest = digest_of(blob.name) if blob.parent.name == "blobs" else None
        files.append(File(name, blob.stat().st_size, digest, cached=True))
        commit = Path(path).parent.name
    return Plan(revision, commit, tuple(files), cache_dir, True, endpoint)


def _check_room(planned: Plan, output: Path, copies: int) -> None:
    """Raises: InputError where the downloads, or the copies, do not fit."""
    needs: dict[int, tuple[Path, int]] = {}  # by disk
    for folder, size in ((planned.cache_dir, planned.missing), (output.absolute(), copies)):
        place = next(place for place in (folder, *folder.parents) if place.exists())
        first, known = needs.get(place.stat().st_dev, (place, 0))
        needs[place.stat().st_dev] = (first, known + size)
    for place, size in needs.values():
        free = shutil.disk_usage(place).free
        if size > free:
            raise InputError(
                f"the disk of {place} has {free / 1e6:.0f} MB free, and {size / 1e6:.0f} MB are to be"
                f" written; free some, or give -o or --cache-dir on another disk"
            )


def _snapshot(planned: Plan, progress: bool) -> Path:
    """The folder of the files in the cache, downloaded where needed."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    first = planned.files[0].name
    if planned.offline:
        path = try_to_load_from_cache(REPO, first, planned.cache_dir, planned.commit, repo_type="dataset")
        if not isinstance(path, str):
            raise InputError(f"{first} of {REPO} has gone from the cache {planned.cache_dir}; fetch it again")
        return Path(path).parent
    asked = Asked(planned.revision)
    with translated(asked, planned.cache_dir, planned.endpoint), bars(progress):
        folder = Path(
            snapshot_download(
                REPO,
                repo_type="dataset",
                revision=planned.revision,  # not the commit: the cache shall know the name offline
                cache_dir=planned.cache_dir,
                endpoint=planned.endpoint,
                allow_patterns=[file.name for file in planned.files],
            )
        )
    if folder.name != planned.commit:
        raise InputError(f"{REPO} at {planned.revision} has moved on since it was planned; fetch again")
    return folder


def _holds(path: Path, file: File) -> bool:
    """Whether that file is there already."""
    try:
        return is_same(path, file)
    except OSError:
        return False
