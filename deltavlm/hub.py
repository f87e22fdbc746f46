"""Plan, fetch and check files of the Hugging Face Hub, with error messages of deltavlm.

    hub = Hub.configure(cache_dir=None, offline=False)
    planned = plan_files(hub, repository, names, select)  # sizes and commit, by asking the Hub or the cache
    folder = fetch_files(hub, planned)                    # downloads what is missing, checks every file

Files are kept in huggingface_hub's cache, which other programs share. Used by `upstream` for models and by
`data` for data sets.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltavlm.deadline import call_within
from deltavlm.errors import InputError, OutputError, WriteError
from deltavlm.files import format_bytes
from deltavlm.messages import first_line

__all__ = [
    "File",
    "Hub",
    "PlannedFiles",
    "Repository",
    "Selection",
    "fetch_files",
    "has_content",
    "plan_files",
    "select_all",
]

TIMEOUT_S = 30.0  # of a request for a repository's list of files; downloads have huggingface_hub's own
STALL_S = 300.0  # after which a download of less than 1 kB/s is given up
LARGE_FILE_BYTES = 10_000_000  # from this size on, checking a checksum takes long enough to announce it


@dataclass(frozen=True, slots=True)
class Hub:
    """Endpoint and cache of the Hugging Face Hub; with `offline` only the cache is used."""

    endpoint: str  # URL without a slash at the end
    cache_dir: Path
    offline: bool

    @classmethod
    def configure(
        cls, *, cache_dir: Path | None = None, offline: bool = False, endpoint: str | None = None
    ) -> Hub:
        """Hub with huggingface_hub's own settings (HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE) as defaults."""
        from huggingface_hub import constants, is_offline_mode

        return cls(
            (endpoint or constants.ENDPOINT).rstrip("/"),
            Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve(),
            offline or is_offline_mode(),
        )


@dataclass(frozen=True, slots=True)
class Repository:
    """Repository of the Hub at a revision, with the words that error messages need."""

    name: str  # OWNER/NAME
    revision: str  # branch, tag or commit
    kind: Literal["model", "dataset"] = "model"
    content: str = "the files"  # the file that a message names if none in particular failed
    alternative: str = ""  # another way to get the files, as the end of a message

    @property
    def page(self) -> str:
        """Path of its page below the Hub's endpoint."""
        return f"datasets/{self.name}" if self.kind == "dataset" else self.name

    @property
    def advice(self) -> str:
        """The alternative as the end of a message; perhaps empty."""
        return f", {self.alternative}" if self.alternative else ""


@dataclass(frozen=True, slots=True)
class File:
    """File of a repository."""

    name: str
    size: int  # bytes
    digest: str | None  # hex: sha256 of a large file, git's sha1 of a small one; None if unknown
    cached: bool


