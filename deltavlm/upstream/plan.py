"""What a fetch of the published model would do: what its parts weigh, and what is in the cache.

    planned = plan(vision=None, cache_dir=None, offline=False, revisions=None)   # asks for sizes

Files lie in huggingface_hub's cache, shared with other programs. A file that is there is not fetched again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from deltavlm.errors import InputError
from deltavlm.hub import TIMEOUT_S, File, bars, digest_of, no_hub, not_cached, translated
from deltavlm.upstream.disk import free_bytes, size_text
from deltavlm.upstream.parts import PARTS, VISION, Part


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


def _cached(size: int, missing: int) -> str:
    """How much of it is in the cache."""
    if not missing:
        return "all in the cache"
    return f"{size_text(size - missing)} in the cache" if missing < size else "to be downloaded"


def _asked(part: Part, cache_dir: Path, endpoint: str) -> PlannedPart:
    """A part as the Hub has it. Raises: InputError, OutputError."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    api = HfApi(endpoint=endpoint)
    with translated(part, cache_dir, endpoint):
        info = api.model_info(part.repo, revision=part.revision, files_metadata=True, timeout=TIMEOUT_S)
        if info.gated:  # then the list of files is open, and the files are not
            api.auth_check(part.repo)
    commit = info.sha
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if commit is None or any(sibling.size is None for sibling in siblings.values()):
        raise no_hub(part, endpoint, ValueError("no commit or no sizes"))
    names = _chosen(part, siblings)
    index = None
    if part.holding and (name := index_of(names)) is not None:
        with translated(part, cache_dir, endpoint), bars(shown=False):
            index = Path(
                hf_hub_download(part.repo, name, revision=commit, cache_dir=cache_dir, endpoint=endpoint)
            )
    names, left, lacking = _wanted(part, names, index)
    if lacking:
        raise InputError(
            f"{part.repo} has no {lacking} at {part.revision}; give another revision{part.instead}"
        )
    blobs = cache_dir / f"models--{part.repo.replace('/', '--')}" / "blobs"
    files = []
    for name in names:
        sibling = siblings[name]
        digest = digest_of(sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id)
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
        index = index_of(names)
        names, left, lacking = _wanted(part, names, folder / index if index is not None else None)
    if folder is None or lacking:
        raise not_cached(part, lacking, cache_dir)
    files = []
    for name in names:
        blob = (folder / name).resolve()  # named by its checksum, where the system has links
        digest = digest_of(blob.name) if blob.parent.name == "blobs" else None
        files.append(File(name, blob.stat().st_size, digest, cached=True))
    return PlannedPart(part, folder.name, tuple(files), tuple(left))


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
        holders = weight_map(part, index).items()
        shards = {shard for tensor, shard in holders if tensor.startswith(part.holding)}
        lacking += sorted(shards - set(names)) if shards else [f"{part.holding}* in {index.name}"]
        left = [name for name in names if is_weight(name) and name not in shards]
    else:
        left = []
        if any(is_weight(glob) for glob in part.files) and not any(is_weight(name) for name in names):
            lacking.append("weights (model*.safetensors or pytorch_model*.bin)")
    return [name for name in names if name not in left], left, ", ".join(lacking)


def weight_map(part: Part, index: Path) -> dict[str, str]:
    """Tensors and the files that hold them. Raises: InputError."""
    try:
        found = json.loads(index.read_text())["weight_map"]
        return {str(tensor): str(shard) for tensor, shard in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index.name} of {part.repo} is not an index of shards; delete {index.resolve()} and fetch again"
        ) from error


def index_of(names: Iterable[str]) -> str | None:
    return next((name for name in names if name.endswith(".index.json")), None)


def is_weight(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))
