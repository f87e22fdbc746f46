"""The published model's parts from the Hugging Face Hub: what they weigh, what is cached, and the download.

The checkpoint holds only what was trained. The vision base's stem and first blocks, the language model and
BERT's vocabulary lie in repositories of others, each with terms of its own.

    planned = plan(vision=None, cache_dir=None, offline=False, revisions=None)   # asks for sizes
    fetched = fetch(planned, say=print)                                          # downloads and checks

Files land in huggingface_hub's cache, shared with other programs. A file that is there is not fetched again.
One that was cut off starts anew: huggingface_hub (2.4; its issue 4196) resumes a file within a run only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from deltavlm.errors import InputError, OutputError, WriteError

CHECKPOINT, LANGUAGE, VOCABULARY, VISION = "checkpoint", "language", "question vocabulary", "vision base"
TIMEOUT_S = 30.0  # for a question about a repository; downloads have huggingface_hub's own
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "model*.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "pytorch_model*.bin",
)


@dataclass(frozen=True, slots=True)
class Part:
    """One repository's share of the model."""

    name: str
    repo: str
    revision: str  # branch, tag or commit; no commit is pinned here, since none was ever seen
    files: tuple[str, ...]  # glob patterns, at the top of the repository
    needed: tuple[str, ...]  # what must be among them, beside weights where `files` asks for weights
    licence: str
    holding: str = ""  # of the weight files, only those with tensors of this prefix
    otherwise: str = ""  # what to do where the repository cannot be had

    @property
    def told(self) -> str:
        """The file that a message names."""
        return self.needed[0] if self.needed else self.files[0]


# Terms as read in the checkpoint's card (hf_upload/README.md of its code), the cards of Vicuna v1.5 (13B),
# BAAI/EVA and BERT, and LAVIS's projects/instructblip/README.md.
PARTS: tuple[Part, ...] = (
    Part(
        name=CHECKPOINT,
        repo="hlwu/DeltaVLM",
        revision="main",
        files=("checkpoint_best.pth",),
        needed=("checkpoint_best.pth",),
        licence=(
            'its card says "other" and points to the terms of code, data and base model; the code has no'
            " licence file (an older branch has BSD-3-Clause, and MIT in its README); it learnt from LEVIR's"
            " images, for research use, and texts under CC-BY-4.0: ask the authors before any other use"
        ),
        otherwise="or get checkpoint_best.pth from its authors (their older code names hanlinwu/DeltaVLM)",
    ),
    Part(
        name=LANGUAGE,
        repo="lmsys/vicuna-7b-v1.5",
        revision="main",
        files=(
            "config.json",
            "generation_config.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "special_tokens_map.json",
            *WEIGHT_FILES,
        ),
        needed=("tokenizer.model", "config.json"),
        licence="Llama 2 Community License; its makers name research as its primary use",
        otherwise="or use a folder of Vicuna-7B v1.5 that you have",
    ),
    Part(
        name=VOCABULARY,
        repo="google-bert/bert-base-uncased",
        revision="main",
        files=("vocab.txt", "config.json"),
        needed=("vocab.txt",),
        licence="Apache-2.0; BERT's weights are not needed",
        otherwise="or use the vocab.txt of a bert-base-uncased that you have",
    ),
    Part(
        name=VISION,
        repo="Salesforce/instructblip-vicuna-7b",
        revision="main",
        files=WEIGHT_FILES,
        needed=(),
        licence=(
            "InstructBLIP is licensed for research use only, under LLaMA's and Vicuna's terms; of it only the"
            " EVA-CLIP weights are used, which BAAI published under MIT"
        ),
        holding="vision_model.",
        otherwise="or give a local eva_vit_g.pth as the vision base",
    ),
)
# Third in trust, after a local eva_vit_g.pth and InstructBLIP: most likely the same weights, never compared.
TIMM_BASE = Part(
    name=VISION,
    repo="timm/eva_giant_patch14_clip_224.laion400m",
    revision="main",
    files=("model.safetensors", "pytorch_model.bin"),
    needed=(),
    licence="timm's copy of EVA-CLIP-g, which BAAI published under MIT; read the card of the repository",
    otherwise="or give a local eva_vit_g.pth as the vision base",
)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a repository."""

    name: str
    size: int  # bytes
    digest: str | None  # hex: sha256 of a large file, git's sha1 of a small one; None where nobody tells
    cached: bool


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part, its repository's commit, and the files that are wanted of it."""

    part: Part
    commit: str
    files: tuple[File, ...]
    left: tuple[str, ...] = ()  # weight files without tensors that we want

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes that are not in the cache."""
        return sum(file.size for file in self.files if not file.cached)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fetch would do."""

    parts: tuple[PlannedPart, ...]
    vision: Path | None  # a local vision base, in place of that part
    cache_dir: Path
    free: int  # bytes on the cache's disk
    offline: bool
    endpoint: str

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return sum(part.missing for part in self.parts)

    def lines(self) -> list[str]:
        """The plan for people: sizes, what is cached, each part's terms."""
        told = []
        for planned in self.parts:
            part, count = planned.part, len(planned.files)
            files = planned.files[0].name if count == 1 else f"{count} files"
            told.append(
                f"{part.name}: {part.repo} at {part.revision} ({planned.commit[:12]}), {files},"
                f" {size_text(planned.size)}, {_cached(planned.size, planned.missing)}"
            )
            if planned.left:
                told.append(f"  without {len(planned.left)} weight files that hold no {part.holding}*")
            told.append(f"  terms: {part.licence}")
        if self.vision is not None:
            told.append(f"{VISION}: {self.vision}, which you gave")
        told.append(
            f"in all {size_text(self.size)}, {_cached(self.size, self.missing)};"
            f" {size_text(self.free)} free in {self.cache_dir}"
        )
        return told