@dataclass(frozen=True, slots=True)
class PlannedFiles:
    """Files to fetch from a repository at a commit."""

    repository: Repository
    commit: str
    files: tuple[File, ...]
    skipped: tuple[str, ...] = ()  # files that the selection left out on purpose

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes that are not in the cache."""
        return sum(file.size for file in self.files if not file.cached)


@dataclass(frozen=True, slots=True)
class Selection:
    """Names of the files to fetch, of those left out on purpose, and of required ones that do not exist."""

    names: Sequence[str]
    skipped: Sequence[str] = ()
    missing: Sequence[str] = ()


# Selects from the names of a repository's files; the second argument gives the path of one of them, which is
# downloaded for that if it is not in the cache.
Select = Callable[[Iterable[str], Callable[[str], Path]], Selection]


def select_all(required: Sequence[str]) -> Select:
    """Selection of exactly these names, all of them required."""

    def select(names: Iterable[str], path_of: Callable[[str], Path]) -> Selection:
        existing = set(names)
        return Selection(required, missing=[name for name in required if name not in existing])

    return select


def plan_files(hub: Hub, repository: Repository, candidates: Iterable[str], select: Select) -> PlannedFiles:
    """Sizes, checksums and commit of the selected files, without downloading them.

    Offline, `candidates` are names by which the repository's folder is found in the cache.

    Raises: InputError if the repository, or a required file, cannot be had; OutputError if the cache is not
        writable.
    """
    if hub.offline:
        return _plan_cached(hub, repository, candidates, select)
    return _plan_online(hub, repository, select)


def fetch_files(
    hub: Hub,
    planned: PlannedFiles,
    *,
    notify: Callable[[str], None] = lambda text: None,
    progress: bool = False,
    check: bool = True,
) -> Path:
    """Download the missing files and check all of them; return their folder in the cache.

    An interrupted file is downloaded from its start: huggingface_hub (2.4; its issue 4196) resumes a file
    only within a run.

    Args:
        hub: endpoint and cache.
        planned: files to fetch.
        notify: called with a line before the checksum of each large file.
        progress: show huggingface_hub's bars, if stderr is a terminal.
        check: compare sizes and checksums; reads every file.

    Raises: InputError for no network, a repository that is not open or has changed, a damaged file;
        OutputError if the cache is not writable; WriteError if the disk is full.
    """
    folder = _snapshot(hub, planned, progress)
    for file in planned.files:
        if not (folder / file.name).is_file():
            raise InputError(f"{folder} lacks {file.name} of {planned.repository.name}; fetch it again")
    for file in planned.files if check else ():
        if file.size >= LARGE_FILE_BYTES:
            notify(f"checking {file.name} ({format_bytes(file.size)})")
        check_file(planned.repository, file, folder / file.name)
    return folder


def has_content(path: Path, file: File) -> bool:
    """True if `path` has the size and checksum of `file`. Raises: OSError."""
    size = path.stat().st_size
    if size != file.size or file.digest is None:
        return size == file.size
    with path.open("rb") as stream:
        if len(file.digest) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.digest
        sha1 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # git's blob id
        return hashlib.file_digest(stream, lambda: sha1).hexdigest() == file.digest


def check_file(repository: Repository, file: File, path: Path) -> None:
    """Raises: InputError if a cached file differs from its repository's, naming the blob to delete."""
    blob = path.resolve()
    try:
        size, is_equal = blob.stat().st_size, has_content(blob, file)
    except OSError as error:
        raise InputError(
            f"cannot read {file.name} of {repository.name}: {error.strerror}; delete {blob} and fetch again"
        ) from error
    if not is_equal:
        fault = "differs from its checksum" if size == file.size else f"has {size} bytes, not {file.size}"
        raise InputError(f"{file.name} of {repository.name} {fault}; delete {blob} and fetch again")


def _plan_online(hub: Hub, repository: Repository, select: Select) -> PlannedFiles:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    api, kind = HfApi(endpoint=hub.endpoint), repository.kind
    with _hub_errors(hub, repository):
        info = call_within(
            2 * TIMEOUT_S,
            lambda: api.repo_info(
                repository.name,
                repo_type=kind,
                revision=repository.revision,
                files_metadata=True,
                timeout=TIMEOUT_S,
            ),
        )
        if getattr(info, "gated", False):  # then the list of files is public, and the files are not
            call_within(2 * TIMEOUT_S, lambda: api.auth_check(repository.name, repo_type=kind))
    commit = info.sha
    siblings = {sibling.rfilename: sibling for sibling in getattr(info, "siblings", None) or ()}
    if commit is None or any(sibling.size is None for sibling in siblings.values()):
        raise _not_a_hub(hub, repository, ValueError("no commit or no sizes"))

    def path_of(name: str) -> Path:
        with _hub_errors(hub, repository), _progress_bars(visible=False):
            path = call_within(
                STALL_S,
                lambda: hf_hub_download(
                    repository.name,
                    name,
                    repo_type=kind,
                    revision=commit,
                    cache_dir=hub.cache_dir,
                    endpoint=hub.endpoint,
                ),
                lambda: _cached_bytes(hub, repository),
            )
            return Path(path)

    selection = select(siblings, path_of)
    if selection.missing:
        raise InputError(
            f"{repository.name} has no {', '.join(selection.missing)} at {repository.revision};"
            f" give another revision{repository.advice}"
        )
    blobs = _blobs(hub, repository)
    files = []
    for name in selection.names:
        sibling = siblings[name]
        digest = _checksum(sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id)
        path = try_to_load_from_cache(repository.name, name, hub.cache_dir, commit, repo_type=kind)
        cached = isinstance(path, str)
        if not cached and digest is not None:
            cached = (blobs / digest).is_file()  # the same file at another commit
        files.append(File(name, sibling.size or 0, digest, cached))
    return PlannedFiles(repository, commit, tuple(files), tuple(selection.skipped))


