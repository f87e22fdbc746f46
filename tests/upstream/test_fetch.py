"""Plans and downloads of the published model, from a fake Hub on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from deltacli.main import app
from deltavlm import files
from deltavlm.errors import DeltaVLMError, InputError, OutputError, WriteError
from deltavlm.files import format_bytes
from deltavlm.model.folder import find_folder, models, read_config
from deltavlm.upstream import plan as plan_module
from deltavlm.upstream.components import CHECKPOINT, COMPONENTS, LANGUAGE, TIMM_BASE, VISION, VOCABULARY
from deltavlm.upstream.fetch import Fetched, fetch
from deltavlm.upstream.plan import Plan, plan
from tests.hub_server import FakeHub, FakeRepo, refused, serve_hub
from tests.upstream.conftest import GOLDEN, as_instructblip

pytestmark = pytest.mark.network

PINNED = {component.name: component.revision for component in COMPONENTS}
REPOS = {component.name: component.repo for component in COMPONENTS}
Planner = Callable[..., Plan]
WEIGHT_MAP = {
    "query_tokens": "model-00001-of-00003.safetensors",
    "vision_model.embeddings.class_embedding": "model-00002-of-00003.safetensors",
    "vision_model.post_layernorm.weight": "model-00002-of-00003.safetensors",
    "language_model.lm_head.weight": "model-00003-of-00003.safetensors",
}


def shards(count: int, content: bytes = b"shard") -> dict[str, bytes]:
    return {f"model-{n:05d}-of-{count:05d}.safetensors": content * 100 * n for n in range(1, count + 1)}


def index_of(weight_map: dict[str, str]) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def commit_of(seed: str) -> str:
    return hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()


def repo_of(hub: FakeHub, name: str) -> FakeRepo:
    """Repository of the component of that name."""
    return hub.repos[REPOS[name]]


def published() -> dict[str, FakeRepo]:
    """The four repositories at small size, with additional files."""
    return {
        REPOS[CHECKPOINT]: FakeRepo(
            {"checkpoint_best.pth": b"c" * 3000, "README.md": b"card", "configs/evaluate.yaml": b"y"},
            commit_of("checkpoint"),
        ),
        REPOS[LANGUAGE]: FakeRepo(
            {
                "config.json": b'{"of": "config"}',
                "generation_config.json": b'{"of": "generation_config"}',
                "tokenizer.model": b"pieces",
                "tokenizer_config.json": b'{"of": "tokenizer_config"}',
                "special_tokens_map.json": b'{"of": "special_tokens_map"}',
                "pytorch_model-00001-of-00002.bin": b"l" * 5000,
                "pytorch_model-00002-of-00002.bin": b"l" * 4000,
                "pytorch_model.bin.index.json": index_of(
                    {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
                ),
                "README.md": b"card",
                "pytorch_model/other.bin": b"not this one",
            },
            PINNED[LANGUAGE],
        ),
        REPOS[VOCABULARY]: FakeRepo(
            {
                "vocab.txt": b"[PAD]\n[CLS]\n",
                "config.json": b"{}",
                "tokenizer.json": b"{}",
                "model.safetensors": b"bert",
                "pytorch_model.bin": b"bert",
            },
            PINNED[VOCABULARY],
        ),
        REPOS[VISION]: FakeRepo(
            {
                "model.safetensors.index.json": index_of(WEIGHT_MAP),
                **shards(3),
                "pytorch_model-00001-of-00001.bin": b"once more",
                "tokenizer.model": b"of another",
                "config.json": b"{}",
            },
            PINNED[VISION],
        ),
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve_hub(published(), tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def planner(hub: FakeHub, cache: Path) -> Planner:
    """`plan` of this Hub and this cache."""

    def ask(*names: str, **options: Any) -> Plan:
        components = [component for component in COMPONENTS if not names or component.name in names]
        return plan(components, cache_dir=cache, endpoint=hub.endpoint, **options)

    return ask


def names_of(planned: Plan, name: str) -> list[str]:
    return next(
        [file.name for file in item.planned.files]
        for item in planned.components
        if item.component.name == name
    )


# ---- the plan


def test_plan_has_the_sizes_of_the_selected_files_only(hub: FakeHub, planner: Planner) -> None:
    planned = planner()
    index, second = len(index_of(WEIGHT_MAP)), 1000
    by_name = {item.component.name: item for item in planned.components}
    assert {name: item.planned.commit for name, item in by_name.items()} == {
        name: repo_of(hub, name).commit for name in REPOS
    }
    assert by_name[CHECKPOINT].planned.size == by_name[CHECKPOINT].planned.missing == 3000
    assert by_name[VOCABULARY].planned.size == len(b"[PAD]\n[CLS]\n{}")
    assert names_of(planned, VOCABULARY) == ["config.json", "vocab.txt"]
    assert by_name[VISION].planned.size == index + second
    assert by_name[VISION].planned.missing == second  # the index was read already
    assert planned.size == sum(item.planned.size for item in planned.components)
    assert hub.downloads() == ["model.safetensors.index.json"]


def test_plan_selects_the_shards_with_the_vision_tower(hub: FakeHub, planner: Planner) -> None:
    planned = planner(VISION)
    assert names_of(planned, VISION) == ["model-00002-of-00003.safetensors", "model.safetensors.index.json"]
    assert planned.components[0].planned.skipped == (
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    )
    assert "left out, without any vision_model.*: 2 weight files" in "\n".join(planned.lines())


def test_plan_selects_a_vision_base_without_an_index(hub: FakeHub, planner: Planner) -> None:
    repo_of(hub, VISION).files = {"model.safetensors": b"all", "tokenizer.model": b"of another"}
    assert names_of(planner(VISION), VISION) == ["model.safetensors"]


def test_a_vision_base_without_a_tower_is_refused(hub: FakeHub, planner: Planner) -> None:
    repo_of(hub, VISION).files["model.safetensors.index.json"] = index_of(
        {"lm_head.weight": "model-00001-of-00003.safetensors"}
    )
    text = refused(planner, VISION)
    assert "vision_model.* in model.safetensors.index.json" in text
    assert "eva_vit_g.pth" in text


def test_an_index_with_a_missing_shard_is_refused(hub: FakeHub, planner: Planner) -> None:
    del repo_of(hub, VISION).files["model-00002-of-00003.safetensors"]
    assert f"has no model-00002-of-00003.safetensors at {PINNED[VISION]}" in refused(planner, VISION)


def test_an_invalid_index_is_refused_with_its_path(hub: FakeHub, planner: Planner, cache: Path) -> None:
    repo_of(hub, VISION).files["model.safetensors.index.json"] = b"[]"
    text = refused(planner, VISION)
    blob = Path(text.split("delete ")[1].split(" and fetch")[0])
    assert blob.is_file()
    assert blob.is_relative_to(cache)


def test_language_weights_are_pickles_only_without_safetensors(hub: FakeHub, planner: Planner) -> None:
    few = {
        "config.json",
        "generation_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    pickles = {
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    }
    assert set(names_of(planner(LANGUAGE), LANGUAGE)) == few | pickles
    tensors = shards(2) | {"model.safetensors.index.json": b"{}"}
    repo_of(hub, LANGUAGE).files |= tensors
    assert set(names_of(planner(LANGUAGE), LANGUAGE)) == few | set(tensors)


@pytest.mark.parametrize(
    ("name", "gone", "missing"),
    [
        (CHECKPOINT, "checkpoint_best.pth", "checkpoint_best.pth"),
        (LANGUAGE, "tokenizer.model", "tokenizer.model"),
        (LANGUAGE, "pytorch_model", "weights (model*.safetensors or pytorch_model*.bin)"),
        (VOCABULARY, "vocab.txt", "vocab.txt"),
    ],
)
def test_a_repository_without_a_required_file_is_refused(
    hub: FakeHub, planner: Planner, name: str, gone: str, missing: str
) -> None:
    repo = repo_of(hub, name)
    repo.files = {file: content for file, content in repo.files.items() if not file.startswith(gone)}
    assert f"{REPOS[name]} has no {missing} at {PINNED[name]}" in refused(planner, name)


def test_plan_prints_sizes_and_every_licence(planner: Planner) -> None:
    planned = planner()
    text = "\n".join(planned.lines())
    for component in COMPONENTS:
        assert component.repo in text
        assert component.licence in text
    assert "checkpoint_best.pth, 3.0 kB, to be downloaded" in text
    assert f"total {format_bytes(planned.size)}" in text
    assert f"{format_bytes(planned.free)} free in {planned.hub.cache_dir}" in text


def test_licences_name_open_questions() -> None:
    terms = {component.name: component.licence for component in COMPONENTS}
    assert "no licence file" in terms[CHECKPOINT]
    assert '"other"' in terms[CHECKPOINT]
    assert "LEVIR" in terms[CHECKPOINT]
    assert "Llama 2 Community License" in terms[LANGUAGE]
    assert "research" in terms[VISION]


def test_a_local_vision_base_is_not_fetched(hub: FakeHub, planner: Planner, tmp_path: Path) -> None:
    local = tmp_path / "eva_vit_g.pth"
    assert "eva_vit_g.pth" in refused(planner, vision=local)
    local.write_bytes(b"weights")
    planned = planner(vision=local)
    assert [item.component.name for item in planned.components] == [CHECKPOINT, LANGUAGE, VOCABULARY]
    assert str(local) in "\n".join(planned.lines())
    assert fetch(planned).path(VISION) == local
    assert not any(REPOS[VISION] in line for line in hub.requests)


def test_revisions_are_given_by_component(hub: FakeHub, planner: Planner) -> None:
    commit = repo_of(hub, CHECKPOINT).commit
    planned = planner(revisions={CHECKPOINT: commit})
    assert [item.component.revision for item in planned.components] == [commit, *list(PINNED.values())[1:]]
    text = refused(planner, CHECKPOINT, revisions={CHECKPOINT: "v9"})
    assert "checkpoint_best.pth of hlwu/DeltaVLM" in text
    assert "no revision 'v9'" in text
    assert "'checkpoints', which is no component; the components are checkpoint, " in refused(
        planner, revisions={"checkpoints": "v9"}
    )


# ---- the download


def test_fetch_fills_the_cache_once(hub: FakeHub, planner: Planner, cache: Path) -> None:
    planned = planner()
    hub.downloads()
    messages: list[str] = []
    fetched = fetch(planned, notify=messages.append)
    names = [name for component in REPOS for name in names_of(planned, component)]
    names.remove("model.safetensors.index.json")  # came with the plan
    assert hub.downloads() == sorted(names)
    for component in fetched.components:
        assert component.repo == REPOS[component.name]
        assert component.commit == repo_of(hub, component.name).commit
        assert component.folder.is_relative_to(cache)
        assert component.unchecked == ()
        contents = {path.name: path.read_bytes() for path in component.folder.iterdir()}
        assert contents == {
            name: repo_of(hub, component.name).files[name] for name in names_of(planned, component.name)
        }
    assert "fetching checkpoint from hlwu/DeltaVLM: 3.0 kB" in messages

    replanned = planner()
    assert replanned.missing == 0
    assert "all in the cache" in replanned.lines()[-1]
    assert fetch(replanned) == fetched
    assert hub.downloads() == []


def test_complete_files_stay_when_a_fetch_fails(hub: FakeHub, planner: Planner) -> None:
    hub.broken = "pytorch_model-00002-of-00002.bin"
    planned = planner(LANGUAGE)
    text = refused(fetch, planned)
    assert "cannot get pytorch_model-00002-of-00002.bin of lmsys/vicuna-7b-v1.5 (HTTP 500)" in text
    hub.broken = ""
    cached = {
        file.name for item in planner(LANGUAGE).components for file in item.planned.files if file.cached
    }
    assert cached
    hub.downloads()
    fetch(planner(LANGUAGE))
    assert set(hub.downloads()) == set(names_of(planned, LANGUAGE)) - cached


def test_paths_are_the_input_of_convert(planner: Planner) -> None:
    fetched = fetch(planner())
    folder = {component.name: component.folder for component in fetched.components}
    assert fetched.path(CHECKPOINT) == folder[CHECKPOINT] / "checkpoint_best.pth"
    assert fetched.path(VISION) == folder[VISION] / "model-00002-of-00003.safetensors"
    assert fetched.path(LANGUAGE) == folder[LANGUAGE]
    assert fetched.path(VOCABULARY) == folder[VOCABULARY]


def test_several_vision_shards_are_read_without_the_others(hub: FakeHub, planner: Planner) -> None:
    """The repository's index names the skipped shards too."""
    from deltavlm.upstream.read import shards as shards_of

    tower = {f"vision_model.{n}": f"model-0000{n}-of-00003.safetensors" for n in (1, 2)}
    repo_of(hub, VISION).files["model.safetensors.index.json"] = index_of(WEIGHT_MAP | tower)
    fetched = fetch(planner(VISION))
    folder = fetched.components[0].folder
    with pytest.raises(InputError, match="00003-of-00003"):
        shards_of(folder)
    assert shards_of(fetched.path(VISION)) == [folder / name for name in sorted(tower.values())]


