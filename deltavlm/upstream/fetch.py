"""The published model's parts from the Hugging Face Hub: the download, and the check of every file.

    fetched = fetch(plan(), say=print)

A file that was cut off starts anew: huggingface_hub (2.4; its issue 4196) resumes a file within a run only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deltavlm.errors import InputError, OutputError
from deltavlm.hub import bars, checked, not_cached, translated
from deltavlm.upstream.disk import free_bytes, size_text
from deltavlm.upstream.parts import VISION, Part
from deltavlm.upstream.plan import Plan, PlannedPart, index_of, is_weight, weight_map


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
            checked(part, file, folder / file.name)
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
            raise not_cached(part, first, planned.cache_dir)
        return Path(path).parent
    with translated(part, planned.cache_dir, planned.endpoint), bars(progress):
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


def _path(part: Part, folder: Path, names: list[str]) -> Path:
    """What `convert` reads of a part. Raises: OutputError.

    A repository's index names the shards too that were left out. Several shards of the vision base therefore
    get an index of ours, with whole paths, in the repository's folder of the cache.
    """
    if len(part.files) == 1:
        return folder / names[0]
    weights = [name for name in names if is_weight(name)]
    index = index_of(names)
    if not part.holding or index is None:
        return folder
    if len(weights) == 1:
        return folder / weights[0]
    ours = folder.parent.parent / "deltavlm" / folder.name / index
    held = {
        tensor: str(folder / shard)
        for tensor, shard in weight_map(part, folder / index).items()
        if shard in weights
    }
    try:
        ours.parent.mkdir(parents=True, exist_ok=True)
        ours.write_text(json.dumps({"weight_map": held}))
    except OSError as error:
        raise OutputError(f"cannot write {ours}: {error.strerror}; give another --cache-dir") from error
    return ours.parent