def _plan_cached(hub: Hub, repository: Repository, candidates: Iterable[str], select: Select) -> PlannedFiles:
    folder = _cached_folder(hub, repository, candidates)
    if folder is None:
        raise _not_cached(hub, repository, repository.content)
    selection = select([path.name for path in folder.iterdir() if path.is_file()], folder.joinpath)
    if selection.missing:
        raise _not_cached(hub, repository, ", ".join(selection.missing))
    files = []
    for name in selection.names:
        blob = (folder / name).resolve()  # named by its checksum, where the system has symbolic links
        digest = _checksum(blob.name) if blob.parent.name == "blobs" else None
        files.append(File(name, blob.stat().st_size, digest, cached=True))
    return PlannedFiles(repository, folder.name, tuple(files), tuple(selection.skipped))


def _cached_folder(hub: Hub, repository: Repository, names: Iterable[str]) -> Path | None:
    """Snapshot folder of the repository's revision that has one of these files."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        path = try_to_load_from_cache(
            repository.name, name, hub.cache_dir, repository.revision, repo_type=repository.kind
        )
        if isinstance(path, str):
            return Path(path).parent
    return None


def _snapshot(hub: Hub, planned: PlannedFiles, progress: bool) -> Path:
    """Snapshot folder of the planned commit, downloaded unless offline."""
    from huggingface_hub import snapshot_download

    repository, names = planned.repository, [file.name for file in planned.files]
    if hub.offline:
        folder = _cached_folder(hub, repository, names)
        if folder is None or folder.name != planned.commit:
            raise _not_cached(hub, repository, names[0])
        return folder
    with _hub_errors(hub, repository), _progress_bars(progress):
        path = call_within(
            STALL_S,
            lambda: snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=repository.revision,  # not the commit: offline the cache must know this name
                cache_dir=hub.cache_dir,
                endpoint=hub.endpoint,
                allow_patterns=names,
            ),
            lambda: _cached_bytes(hub, repository),
        )
        folder = Path(path)
    if folder.name != planned.commit:
        raise InputError(
            f"{repository.name} at {repository.revision} changed from {planned.commit[:12]} to"
            f" {folder.name[:12]} since it was planned; fetch again"
        )
    return folder


def _blobs(hub: Hub, repository: Repository) -> Path:
    """Folder of the repository's files in the cache, named by checksum."""
    return hub.cache_dir / f"{repository.kind}s--{repository.name.replace('/', '--')}" / "blobs"


def _cached_bytes(hub: Hub, repository: Repository) -> int:
    """Bytes of the repository in the cache, those of incomplete files too."""
    size = 0
    for path in _blobs(hub, repository).glob("*"):
        with suppress(OSError):  # renamed since
            size += path.stat().st_size
    return size


def _checksum(text: str | None) -> str | None:
    """The text if it is a sha1 or sha256 in hex, else None."""
    return text if text is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else None


@contextmanager
def _progress_bars(visible: bool) -> Iterator[None]:
    """Show or hide huggingface_hub's progress bars, which is a setting of the whole process."""
    from huggingface_hub import utils

    if visible or utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]