def test_offline_uses_the_cache(hub: FakeHub, planner: Planner) -> None:
    online = fetch(planner())
    hub.stop()
    planned = planner(offline=True)
    assert planned.missing == 0
    assert fetch(planned) == online
    pins = {component.name: component.commit for component in online.components}
    assert fetch(planner(offline=True, revisions=pins)) == online


def test_offline_has_the_sizes_and_checksums_of_online(hub: FakeHub, planner: Planner) -> None:
    fetch(planner())
    assert [item.planned.files for item in planner(offline=True).components] == [
        item.planned.files for item in planner().components
    ]


def test_the_setting_of_huggingface_hub_means_offline(
    hub: FakeHub, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(planner(VOCABULARY))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert planner(VOCABULARY).hub.offline
    assert "checkpoint_best.pth" in refused(planner)


def test_offline_with_an_empty_cache_names_the_first_file(
    hub: FakeHub, planner: Planner, cache: Path
) -> None:
    text = refused(planner, offline=True)
    assert f"checkpoint_best.pth of hlwu/DeltaVLM at main is not in the cache {cache}" in text
    assert "without `offline=True`" in text
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        (LANGUAGE, "pytorch_model-00002-of-00002.bin"),
        (LANGUAGE, "tokenizer.model"),
        (VOCABULARY, "vocab.txt"),
        (VISION, "model-00002-of-00003.safetensors"),
    ],
)
def test_offline_with_half_a_component_names_the_missing_file(planner: Planner, name: str, gone: str) -> None:
    fetched = fetch(planner(name))
    (fetched.components[0].folder / gone).unlink()
    assert f"{gone} of {REPOS[name]}" in refused(planner, name, offline=True)


