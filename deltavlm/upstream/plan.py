"""Plan a fetch of the published model: sizes of its components, and what is in the cache already.

planned = plan(vision=None, cache_dir=None, offline=False, revisions=None)   # asks the Hub for sizes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from deltavlm.errors import InputError
from deltavlm.files import format_bytes, free_bytes, nearest_folder, parse_json, read_text
from deltavlm.hub import Hub, PlannedFiles, Select, Selection, plan_files
from deltavlm.messages import pluralize
from deltavlm.upstream.components import COMPONENTS, LANGUAGE, VISION, Component


@dataclass(frozen=True, slots=True)
class PlannedComponent:
    """Component with the files to fetch for it."""

    component: Component
    planned: PlannedFiles


@dataclass(frozen=True, slots=True)
class Plan:
    """Files to fetch for the published model."""

    components: tuple[PlannedComponent, ...]
    vision: Path | None  # a local vision base, in place of that component
    free: int  # bytes on the cache's disk
    hub: Hub

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.planned.size for item in self.components)

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return sum(item.planned.missing for item in self.components)

    def lines(self) -> list[str]:
        """The plan as text: size, cached share and terms of each component, then the total."""
        lines = []
        for item in self.components:
            component, planned, count = item.component, item.planned, len(item.planned.files)
            files = planned.files[0].name if count == 1 else f"{count} files"
            lines.append(
                f"{component.name}: {component.repo} at {component.revision} ({planned.commit[:12]}),"
                f" {files}, {format_bytes(planned.size)}, {_cached(planned.size, planned.missing)}"
            )
            if planned.skipped:
                lines.append(
                    f"  left out, without any {component.prefix}*: "
                    f"{pluralize(len(planned.skipped), 'weight file')}"
                )
            lines.append(f"  terms: {component.licence}")
        if self.vision is not None:
            lines.append(f"{VISION}: {self.vision}, a local file")
        lines.append(
            f"total {format_bytes(self.size)}, {_cached(self.size, self.missing)};"
            f" {format_bytes(self.free)} free in {self.hub.cache_dir}"
        )
        return lines


def plan(
    components: Iterable[Component] = COMPONENTS,
    *,
    vision: Path | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    revisions: Mapping[str, str] | None = None,
    endpoint: str | None = None,
) -> Plan:
    """Sizes and commits of all components, by asking the Hub, or offline from the cache.

    The vision base's index of shards is downloaded, to select the shards that hold its tensors.

    Args:
        components: components to fetch.
        vision: local vision base, in place of that component.
        cache_dir: cache folder; huggingface_hub's by default.
        offline: use the cache only.
        revisions: branches, tags or commits by the names of components.
        endpoint: URL of the Hub; huggingface_hub's by default.

    Raises: InputError if a repository, or offline a file, cannot be had; OutputError if the cache is not
        writable.
    """
    components, revisions = tuple(components), revisions or {}
    unknown = sorted(set(revisions) - {component.name for component in components})
    if unknown:
        valid = ", ".join(component.name for component in components)
        raise InputError(
            f"a revision is given for {unknown[0]!r}, which is no component; the components are {valid}"
        )
    if vision is not None:
        if not vision.exists():
            raise InputError(
                f"no file {vision}; give the vision base (eva_vit_g.pth), or omit it to fetch one"
            )
        components = tuple(component for component in components if component.name != VISION)
    hub = Hub.configure(cache_dir=cache_dir, offline=offline, endpoint=endpoint)
    items = []
    for component in components:
        component = replace(component, revision=revisions.get(component.name, component.revision))
        names = [pattern for pattern in component.files if "*" not in pattern]
        planned = plan_files(hub, component.repository, names, _selector(component, hub))
        items.append(PlannedComponent(component, planned))
    return Plan(tuple(items), vision, free_bytes(hub.cache_dir), hub)


@dataclass(frozen=True, slots=True)
class ConversionSpace:
    """Disk space for converting a fetched model into `folder`, in bytes."""

    folder: Path
    size: int  # of the checkpoint, at most
    downloads: int  # to the same disk
    free: int

    @classmethod
    def estimate(cls, plan: Plan, folder: Path, *, link_language: bool) -> ConversionSpace:
        """Space for the files of `plan`, without the language model's if they are linked."""
        size = sum(
            item.planned.size
            for item in plan.components
            if not (link_language and item.component.name == LANGUAGE)
        )
        disks = {nearest_folder(path).stat().st_dev for path in (folder, plan.hub.cache_dir)}
        return cls(folder, size, plan.missing if len(disks) == 1 else 0, free_bytes(folder))

    def check(self) -> None:
        """Raises: InputError if the disk is too small."""
        if self.size + self.downloads > self.free:
            raise InputError(
                f"{self.folder} needs up to {format_bytes(self.size + self.downloads)} with the downloads,"
                f" {format_bytes(self.free)} are free; give `output` on another disk,"
                f" or `link_llm=True` to leave the language model in its folder"
            )


def weight_map(component: Component, index: Path) -> dict[str, str]:
    """Names of tensors and the files that hold them, from an index of shards. Raises: InputError."""
    try:
        mapping = parse_json(read_text(index))["weight_map"]
        return {str(tensor): str(shard) for tensor, shard in mapping.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index.name} of {component.repo} is not an index of shards; delete {index.resolve()} and fetch"
            f" again"
        ) from error


def index_of(names: Iterable[str]) -> str | None:
    """The index of shards among these files."""
    return next((name for name in names if name.endswith(".index.json")), None)


def is_weight(name: str) -> bool:
    """True for a file with weights, or a pattern of such."""
    return name.endswith((".safetensors", ".bin"))


def _cached(size: int, missing: int) -> str:
    if not missing:
        return "all in the cache"
    return f"{format_bytes(size - missing)} in the cache" if missing < size else "to be downloaded"


def _selector(component: Component, hub: Hub) -> Select:
    """Selection of a component's files among those of its repository. Raises: InputError for a bad index.

    The index of shards is read if the component needs some of them only, or is in the cache, where shards
    may be missing.
    """
    uses_index = bool(component.prefix) or hub.offline

    def select(names: Iterable[str], path_of: Callable[[str], Path]) -> Selection:
        matching = _matching(component, names)
        missing = [name for name in component.required if name not in matching]
        index = index_of(matching) if uses_index else None
        if index is None:
            if any(map(is_weight, component.files)) and not any(map(is_weight, matching)):
                missing.append("weights (model*.safetensors or pytorch_model*.bin)")
            return Selection(matching, missing=missing)
        holders = weight_map(component, path_of(index)).items()
        shards = {shard for tensor, shard in holders if tensor.startswith(component.prefix)}
        missing += sorted(shards - set(matching)) if shards else [f"{component.prefix}* in {index}"]
        skipped = [name for name in matching if is_weight(name) and name not in shards]
        return Selection([name for name in matching if name not in skipped], skipped, missing)

    return select


def _matching(component: Component, names: Iterable[str]) -> Sequence[str]:
    """Files that match a component's patterns; of its weights safetensors if there are any, else pickles."""
    matching = sorted(
        name
        for name in names
        if "/" not in name and any(fnmatchcase(name, pattern) for pattern in component.files)
    )
    if any(name.endswith(".safetensors") for name in matching):
        return [name for name in matching if not name.endswith((".bin", ".bin.index.json"))]
    if any(name.endswith(".bin") for name in matching):
        return [name for name in matching if not name.endswith(".safetensors.index.json")]
    return matching