@contextmanager
def _hub_errors(hub: Hub, repository: Repository) -> Iterator[None]:
    """Raise huggingface_hub's errors as InputError, OutputError or WriteError."""
    from huggingface_hub import errors

    # of the HTTP client: httpx2, or httpx before huggingface_hub 2
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except (errors.HfHubHTTPError, errors.FileMetadataError) as error:
        raise _refusal(hub, repository, error) from error
    except (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError, http_error) as error:
        first: BaseException = error  # the first error of the chain is the most precise
        while first.__cause__ is not None and not isinstance(first, errors.HfHubHTTPError):
            first = first.__cause__
        if isinstance(first, errors.HfHubHTTPError | errors.FileMetadataError):
            raise _refusal(hub, repository, first) from error
        raise InputError(
            f"cannot get {repository.content} of {repository.name}: no connection to {hub.endpoint}"
            f" ({first_line(first)}); check the network and the proxy, or use `offline=True` if it was"
            f" fetched before"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WriteError(
                f"the disk of {hub.cache_dir} is full, while fetching {repository.name}; free some space or"
                f" give another `cache_dir`, then fetch again: complete files are kept"
            ) from error
        if error.errno is not None:
            raise OutputError(
                f"cannot write to the cache {hub.cache_dir}: {error.strerror}; give another `cache_dir`"
            ) from error
        raise InputError(
            f"the download of {repository.name} failed ({first_line(error)}); fetch again"
        ) from error
    except RuntimeError as error:  # of hf_xet, the Hub's other transfer protocol
        raise InputError(
            f"the download of {repository.name} failed ({first_line(error)}); try again, or set"
            f" HF_HUB_DISABLE_XET=1"
        ) from error
    except ValueError as error:  # not JSON: a page of a proxy
        raise _not_a_hub(hub, repository, error) from error


def _refusal(hub: Hub, repository: Repository, error: Exception) -> InputError:
    """Error for an HTTP status of the Hub, with what to do about it."""
    from huggingface_hub import errors, get_token

    url = str(error.response.url) if isinstance(error, errors.HfHubHTTPError) else ""
    file = re.search(r"/resolve/[^/]+/([^?]+)", url)
    content = f"{file[1] if file else repository.content} of {repository.name}"
    page = f"{hub.endpoint}/{repository.page}"
    if isinstance(error, errors.GatedRepoError):
        remedy = (
            "then run `hf auth login` or set HF_TOKEN"
            if get_token() is None
            else "with the account of the token that is set, which has no access yet"
        )
        return InputError(f"{content} is gated: accept the terms at {page}, {remedy}{repository.advice}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"cannot get {content}: there is no such repository, or it is private; look at {page}, and run"
            f" `hf auth login` if it is private{repository.advice}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"cannot get {content}: it has no revision {repository.revision!r}; give a branch, a tag or a"
            f" full commit hash of {page}"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return InputError(
            f"there is no {content} at {repository.revision}; give another revision{repository.advice}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = {
            401: "the token was rejected; run `hf auth login` again, or unset HF_TOKEN",
            403: f"access denied; look at {page}, and at the permissions of the token",
            429: "too many requests; wait some minutes, or run `hf auth login`",
        }.get(status, "the Hub has a problem; try again later")
        return InputError(f"cannot get {content} (HTTP {status}): {remedy}")
    return _not_a_hub(hub, repository, error)


def _not_cached(hub: Hub, repository: Repository, name: str) -> InputError:
    return InputError(
        f"{name} of {repository.name} at {repository.revision} is not in the cache {hub.cache_dir};"
        f" fetch it once with a network, without `offline=True`"
    )


def _not_a_hub(hub: Hub, repository: Repository, error: Exception) -> InputError:
    return InputError(
        f"cannot get {repository.content} of {repository.name}: {hub.endpoint} does not answer as the Hub"
        f" does ({first_line(error)}); check HF_ENDPOINT and the proxy"
    )