@dataclass(frozen=True, slots=True)
class FetchedPart:
    """Where a part is."""

    name: str
    repo: str
    commit: str  # give it as the revision, to get the same again
    folder: Path  # huggingface_hub's snapshot of that commit
    path: Path  # what to convert from: the folder, one file in it, or an index of the shards that are wanted
    unchecked: tuple[str, ...] = ()  # files for which no checksum is known


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where everything is."""

    parts: tuple[FetchedPart, ...]
    vision: Path | None

    def path(self, name: str) -> Path:
        """What to convert from, of the part of that name. Raises: KeyError."""
        if name == VISION and self.vision is not None:
            return self.vision
        return {part.name: part.path for part in self.parts}[name]


def plan(
    parts: Iterable[Part] = PARTS,
    *,
    vision: Path | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    revisions: Mapping[str, str] | None = None,
    endpoint: str | None = None,
) -> Plan:
    """Sizes and commits of all parts, by asking the Hub, or offline by looking into the cache.

    `vision` is a vision base that is there already. `revisions` has branches, tags or commits by the names of
    parts. The vision base's index of shards is downloaded, to choose the shards that hold it.

    Raises: InputError where a repository, or offline a file, cannot be had; OutputError where the cache
    cannot be written.
    """
    from huggingface_hub import constants, is_offline_mode

    parts = tuple(parts)
    revisions = revisions or {}
    strange = sorted(set(revisions) - {part.name for part in parts})
    if strange:
        known = ", ".join(part.name for part in parts)
        raise InputError(f"a revision is given for {strange[0]!r}, which is no part; the parts are {known}")
    if vision is not None:
        if not vision.exists():
            raise InputError(
                f"no file {vision}; give the vision base (eva_vit_g.pth), or leave it out to fetch one"
            )
        parts = tuple(part for part in parts if part.name != VISION)
    cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    offline = offline or is_offline_mode()
    planned = []
    for part in parts:
        part = replace(part, revision=revisions.get(part.name, part.revision))
        planned.append(_cached_part(part, cache_dir) if offline else _asked(part, cache_dir, endpoint))
    return Plan(tuple(planned), vision, cache_dir, free_bytes(cache_dir), offline, endpoint)


def fetch(
    planned: Plan,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = False,
    check: bool = True,
) -> Fetched:
    """Downloads what is missing, and checks every file against the repository's checksum.

    `progress` shows huggingface_hub's bars if stderr is a terminal. `check=False` spares reading all again.

    Raises: InputError for too little disk, no network, a repository that is not open, a damaged file;
    OutputError where the cache cannot be written; WriteError where the disk runs full nevertheless.
    """
    _check_room(planned)
    found = []
    for one in planned.parts:
        part = one.part
        if not planned.offline and one.missing:
            say(f"fetching {part.name} from {part.repo}: {size_text(one.missing)}")
        folder = _snapshot(planned, one, progress)
        for file in one.files:
            if not (folder / file.name).is_file():
                raise InputError(f"{folder} lacks {file.name} of {part.repo}; fetch it again")
        for file in one.files if check else ():
            if file.size >= 10_000_000:
                say(f"checking {file.name} ({size_text(file.size)})")
            _check(part, file, folder / file.name)
        found.append(
            FetchedPart(
                name=part.name,
                repo=part.repo,
                commit=one.commit,
                folder=folder,
                path=_path(part, folder, [file.name for file in one.files]),
                unchecked=tuple(file.name for file in one.files if not check or file.digest is None),
            )
        )
    return Fetched(tuple(found), planned.vision)


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


def _cached(size: int, missing: int) -> str:
    """How much of it is in the cache."""
    if not missing:
        return "all in the cache"
    return f"{size_text(size - missing)} in the cache" if missing < size else "to be downloaded"


# ---- what there is


def _asked(part: Part, cache_dir: Path, endpoint: str) -> PlannedPart:
    """A part as the Hub has it. Raises: InputError, OutputError."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    api = HfApi(endpoint=endpoint)
    with _translated(part, cache_dir, endpoint):
        info = api.model_info(part.repo, revision=part.revision, files_metadata=True, timeout=TIMEOUT_S)
        if info.gated:  # then the list of files is open, and the files are not
            api.auth_check(part.repo)
    commit = info.sha
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if commit is None or any(sibling.size is None for sibling in siblings.values()):
        raise _no_hub(part, endpoint, ValueError("no commit or no sizes"))
    names = _chosen(part, siblings)
    index = None
    if part.holding and (name := _index(names)) is not None:
        with _translated(part, cache_dir, endpoint), _bars(shown=False):
            index = Path(
                hf_hub_download(part.repo, name, revision=commit, cache_dir=cache_dir, endpoint=endpoint)
            )
    names, left, lacking = _wanted(part, names, index)
    if lacking:
        raise InputError(f"{part.repo} has no {lacking} at {part.revision}; give another revision{_or(part)}")
    blobs = cache_dir / f"models--{part.repo.replace('/', '--')}" / "blobs"
    files = []
    for name in names:
        sibling = siblings[name]
        digest = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
        digest = digest if digest is not None and _is_digest(digest) else None
        cached = isinstance(try_to_load_from_cache(part.repo, name, cache_dir, commit), str)
        if not cached and digest is not None:
            cached = (blobs / digest).is_file()  # the same file, under another commit
        files.append(File(name, sibling.size or 0, digest, cached))
    return PlannedPart(part, commit, tuple(files), tuple(left))


