"""Fetch the published model's components from the Hugging Face Hub and check every file.

fetched = fetch(plan(), notify=print)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltavlm.errors import InputError, OutputError
from deltavlm.files import format_bytes, free_bytes, write_atomic
from deltavlm.hub import fetch_files
from deltavlm.upstream.components import CHECKPOINT, LANGUAGE, VISION, VOCABULARY, Component, Sources
from deltavlm.upstream.plan import Plan, index_of, is_weight, weight_map


@dataclass(frozen=True, slots=True)
class FetchedComponent:
    """Local files of a component."""

    name: str
    repo: str
    commit: str  # as a revision it fetches the same files again
    folder: Path  # huggingface_hub's snapshot of that commit
    path: Path  # input of `convert`: the folder, one file in it, or a folder with an index of some shards
    unchecked: tuple[str, ...] = ()  # files without a known checksum


@dataclass(frozen=True, slots=True)
class Fetched:
    """Local files of all components."""

    components: tuple[FetchedComponent, ...]
    vision: Path | None

    def path(self, name: str) -> Path:
        """Input of `convert` for the component of that name. Raises: KeyError."""
        if name == VISION and self.vision is not None:
            return self.vision
        return {component.name: component.path for component in self.components}[name]

    def sources(self, language: Path | None = None) -> Sources:
        """Input of `convert`; `language` is a local language model, in place of a fetched one."""
        return Sources(
            checkpoint=self.path(CHECKPOINT),
            vision=self.path(VISION),
            llm=language or self.path(LANGUAGE),
            bert=self.path(VOCABULARY),
        )


def fetch(
    plan: Plan,
    *,
    notify: Callable[[str], None] = lambda text: None,
    progress: bool = False,
    check: bool = True,
) -> Fetched:
    """Download the missing files and check every file against the repository's checksum.

    Args:
        plan: components and files, from `plan`.
        notify: called with a line of text for each component and large file.
        progress: show huggingface_hub's bars, if stderr is a terminal.
        check: compare checksums; reads all files.

    Raises: InputError for too little disk space, no network, a repository that is not open, a damaged file;
        OutputError if the cache is not writable; WriteError if the disk is full nevertheless.
    """
    _check_free_space(plan)
    components = []
    for item in plan.components:
        component, planned = item.component, item.planned
        if not plan.hub.offline and planned.missing:
            notify(f"fetching {component.name} from {component.repo}: {format_bytes(planned.missing)}")
        folder = fetch_files(plan.hub, planned, notify=notify, progress=progress, check=check)
        components.append(
            FetchedComponent(
                name=component.name,
                repo=component.repo,
                commit=planned.commit,
                folder=folder,
                path=_input_path(component, folder, [file.name for file in planned.files]),
                unchecked=tuple(file.name for file in planned.files if not check or file.digest is None),
            )
        )
    return Fetched(tuple(components), plan.vision)


def _check_free_space(plan: Plan) -> None:
    """Raises: InputError if the missing files do not fit on the cache's disk."""
    cache_dir = plan.hub.cache_dir
    free = free_bytes(cache_dir)
    if plan.missing <= free:
        return
    missing = [
        (file, item.component.repo)
        for item in plan.components
        for file in item.planned.files
        if not file.cached
    ]
    largest, repo = max(missing, key=lambda pair: pair[0].size)
    incomplete = [path.stat().st_size for path in cache_dir.glob("models--*/blobs/*.incomplete")]
    broken = (
        f", {format_bytes(sum(incomplete))} taken by broken downloads (*.incomplete)" if incomplete else ""
    )
    raise InputError(
        f"{cache_dir} has {format_bytes(free)} free{broken}, and {format_bytes(plan.missing)} are to be"
        f" downloaded, {largest.name} of {repo} the largest ({format_bytes(largest.size)}); free"
        f" {format_bytes(plan.missing - free)} more, or give a `cache_dir` on another disk"
    )


def _input_path(component: Component, folder: Path, names: Sequence[str]) -> Path:
    """Path that `convert` reads for a component. Raises: OutputError.

    A repository's index also names the shards that were skipped. If several shards hold the vision base, an
    index of our own with absolute paths is therefore written into the repository's folder of the cache.
    """
    if len(component.files) == 1:
        return folder / names[0]
    weights = [name for name in names if is_weight(name)]
    index = index_of(names)
    if not component.prefix or index is None:
        return folder
    if len(weights) == 1:
        return folder / weights[0]
    local_index = folder.parent.parent / "deltavlm" / folder.name / index
    shards = {
        tensor: str(folder / shard)
        for tensor, shard in weight_map(component, folder / index).items()
        if shard in weights
    }
    try:
        local_index.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(local_index, json.dumps({"weight_map": shards}))
    except OSError as error:
        raise OutputError(
            f"cannot write {local_index}: {error.strerror}; give another `cache_dir`"
        ) from error
    return local_index.parent