def test_offline_fetch_checks_the_cache_again(planner: Planner, cache: Path) -> None:
    fetch(planner(VOCABULARY))
    planned = planner(VOCABULARY, offline=True)
    shutil.rmtree(cache)
    assert "not in the cache" in refused(fetch, planned)


def test_a_blob_of_an_older_commit_counts_as_cached(hub: FakeHub, planner: Planner) -> None:
    fetch(planner(CHECKPOINT))
    repo_of(hub, CHECKPOINT).commit = commit_of("a new card")
    hub.downloads()
    planned = planner(CHECKPOINT)
    assert planned.missing == 0
    assert fetch(planned).components[0].commit == commit_of("a new card")
    assert hub.downloads() == []


def test_a_changed_repository_is_an_error(hub: FakeHub, planner: Planner) -> None:
    planned = planner(CHECKPOINT)
    before, repo_of(hub, CHECKPOINT).commit = repo_of(hub, CHECKPOINT).commit, commit_of("moved")
    text = refused(fetch, planned)
    assert before[:12] in text
    assert commit_of("moved")[:12] in text


# ---- bad input


def test_too_little_disk(
    hub: FakeHub, planner: Planner, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = planner()
    hub.downloads()
    usage = shutil.disk_usage(cache)._replace(free=planned.missing - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    text = refused(fetch, planned)
    assert f"{format_bytes(planned.missing)} are to be downloaded" in text
    assert f"{cache} has {format_bytes(planned.missing - 1)} free" in text
    assert "pytorch_model-00001-of-00002.bin of lmsys/vicuna-7b-v1.5 the largest (5.0 kB)" in text
    assert "free 1 B more, or give a `cache_dir`" in text
    assert hub.requests == []  # nothing was begun
    orphan = cache / "models--a--b" / "blobs" / "x.incomplete"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"x" * 2000)
    assert "2.0 kB taken by broken downloads (*.incomplete)" in refused(fetch, planned)

    usage = usage._replace(free=planned.missing)
    fetch(planned)


def test_free_disk_is_that_of_the_nearest_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []
    real = shutil.disk_usage

    def usage(path: Path) -> Any:
        paths.append(path)
        return real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    files.free_bytes(tmp_path / "not" / "yet")
    assert paths == [tmp_path]


def test_no_network(hub: FakeHub, planner: Planner) -> None:
    planned = planner(CHECKPOINT)
    hub.stop()
    for text in (refused(planner, CHECKPOINT), refused(fetch, planned)):
        assert "cannot get checkpoint_best.pth of hlwu/DeltaVLM: no connection to http://127.0.0.1" in text
        assert "refused" in text
        assert "`offline=True`" in text


def test_a_gated_repository_is_refused_before_anything_is_fetched(
    hub: FakeHub, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo_of(hub, LANGUAGE).gated = True
    text = refused(planner, LANGUAGE)
    assert "tokenizer.model of lmsys/vicuna-7b-v1.5 is gated" in text
    assert f"accept the terms at {hub.endpoint}/lmsys/vicuna-7b-v1.5" in text
    assert "`hf auth login` or set HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
    text = refused(planner, LANGUAGE)
    assert "account of the token that is set" in text
    assert "hf auth login" not in text


def test_a_gate_that_only_files_show(hub: FakeHub, planner: Planner) -> None:
    repo_of(hub, CHECKPOINT).gated, repo_of(hub, CHECKPOINT).lists_gated = True, False
    text = refused(fetch, planner(CHECKPOINT))
    assert "checkpoint_best.pth of hlwu/DeltaVLM is gated" in text
    assert "hanlinwu/DeltaVLM" in text


def test_a_missing_repository(hub: FakeHub, planner: Planner) -> None:
    del hub.repos[REPOS[VISION]]
    text = refused(planner)
    assert "Salesforce/instructblip-vicuna-7b: there is no such repository, or it is private" in text
    assert "or give a local eva_vit_g.pth" in text


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "or it is private|run `hf auth login`"),
        (403, "look at"),
        (429, "too many requests; wait some minutes"),
        (503, "try again later"),
    ],
)
def test_other_refusals_name_file_and_remedy(
    hub: FakeHub, planner: Planner, status: int, remedy: str
) -> None:
    hub.status = status
    text = refused(planner, CHECKPOINT)
    assert "checkpoint_best.pth of hlwu/DeltaVLM" in text
    assert str(status) in text
    assert any(words in text for words in remedy.split("|"))


