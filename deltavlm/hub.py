"""huggingface_hub as we use it: a file and its checksum, progress bars, and its errors in our words.

Shared by `upstream`, which fetches models, and `data`, which fetches sets.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deltavlm.errors import InputError, OutputError, WriteError

__all__ = [
    "TIMEOUT_S",
    "File",
    "Repository",
    "bars",
    "checked",
    "digest_of",
    "first_line",
    "is_same",
    "no_hub",
    "not_cached",
    "translated",
]

TIMEOUT_S = 30.0  # for a question about a repository; downloads have huggingface_hub's own


class Repository(Protocol):
    """What is asked for, as messages tell it."""

    @property
    def repo(self) -> str: ...

    @property
    def revision(self) -> str:
        """Branch, tag or commit."""
        ...

    @property
    def told(self) -> str:
        """The file that a message names."""
        ...

    @property
    def page(self) -> str:
        """Where its page is, behind the Hub's address."""
        ...

    @property
    def instead(self) -> str:
        """What to do where it cannot be had, as the end of a message; perhaps empty."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """One file of a repository."""

    name: str
    size: int  # bytes
    digest: str | None  # hex: sha256 of a large file, git's sha1 of a small one; None where nobody tells
    cached: bool


def digest_of(text: str | None) -> str | None:
    """The text if it is a checksum, else None."""
    return text if text is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else None


def is_same(path: Path, file: File) -> bool:
    """Whether a path holds that file, by size and checksum. Raises: OSError."""
    size = path.stat().st_size
    if size != file.size or file.digest is None:
        return size == file.size
    with path.open("rb") as opened:
        if len(file.digest) == 64:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.digest
        begun = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # as git names a file
        return hashlib.file_digest(opened, lambda: begun).hexdigest() == file.digest


def checked(part: Repository, file: File, path: Path) -> None:
    """Raises: InputError where a cached file is not what its repository says, with the blob to delete."""
    blob = path.resolve()
    try:
        size, same = blob.stat().st_size, is_same(blob, file)
    except OSError as error:
        raise InputError(
            f"cannot read {file.name} of {part.repo}: {error.strerror}; delete {blob} and fetch again"
        ) from error
    if not same:
        fault = "differs from its checksum" if size == file.size else f"has {size} bytes, not {file.size}"
        raise InputError(f"{file.name} of {part.repo} {fault}; delete {blob} and fetch again")


def not_cached(part: Repository, name: str, cache_dir: Path) -> InputError:
    return InputError(
        f"{name} of {part.repo} at {part.revision} is not in the cache {cache_dir};"
        f" fetch it once with a network, without --offline"
    )


@contextmanager
def bars(shown: bool) -> Iterator[None]:
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
def translated(part: Repository, cache_dir: Path, endpoint: str) -> Iterator[None]:
    """huggingface_hub's errors in our words. Raises: InputError, OutputError, WriteError."""
    from huggingface_hub import errors

    # of the HTTP client: httpx2, or httpx before huggingface_hub 2
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except (errors.HfHubHTTPError, errors.FileMetadataError) as error:
        raise _answered(error, part, endpoint) from error
    except (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError, http_error) as error:
        first: BaseException = error  # the first error says it best
        while first.__cause__ is not None and not isinstance(first, errors.HfHubHTTPError):
            first = first.__cause__
        if isinstance(first, errors.HfHubHTTPError | errors.FileMetadataError):
            raise _answered(first, part, endpoint) from error
        raise InputError(
            f"cannot get {part.told} of {part.repo}: no connection to {endpoint} ({first_line(first)});"
            f" check the network and the proxy, or use --offline if it was fetched before"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WriteError(
                f"the disk of {cache_dir} is full, while fetching {part.repo}; free some or give another"
                f" --cache-dir, then fetch again: whole files stay"
            ) from error
        if error.errno is not None:
            raise OutputError(
                f"cannot write to the cache {cache_dir}: {error.strerror}; give another --cache-dir"
            ) from error
        raise InputError(
            f"the download of {part.repo} broke off ({first_line(error)}); fetch again"
        ) from error
    except RuntimeError as error:  # of hf_xet, the Hub's other way to send files
        raise InputError(
            f"the download of {part.repo} broke off ({first_line(error)}); try again, or set"
            f" HF_HUB_DISABLE_XET=1"
        ) from error
    except ValueError as error:  # not the JSON that was asked for: a page of a proxy
        raise no_hub(part, endpoint, error) from error


def _answered(error: Exception, part: Repository, endpoint: str) -> InputError:
    """The Hub's refusal in our words."""
    from huggingface_hub import errors, get_token

    url = str(error.response.url) if isinstance(error, errors.HfHubHTTPError) else ""
    asked = re.search(r"/resolve/[^/]+/([^?]+)", url)
    what = f"{asked[1] if asked else part.told} of {part.repo}"
    page = f"{endpoint}/{part.page}"
    if isinstance(error, errors.GatedRepoError):
        remedy = (
            "then run `hf auth login` or set HF_TOKEN"
            if get_token() is None
            else "with the account of the token that is set, which has no access yet"
        )
        return InputError(f"{what} is gated: accept the terms at {page}, {remedy}{part.instead}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"cannot get {what}: there is no such repository, or it is private; look at {page}, and run"
            f" `hf auth login` if it is private{part.instead}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"cannot get {what}: it has no revision {part.revision!r}; give a branch, a tag or a whole commit"
            f" hash of {page}"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return InputError(f"there is no {what} at {part.revision}; give another revision{part.instead}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = {
            401: "the token was refused; run `hf auth login` again, or unset HF_TOKEN",
            403: f"not allowed; look at {page}, and at what the token may do",
            429: "too many requests; wait some minutes, or run `hf auth login`",
        }.get(status, "the Hub has trouble; try again later")
        return InputError(f"cannot get {what} (HTTP {status}): {remedy}")
    return no_hub(part, endpoint, error)


def no_hub(part: Repository, endpoint: str, error: Exception) -> InputError:
    return InputError(
        f"cannot get {part.told} of {part.repo}: {endpoint} does not answer as the Hub does"
        f" ({first_line(error)}); check HF_ENDPOINT and the proxy"
    )


def first_line(error: BaseException) -> str:
    """An error's first line, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