def _cached_part(part: Part, cache_dir: Path) -> PlannedPart:
    """A part as the cache has it. Raises: InputError naming what is not there."""
    from huggingface_hub import try_to_load_from_cache

    folder = None
    for name in part.files:
        if folder is None and "*" not in name:
            path = try_to_load_from_cache(part.repo, name, cache_dir, part.revision)
            folder = Path(path).parent if isinstance(path, str) else None
    lacking = part.told
    if folder is not None:
        names = _chosen(part, (path.name for path in folder.iterdir() if path.is_file()))
        index = _index(names)
        names, left, lacking = _wanted(part, names, folder / index if index is not None else None)
    if folder is None or lacking:
        raise _not_cached(part, lacking, cache_dir)
    files = []
    for name in names:
        blob = (folder / name).resolve()  # named by its checksum, where the system has links
        digest = blob.name if blob.parent.name == "blobs" and _is_digest(blob.name) else None
        files.append(File(name, blob.stat().st_size, digest, cached=True))
    return PlannedPart(part, folder.name, tuple(files), tuple(left))


def _not_cached(part: Part, name: str, cache_dir: Path) -> InputError:
    return InputError(
        f"{name} of {part.repo} at {part.revision} is not in the cache {cache_dir};"
        f" fetch it once with a network, without --offline"
    )