def test_an_http_error_after_the_plan_is_not_reported_as_a_missing_network(
    hub: FakeHub, planner: Planner
) -> None:
    """huggingface_hub then says "check your connection" and hides the response in the cause."""
    planned = planner(CHECKPOINT)
    hub.status = 503
    assert "cannot get checkpoint_best.pth of hlwu/DeltaVLM (HTTP 503)" in refused(fetch, planned)


def test_a_page_of_a_proxy_is_not_the_hub(hub: FakeHub, planner: Planner) -> None:
    hub.page = b"<html>please log in</html>"
    assert "does not answer as the Hub does" in refused(planner, CHECKPOINT)


@pytest.mark.parametrize(
    ("component", "name"), [(CHECKPOINT, "checkpoint_best.pth"), (VOCABULARY, "vocab.txt")]
)
def test_a_damaged_file_is_an_error_with_its_remedy(
    hub: FakeHub, planner: Planner, component: str, name: str
) -> None:
    """sha256 of a large file, git's sha1 of a small one; deleting what the message names helps."""
    good = repo_of(hub, component).files[name]
    repo_of(hub, component).originals[name] = good
    repo_of(hub, component).files[name] = good[:-1] + b"#"
    text = refused(fetch, planner(component))
    assert f"{name} of {REPOS[component]} differs from its checksum; delete " in text
    assert "differs from its checksum" in refused(fetch, planner(component, offline=True))
    assert fetch(planner(component), check=False).components[0].unchecked  # not looked at

    repo_of(hub, component).files[name] = good
    refused(fetch, planner(component))  # the cache still has the bad one
    Path(text.split("delete ")[1].split(" and fetch")[0]).unlink()
    assert (fetch(planner(component)).components[0].folder / name).read_bytes() == good


