"""ChangeChat-105k's files from the Hugging Face Hub: what they weigh, what is cached, and the download.

    planned = plan(cache_dir=None, offline=False)   # asks for sizes
    fetch(planned, Path("changechat-105k"), say=print)               # downloads, checks, lays them there

Downloads land in huggingface_hub's cache and are copied from there, so that a set is a folder of plain
files. Its pictures are LEVIR-CC's, and not part of it.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deltavlm.data.changechat import RELEASED
from deltavlm.errors import InputError, OutputError, WriteError

__all__ = ["LICENCE", "PICTURES", "REPO", "REVISION", "File", "Plan", "fetch", "plan"]

REPO = "hlwu/changechat-105k"
LICENCE = "CC-BY-4.0, of the texts"
PICTURES = "https://github.com/Chen-Yang-Liu/LEVIR-CC-Dataset (on the Hub: lcybuaa/LEVIR-CC)"
REVISION = "2e467fccf34d24dfebff544858145ecb4c809acd"  # its head as others have recorded it in 2026
TIMEOUT_S = 30.0  # for a question about the repository; downloads have huggingface_hub's own


@dataclass(frozen=True, slots=True)
class File:
    """One file of the repository."""

    name: str
    size: int  # bytes
    digest: str | None  # hex: sha256 of a large file, git's sha1 of a small one; None where nobody tells
    cached: bool


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
    with _translated(revision, cache_dir, endpoint):
        info = HfApi(endpoint=endpoint).dataset_info(
            REPO, revision=revision, files_metadata=True, timeout=TIMEOUT_S
        )
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    lacking = [name for name in RELEASED if name not in siblings]
    if lacking:
        raise InputError(f"{REPO} has no {', '.join(lacking)} at {revision}; give another --revision")
    files = []
    for name in RELEASED:
        sibling = siblings[name]
        if info.sha is None or sibling.size is None:
            raise _no_hub(endpoint, ValueError("no commit or no sizes"))
        digest = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
        digest = digest if digest is not None and _is_digest(digest) else None
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
    todo = [file for file in planned.files if not _is_same(output / file.name, file)]
    for file in todo:
        if (output / file.name).exists() and not overwrite:
            raise OutputError(
                f"{output / file.name} is another file than that of {REPO}; give another -o, or --overwrite"
            )
    _check_room(planned, output, sum(file.size for file in todo))
    snapshot = _snapshot(planned, progress)
    for file in planned.files:
        _check(file, snapshot / file.name)
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
    for name in RELEASED:
        path = try_to_load_from_cache(REPO, name, cache_dir, revision, repo_type="dataset")
        if not isinstance(path, str):
            raise InputError(
                f"{name} of {REPO} at {revision} is not in the cache {cache_dir};"
                f" fetch it once with a network, without --offline"
            )
        blob = Path(path).resolve()  # named by its checksum, where the system has links
        digest = blob.name if blob.parent.name == "blobs" and _is_digest(blob.name) else None
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
    with _translated(planned.revision, planned.cache_dir, planned.endpoint), _bars(progress):
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


def _check(file: File, path: Path) -> None:
    """Raises: InputError where a file is not what its repository says, with the blob to delete."""
    blob = path.resolve()
    if not blob.is_file() or blob.stat().st_size != file.size or not _is_same(blob, file):
        raise InputError(f"{file.name} of {REPO} differs from its checksum; delete {blob} and fetch again")


def _is_same(path: Path, file: File) -> bool:
    """Whether a path holds that file, by size and checksum."""
    try:
        if path.stat().st_size != file.size:
            return False
        if file.digest is None:
            return True
        with path.open("rb") as opened:
            if len(file.digest) == 64:
                return hashlib.file_digest(opened, "sha256").hexdigest() == file.digest
            begun = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)  # as git names a file
            return hashlib.file_digest(opened, lambda: begun).hexdigest() == file.digest
    except OSError:
        return False


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """huggingface_hub's progress bars on or off, which is a setting of the whole process."""
    from huggingface_hub import utils

    if shown or utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]


@contextmanager
def _translated(revision: str, cache_dir: Path, endpoint: str) -> Iterator[None]:
    """huggingface_hub's errors in our words. Raises: InputError, OutputError, WriteError."""
    from huggingface_hub import errors

    # of the HTTP client: httpx2, or httpx before huggingface_hub 2
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except (errors.HfHubHTTPError, errors.FileMetadataError) as error:
        raise _answered(error, revision, endpoint) from error
    except (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError, http_error) as error:
        first: BaseException = error  # the first error says it best
        while first.__cause__ is not None and not isinstance(first, errors.HfHubHTTPError):
            first = first.__cause__
        if isinstance(first, errors.HfHubHTTPError | errors.FileMetadataError):
            raise _answered(first, revision, endpoint) from error
        raise InputError(
            f"cannot get {REPO}: no connection to {endpoint} ({_line(first)});"
            f" check the network and the proxy, or use --offline if it was fetched before"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WriteError(
                f"the disk of {cache_dir} is full, while fetching {REPO}; free some, or give another"
                f" --cache-dir"
            ) from error
        if error.errno is not None:
            raise OutputError(
                f"cannot write to the cache {cache_dir}: {error.strerror}; give another --cache-dir"
            ) from error
        raise InputError(f"the download of {REPO} broke off ({_line(error)}); fetch again") from error
    except RuntimeError as error:  # of hf_xet, the Hub's other way to send files
        raise InputError(
            f"the download of {REPO} broke off ({_line(error)}); try again, or set HF_HUB_DISABLE_XET=1"
        ) from error
    except ValueError as error:  # not the JSON that was asked for: a page of a proxy
        raise _no_hub(endpoint, error) from error


def _answered(error: Exception, revision: str, endpoint: str) -> InputError:
    """The Hub's refusal in our words."""
    from huggingface_hub import errors

    page = f"{endpoint}/datasets/{REPO}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(f"cannot get {REPO}: there is no such data set, or it is not open; look at {page}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"{REPO} has no revision {revision!r}; give a branch, a tag or a whole commit hash of {page}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = {
            401: "the token was refused; run `hf auth login` again, or unset HF_TOKEN",
            403: f"not allowed; look at {page}",
            429: "too many requests; wait some minutes, or run `hf auth login`",
        }.get(status, "the Hub has trouble; try again later")
        return InputError(f"cannot get {REPO} (HTTP {status}): {remedy}")
    return _no_hub(endpoint, error)


def _no_hub(endpoint: str, error: Exception) -> InputError:
    return InputError(
        f"cannot get {REPO}: {endpoint} does not answer as the Hub does ({_line(error)});"
        f" check HF_ENDPOINT and the proxy"
    )


def _line(error: BaseException) -> str:
    """An error's first line, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