def _chosen(part: Part, names: Iterable[str]) -> list[str]:
    """The files that a part's patterns ask for; of weights safetensors where there are any, else pickles."""
    found = sorted(
        name for name in names if "/" not in name and any(fnmatchcase(name, glob) for glob in part.files)
    )
    if any(name.endswith(".safetensors") for name in found):
        return [name for name in found if not name.endswith((".bin", ".bin.index.json"))]
    if any(name.endswith(".bin") for name in found):
        return [name for name in found if not name.endswith(".safetensors.index.json")]
    return found


def _wanted(part: Part, names: list[str], index: Path | None) -> tuple[list[str], list[str], str]:
    """(files to have, weight files without tensors that we want, what is lacking or "").

    Raises: InputError for an index that is none.
    """
    lacking = [name for name in part.needed if name not in names]
    if index is not None:
        weight_map = _weight_map(part, index)
        shards = {shard for tensor, shard in weight_map.items() if tensor.startswith(part.holding)}
        lacking += sorted(shards - set(names)) if shards else [f"{part.holding}* in {index.name}"]
        left = [name for name in names if _is_weight(name) and name not in shards]
    else:
        left = []
        if any(_is_weight(glob) for glob in part.files) and not any(_is_weight(name) for name in names):
            lacking.append("weights (model*.safetensors or pytorch_model*.bin)")
    return [name for name in names if name not in left], left, ", ".join(lacking)


def _weight_map(part: Part, index: Path) -> dict[str, str]:
    """Tensors and the files that hold them. Raises: InputError."""
    try:
        found = json.loads(index.read_text())["weight_map"]
        return {str(tensor): str(shard) for tensor, shard in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index.name} of {part.repo} is not an index of shards; delete {index.resolve()} and fetch again"
        ) from error


def _index(names: Iterable[str]) -> str | None:
    return next((name for name in names if name.endswith(".index.json")), None)