def test_a_file_of_another_size_is_an_error(planner: Planner) -> None:
    planned = planner(CHECKPOINT)
    fetched = fetch(planned)
    fetched.path(CHECKPOINT).resolve().write_bytes(b"cut")
    assert "checkpoint_best.pth of hlwu/DeltaVLM has 3 bytes, not 3000" in refused(fetch, planned)


def test_a_cache_that_cannot_be_written(hub: FakeHub, planner: Planner, cache: Path) -> None:
    cache.write_text("a file")
    text = refused(planner, VISION, kind=OutputError)
    assert str(cache) in text
    assert "`cache_dir`" in text
    assert str(cache) in refused(fetch, planner(CHECKPOINT), kind=OutputError)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            WriteError,
            "is full, while fetching hlwu/DeltaVLM",
        ),
        (
            OSError("Consistency check failed: file should be\nlonger"),
            InputError,
            "failed (Consistency check",
        ),
        (RuntimeError("xet: data processing"), InputError, "HF_HUB_DISABLE_XET=1"),
        (TimeoutError("timed out"), InputError, "no connection to"),
    ],
)
def test_a_download_that_fails(
    planner: Planner,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[DeltaVLMError],
    says: str,
) -> None:
    planned = planner(CHECKPOINT)

    def broken(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert says in refused(fetch, planned, kind=kind)


def test_progress_bars_are_restored(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    states: list[bool] = []
    real = huggingface_hub.snapshot_download

    def spy(*args: Any, **options: Any) -> Any:
        states.append(are_progress_bars_disabled())
        return real(*args, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", spy)
    before = are_progress_bars_disabled()
    fetch(planner(VOCABULARY), progress=False)
    fetch(planner(VOCABULARY), progress=True)
    assert states == [True, before]
    assert are_progress_bars_disabled() == before


def test_import_is_light() -> None:
    code = (
        "import sys, deltavlm.upstream.fetch; print(sorted({'torch', 'huggingface_hub'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_components_can_be_replaced(hub: FakeHub, cache: Path) -> None:
    """timm's base, and a repository under its other name."""
    hub.repos["hanlinwu/DeltaVLM"] = hub.repos.pop(REPOS[CHECKPOINT])
    hub.repos[TIMM_BASE.repo] = FakeRepo({"model.safetensors": b"eva"}, commit_of("timm"))
    components = (replace(COMPONENTS[0], repo="hanlinwu/DeltaVLM"), TIMM_BASE)
    fetched: Fetched = fetch(plan(components, cache_dir=cache, endpoint=hub.endpoint))
    assert [component.repo for component in fetched.components] == ["hanlinwu/DeltaVLM", TIMM_BASE.repo]
    assert (fetched.path(VISION) / "model.safetensors").read_bytes() == b"eva"


# ---- the command


@pytest.fixture
def small(
    hub: FakeHub, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`deltavlm weights fetch` on a Hub that has the original's files at small size."""
    llm, bert = GOLDEN / "vicuna-7b-v1.5", GOLDEN / "bert-base-uncased"
    base = as_instructblip(GOLDEN / "eva_vit_g.pth", tmp_path / "instructblip")
    repo_of(hub, CHECKPOINT).files = {"checkpoint_best.pth": (GOLDEN / "checkpoint_best.pth").read_bytes()}
    repo_of(hub, LANGUAGE).files = {path.name: path.read_bytes() for path in llm.iterdir()}
    repo_of(hub, VOCABULARY).files = {path.name: path.read_bytes() for path in bert.iterdir()}
    repo_of(hub, VISION).files = {path.name: path.read_bytes() for path in base.iterdir()}
    monkeypatch.setattr("deltavlm.upstream.plan.plan", partial(plan, endpoint=hub.endpoint))
    monkeypatch.setenv("DELTAVLM_HOME", str(tmp_path / "home"))

    def run(*args: object) -> Result:
        words = ["weights", "fetch", "deltavlm-7b", "--cache-dir", cache, *args]
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


def test_the_command_makes_a_model_with_a_name(small: Callable[..., Result], hub: FakeHub) -> None:
    planned = small("--dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "checkpoint: hlwu/DeltaVLM at main" in planned.stderr
    assert "terms: " in planned.stderr
    assert hub.downloads() == []
    result = small("--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["parts"]["hlwu/DeltaVLM"]["commit"] == repo_of(hub, CHECKPOINT).commit
    assert models()["deltavlm-7b"] == Path(record["output"])
    config = read_config(find_folder("deltavlm-7b"))
    assert config.vision.depth == 3
    assert config.sources["language"] == f"lmsys/vicuna-7b-v1.5@{repo_of(hub, LANGUAGE).commit[:12]}"
    assert config.sources["checkpoint"].startswith("hlwu/DeltaVLM@")
    assert "exists already" in refused_line(small())


def test_the_command_uses_local_files_and_works_offline(
    small: Callable[..., Result], hub: FakeHub, tmp_path: Path
) -> None:
    local = ("--vision", GOLDEN / "eva_vit_g.pth", "--llm", GOLDEN / "vicuna-7b-v1.5")
    pin = ("--revision", f"hlwu/DeltaVLM={repo_of(hub, CHECKPOINT).commit}")
    assert small(*local, *pin, "--no-convert").exit_code == 0
    assert hub.downloads() == ["checkpoint_best.pth", "config.json", "vocab.txt"]
    assert models().keys() == {"nano"}
    hub.stop()
    result = small(*local, *pin, "--offline", "--link-llm", "-o", tmp_path / "mine")
    assert result.exit_code == 0, result.stderr
    assert read_config(tmp_path / "mine").language.folder == str(GOLDEN / "vicuna-7b-v1.5")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--revision", "hlwu/DeltaVLM"), "is not REPO=COMMIT"),
        (("--revision", "hlwu/DeltaVML=abc"), "did you mean 'hlwu/DeltaVLM'?"),
        (("--revision", "hlwu/DeltaVLM=abc"), "it has no revision 'abc'"),
        (("--vision", "nowhere.pth"), "no file nowhere.pth"),
        (("--offline",), "is not in the cache"),
    ],
)
def test_errors_of_the_command(small: Callable[..., Result], args: tuple[str, ...], words: str) -> None:
    assert words in refused_line(small(*args))


def test_the_command_checks_the_space_for_the_checkpoint(
    small: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "free_bytes", lambda folder: 2_000_000)
    assert "give -o on another disk, or --link-llm" in refused_line(small())


def refused_line(result: Result) -> str:
    """Last line on stderr of a command that failed."""
    assert result.exit_code == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    return last