def _is_weight(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


def _or(part: Part) -> str:
    return f", {part.otherwise}" if part.otherwise else ""


# ---- getting it


def _check_room(planned: Plan) -> None:
    """Raises: InputError where the missing files do not fit onto the cache's disk."""
    free = free_bytes(planned.cache_dir)
    if planned.missing <= free:
        return
    missing = [(file, one.part.repo) for one in planned.parts for file in one.files if not file.cached]
    largest, repo = max(missing, key=lambda pair: pair[0].size)
    orphans = [path.stat().st_size for path in planned.cache_dir.glob("models--*/blobs/*.incomplete")]
    broken = f", {size_text(sum(orphans))} taken by broken downloads (*.incomplete)" if orphans else ""
    raise InputError(
        f"{planned.cache_dir} has {size_text(free)} free{broken}, and {size_text(planned.missing)} are to be"
        f" downloaded, {largest.name} of {repo} the largest ({size_text(largest.size)}); free"
        f" {size_text(planned.missing - free)} more, or give a --cache-dir on another disk"
    )


def _snapshot(planned: Plan, one: PlannedPart, progress: bool) -> Path:
    """The folder of a part, downloaded where needed. Raises: InputError, OutputError, WriteError."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    part = one.part
    if planned.offline:
        first = one.files[0].name
        path = try_to_load_from_cache(part.repo, first, planned.cache_dir, one.commit)
        if not isinstance(path, str):
            raise _not_cached(part, first, planned.cache_dir)
        return Path(path).parent
    with _translated(part, planned.cache_dir, planned.endpoint), _bars(progress):
        folder = Path(
            snapshot_download(
                part.repo,
                revision=part.revision,  # not the commit: the cache shall know the name offline
                cache_dir=planned.cache_dir,
                endpoint=planned.endpoint,
                allow_patterns=[file.name for file in one.files],
            )
        )
    if folder.name != one.commit:
        raise InputError(
            f"{part.repo} at {part.revision} went from {one.commit[:12]} to {folder.name[:12]} since it was"
            f" planned; fetch again"
        )
    return folder


def _check(part: Part, file: File, path: Path) -> None:
    """Raises: InputError where a file is not what its repository says, with the blob to delete."""
    blob = path.resolve()
    try:
        size = blob.stat().st_size
        same = size == file.size and (file.digest is None or _digest(blob, file.digest) == file.digest)
    except OSError as error:
        raise InputError(
            f"cannot read {file.name} of {part.repo}: {error.strerror}; delete {blob} and fetch again"
        ) from error
    if not same:
        fault = "differs from its checksum" if size == file.size else f"has {size} bytes, not {file.size}"
        raise InputError(f"{file.name} of {part.repo} {fault}; delete {blob} and fetch again")


def _digest(path: Path, like: str) -> str:
    """A file's checksum, of the kind of another one: sha256, or git's sha1 of a blob. Raises: OSError."""
    with path.open("rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        begun = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        return hashlib.file_digest(file, lambda: begun).hexdigest()


def _path(part: Part, folder: Path, names: list[str]) -> Path:
    """What `convert` reads of a part. Raises: OutputError.

    A repository's index names the shards too that were left out. Several shards of the vision base therefore
    get an index of ours, with whole paths, in the repository's folder of the cache.
    """
    if len(part.files) == 1:
        return folder / names[0]
    weights = [name for name in names if _is_weight(name)]
    index = _index(names)
    if not part.holding or index is None:
        return folder
    if len(weights) == 1:
        return folder / weights[0]
    ours = folder.parent.parent / "deltavlm" / folder.name / index
    held = {
        tensor: str(folder / shard)
        for tensor, shard in _weight_map(part, folder / index).items()
        if shard in weights
    }
    try:
        ours.parent.mkdir(parents=True, exist_ok=True)
        ours.write_text(json.dumps({"weight_map": held}))
    except OSError as error:
        raise OutputError(f"cannot write {ours}: {error.strerror}; give another --cache-dir") from error
    return ours.parent


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


# ---- what can go wrong


@contextmanager
def _translated(part: Part, cache_dir: Path, endpoint: str) -> Iterator[None]:
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
            f"cannot get {part.told} of {part.repo}: no connection to {endpoint} ({_line(first)});"
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
        raise InputError(f"the download of {part.repo} broke off ({_line(error)}); fetch again") from error
    except RuntimeError as error:  # of hf_xet, the Hub's other way to send files
        raise InputError(
            f"the download of {part.repo} broke off ({_line(error)}); try again, or set HF_HUB_DISABLE_XET=1"
        ) from error
    except ValueError as error:  # not the JSON that was asked for: a page of a proxy
        raise _no_hub(part, endpoint, error) from error


def _answered(error: Exception, part: Part, endpoint: str) -> InputError:
    """The Hub's refusal in our words."""
    from huggingface_hub import errors, get_token

    url = str(error.response.url) if isinstance(error, errors.HfHubHTTPError) else ""
    asked = re.search(r"/resolve/[^/]+/([^?]+)", url)
    what = f"{asked[1] if asked else part.told} of {part.repo}"
    page = f"{endpoint}/{part.repo}"
    if isinstance(error, errors.GatedRepoError):
        remedy = (
            "then run `hf auth login` or set HF_TOKEN"
            if get_token() is None
            else "with the account of the token that is set, which has no access yet"
        )
        return InputError(f"{what} is gated: accept the terms at {page}, {remedy}{_or(part)}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"cannot get {what}: there is no such repository, or it is private; look at {page}, and run"
            f" `hf auth login` if it is private{_or(part)}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"cannot get {what}: it has no revision {part.revision!r}; give a branch, a tag or a whole commit"
            f" hash of {page}"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return InputError(f"there is no {what} at {part.revision}; give another revision{_or(part)}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = {
            401: "the token was refused; run `hf auth login` again, or unset HF_TOKEN",
            403: f"not allowed; look at {page}, and at what the token may do",
            429: "too many requests; wait some minutes, or run `hf auth login`",
        }.get(status, "the Hub has trouble; try again later")
        return InputError(f"cannot get {what} (HTTP {status}): {remedy}")
    return _no_hub(part, endpoint, error)


def _no_hub(part: Part, endpoint: str, error: Exception) -> InputError:
    return InputError(
        f"cannot get {part.told} of {part.repo}: {endpoint} does not answer as the Hub does ({_line(error)});"
        f" check HF_ENDPOINT and the proxy"
    )


def _line(error: BaseException) -> str:
    """An error's first line, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
