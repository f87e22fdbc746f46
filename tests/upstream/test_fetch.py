"""Downloads, against a Hub of our own on this machine: the few questions that huggingface_hub asks one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

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
from tests.upstream.conftest import GOLDEN
from tests.upstream.test_convert import as_instructblip

pytestmark = pytest.mark.network

PINNED = {component.name: component.revision for component in COMPONENTS}
REPOS = {component.name: component.repo for component in COMPONENTS}
LARGE = (".pth", ".bin", ".safetensors", ".model")  # what the Hub keeps under sha256
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


@dataclass
class Repo:
    """A repository at one commit."""

    files: dict[str, bytes]
    commit: str
    gated: bool = False
    tells_gated: bool = True
    told: dict[str, bytes] = field(default_factory=dict)  # what the checksums are of, where they lie

    def entry(self, name: str) -> tuple[int, str, str | None]:
        """(size, git's sha1, sha256 of a large file)."""
        content = self.told.get(name, self.files[name])
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        large = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else None
        return len(content), blob, large


@dataclass
class Hub:
    """What the server knows, and what it was asked."""

    repos: dict[str, Repo]
    endpoint: str = ""
    status: int = 200  # of every answer, if another
    page: bytes | None = None  # in place of every answer
    broken: str = ""  # a file that is not sent
    asked: list[str] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    def __getitem__(self, part: str) -> Repo:
        return self.repos[REPOS[part]]

    def downloads(self) -> list[str]:
        """Names of the files that were sent since the last call."""
        sent = [line.split("/")[-1] for line in self.asked if line.startswith("GET ") and "/resolve/" in line]
        self.asked.clear()
        return sorted(sent)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.status != 200 or self.hub.page is not None:
            return self.send(self.hub.status, self.hub.page or b"")
        pieces = path.strip("/").removeprefix("api/models/").split("/")
        repo = self.hub.repos.get("/".join(pieces[:2]))
        if repo is None:
            return self.send(401, X_Error_Code="RepoNotFound")
        verb, *rest = pieces[2:]
        shut = repo.gated and "authorization" not in self.headers
        if verb == "auth-check":
            return self.send(401, X_Error_Code="GatedRepo") if repo.gated else self.send(200)
        if rest[0] not in ("main", repo.commit):
            return self.send(404, X_Error_Code="RevisionNotFound")
        if verb == "revision":
            return self.send_json(self.info("/".join(pieces[:2]), repo))
        if verb == "tree":
            return self.send_json([self.tree_entry(repo, name) for name in repo.files])
        if shut:
            return self.send(401, X_Error_Code="GatedRepo")
        if self.command == "GET" and rest[1] == self.hub.broken:
            return self.send(500)
        size, blob, large = repo.entry(rest[1])
        return self.send(
            200,
            repo.files[rest[1]],
            ETag=f'"{large or blob}"',
            X_Linked_Etag=f'"{large or blob}"',
            X_Linked_Size=str(size),
            X_Repo_Commit=repo.commit,
        )

    def info(self, name: str, repo: Repo) -> dict[str, Any]:
        siblings = []
        for file in repo.files:
            size, blob, large = repo.entry(file)
            lfs = {"lfs": {"sha256": large, "size": size, "pointerSize": 130}} if large else {}
            siblings.append({"rfilename": file, "size": size, "blobId": blob, **lfs})
        gated = "manual" if repo.gated and repo.tells_gated else False
        return {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "gated": gated}

    def tree_entry(self, repo: Repo, file: str) -> dict[str, Any]:
        size, blob, large = repo.entry(file)
        lfs = {"lfs": {"oid": large, "size": size, "pointerSize": 130}} if large else {}
        return {"type": "file", "path": file, "size": size, "oid": blob, **lfs}


def published() -> dict[str, Repo]:
    """The four repositories, small, with files beside those that are wanted."""
    return {
        REPOS[CHECKPOINT]: Repo(
            {"checkpoint_best.pth": b"c" * 3000, "README.md": b"card", "configs/evaluate.yaml": b"y"},
            commit_of("checkpoint"),
        ),
        REPOS[LANGUAGE]: Repo(
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
        REPOS[VOCABULARY]: Repo(
            {
                "vocab.txt": b"[PAD]\n[CLS]\n",
                "config.json": b"{}",
                "tokenizer.json": b"{}",
                "model.safetensors": b"bert",
                "pytorch_model.bin": b"bert",
            },
            PINNED[VOCABULARY],
        ),
        REPOS[VISION]: Repo(
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
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = Hub(published())
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()

    def stop() -> None:
        if thread.is_alive():
            server.shutdown()
            server.server_close()
            thread.join()

    hub.endpoint, hub.stop = f"http://127.0.0.1:{server.server_address[1]}", stop
    huggingface_hub.close_session()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        stop()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def asked(hub: Hub, cache: Path) -> Callable[..., Plan]:
    """`plan` of this Hub and this cache."""

    def ask(*names: str, **options: Any) -> Plan:
        components = [component for component in COMPONENTS if not names or component.name in names]
        return plan(components, cache_dir=cache, endpoint=hub.endpoint, **options)

    return ask


def refused(
    call: Callable[..., object], *args: Any, kind: type[DeltaVLMError] = InputError, **options: Any
) -> str:
    """The one line that a call is refused with; exactly that class, for its exit code."""
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_of(planned: Plan, part: str) -> list[str]:
    return next(
        [file.name for file in item.planned.files]
        for item in planned.components
        if item.component.name == part
    )


# ---- the plan


def test_plan_weighs_the_wanted_files_and_nothing_else(hub: Hub, asked: Callable[..., Plan]) -> None:
    planned = asked()
    index, second = len(index_of(WEIGHT_MAP)), 1000
    by_name = {item.component.name: item for item in planned.components}
    assert {name: item.planned.commit for name, item in by_name.items()} == {
        name: hub[name].commit for name in REPOS
    }
    assert by_name[CHECKPOINT].planned.size == by_name[CHECKPOINT].planned.missing == 3000
    assert by_name[VOCABULARY].planned.size == len(b"[PAD]\n[CLS]\n{}")
    assert names_of(planned, VOCABULARY) == ["config.json", "vocab.txt"]
    assert by_name[VISION].planned.size == index + second
    assert by_name[VISION].planned.missing == second  # the index was read already
    assert planned.size == sum(item.planned.size for item in planned.components)
    assert hub.downloads() == ["model.safetensors.index.json"]


def test_plan_takes_the_shards_that_hold_the_vision_tower(hub: Hub, asked: Callable[..., Plan]) -> None:
    planned = asked(VISION)
    assert names_of(planned, VISION) == ["model-00002-of-00003.safetensors", "model.safetensors.index.json"]
    assert planned.components[0].planned.skipped == (
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    )
    assert "without 2 weight files that hold no vision_model.*" in "\n".join(planned.lines())


def test_plan_takes_a_whole_vision_base_that_has_no_index(hub: Hub, asked: Callable[..., Plan]) -> None:
    hub[VISION].files = {"model.safetensors": b"all", "tokenizer.model": b"of another"}
    assert names_of(asked(VISION), VISION) == ["model.safetensors"]


def test_a_vision_base_without_a_tower_is_refused(hub: Hub, asked: Callable[..., Plan]) -> None:
    hub[VISION].files["model.safetensors.index.json"] = index_of(
        {"lm_head.weight": "model-00001-of-00003.safetensors"}
    )
    text = refused(asked, VISION)
    assert "vision_model.* in model.safetensors.index.json" in text
    assert "eva_vit_g.pth" in text


def test_an_index_that_names_an_absent_shard_is_refused(hub: Hub, asked: Callable[..., Plan]) -> None:
    del hub[VISION].files["model-00002-of-00003.safetensors"]
    assert f"has no model-00002-of-00003.safetensors at {PINNED[VISION]}" in refused(asked, VISION)


def test_an_index_that_is_none_is_refused_with_its_place(
    hub: Hub, asked: Callable[..., Plan], cache: Path
) -> None:
    hub[VISION].files["model.safetensors.index.json"] = b"[]"
    text = refused(asked, VISION)
    blob = Path(text.split("delete ")[1].split(" and fetch")[0])
    assert blob.is_file()
    assert blob.is_relative_to(cache)


def test_language_weights_are_pickles_only_where_there_are_no_safetensors(
    hub: Hub, asked: Callable[..., Plan]
) -> None:
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
    assert set(names_of(asked(LANGUAGE), LANGUAGE)) == few | pickles
    tensors = shards(2) | {"model.safetensors.index.json": b"{}"}
    hub[LANGUAGE].files |= tensors
    assert set(names_of(asked(LANGUAGE), LANGUAGE)) == few | set(tensors)


@pytest.mark.parametrize(
    ("part", "gone", "named"),
    [
        (CHECKPOINT, "checkpoint_best.pth", "checkpoint_best.pth"),
        (LANGUAGE, "tokenizer.model", "tokenizer.model"),
        (LANGUAGE, "pytorch_model", "weights (model*.safetensors or pytorch_model*.bin)"),
        (VOCABULARY, "vocab.txt", "vocab.txt"),
    ],
)
def test_a_repository_without_a_needed_file_is_refused(
    hub: Hub, asked: Callable[..., Plan], part: str, gone: str, named: str
) -> None:
    hub[part].files = {name: c for name, c in hub[part].files.items() if not name.startswith(gone)}
    assert f"{REPOS[part]} has no {named} at {PINNED[part]}" in refused(asked, part)


def test_plan_tells_sizes_and_every_licence(asked: Callable[..., Plan]) -> None:
    planned = asked()
    told = "\n".join(planned.lines())
    for component in COMPONENTS:
        assert component.repo in told
        assert component.licence in told
    assert "checkpoint_best.pth, 3.0 kB, to be downloaded" in told
    assert f"total {format_bytes(planned.size)}" in told
    assert f"{format_bytes(planned.free)} free in {planned.hub.cache_dir}" in told


def test_licences_say_what_is_open() -> None:
    terms = {component.name: component.licence for component in COMPONENTS}
    assert "no licence file" in terms[CHECKPOINT]
    assert '"other"' in terms[CHECKPOINT]
    assert "LEVIR" in terms[CHECKPOINT]
    assert "Llama 2 Community License" in terms[LANGUAGE]
    assert "research" in terms[VISION]


def test_a_vision_base_that_is_there_is_not_fetched(
    hub: Hub, asked: Callable[..., Plan], tmp_path: Path
) -> None:
    given = tmp_path / "eva_vit_g.pth"
    assert "eva_vit_g.pth" in refused(asked, vision=given)
    given.write_bytes(b"weights")
    planned = asked(vision=given)
    assert [item.component.name for item in planned.components] == [CHECKPOINT, LANGUAGE, VOCABULARY]
    assert str(given) in "\n".join(planned.lines())
    assert fetch(planned).path(VISION) == given
    assert not any(REPOS[VISION] in line for line in hub.asked)


def test_a_revision_is_asked_for_by_part(hub: Hub, asked: Callable[..., Plan]) -> None:
    commit = hub[CHECKPOINT].commit
    planned = asked(revisions={CHECKPOINT: commit})
    assert [item.component.revision for item in planned.components] == [commit, *list(PINNED.values())[1:]]
    text = refused(asked, CHECKPOINT, revisions={CHECKPOINT: "v9"})
    assert "checkpoint_best.pth of hlwu/DeltaVLM" in text
    assert "no revision 'v9'" in text
    assert "'checkpoints', which is no component; the components are checkpoint, " in refused(
        asked, revisions={"checkpoints": "v9"}
    )


# ---- the download


def test_fetch_fills_the_cache_once(hub: Hub, asked: Callable[..., Plan], cache: Path) -> None:
    planned = asked()
    hub.downloads()
    said: list[str] = []
    fetched = fetch(planned, notify=said.append)
    wanted = [name for part in REPOS for name in names_of(planned, part)]
    wanted.remove("model.safetensors.index.json")  # came with the plan
    assert hub.downloads() == sorted(wanted)
    for component in fetched.components:
        assert component.repo == REPOS[component.name]
        assert component.commit == hub[component.name].commit
        assert component.folder.is_relative_to(cache)
        assert component.unchecked == ()
        held = {path.name: path.read_bytes() for path in component.folder.iterdir()}
        assert held == {name: hub[component.name].files[name] for name in names_of(planned, component.name)}
    assert "fetching checkpoint from hlwu/DeltaVLM: 3.0 kB" in said

    again = asked()
    assert again.missing == 0
    assert "all in the cache" in again.lines()[-1]
    assert fetch(again) == fetched
    assert hub.downloads() == []


def test_whole_files_stay_when_a_fetch_breaks_off(hub: Hub, asked: Callable[..., Plan]) -> None:
    hub.broken = "pytorch_model-00002-of-00002.bin"
    planned = asked(LANGUAGE)
    text = refused(fetch, planned)
    assert "cannot get pytorch_model-00002-of-00002.bin of lmsys/vicuna-7b-v1.5 (HTTP 500)" in text
    hub.broken = ""
    there = {file.name for item in asked(LANGUAGE).components for file in item.planned.files if file.cached}
    assert there
    hub.downloads()
    fetch(asked(LANGUAGE))
    assert set(hub.downloads()) == set(names_of(planned, LANGUAGE)) - there


def test_paths_are_what_convert_reads(asked: Callable[..., Plan]) -> None:
    fetched = fetch(asked())
    folder = {component.name: component.folder for component in fetched.components}
    assert fetched.path(CHECKPOINT) == folder[CHECKPOINT] / "checkpoint_best.pth"
    assert fetched.path(VISION) == folder[VISION] / "model-00002-of-00003.safetensors"
    assert fetched.path(LANGUAGE) == folder[LANGUAGE]
    assert fetched.path(VOCABULARY) == folder[VOCABULARY]


def test_several_vision_shards_are_read_without_the_others(hub: Hub, asked: Callable[..., Plan]) -> None:
    """The repository's own index would ask for the shards that were left out."""
    from deltavlm.upstream.read import shards as shards_of

    tower = {f"vision_model.{n}": f"model-0000{n}-of-00003.safetensors" for n in (1, 2)}
    hub[VISION].files["model.safetensors.index.json"] = index_of(WEIGHT_MAP | tower)
    fetched = fetch(asked(VISION))
    folder = fetched.components[0].folder
    with pytest.raises(InputError, match="00003-of-00003"):
        shards_of(folder)
    assert shards_of(fetched.path(VISION)) == [folder / name for name in sorted(tower.values())]


def test_offline_finds_what_was_fetched(hub: Hub, asked: Callable[..., Plan]) -> None:
    online = fetch(asked())
    hub.stop()
    planned = asked(offline=True)
    assert planned.missing == 0
    assert fetch(planned) == online
    pins = {component.name: component.commit for component in online.components}
    assert fetch(asked(offline=True, revisions=pins)) == online


def test_offline_weighs_and_checks_like_online(hub: Hub, asked: Callable[..., Plan]) -> None:
    fetch(asked())
    assert [item.planned.files for item in asked(offline=True).components] == [
        item.planned.files for item in asked().components
    ]


def test_the_librarys_own_switch_means_offline(
    hub: Hub, asked: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(asked(VOCABULARY))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert asked(VOCABULARY).hub.offline
    assert "checkpoint_best.pth" in refused(asked)


def test_offline_with_an_empty_cache_names_the_first_file(
    hub: Hub, asked: Callable[..., Plan], cache: Path
) -> None:
    text = refused(asked, offline=True)
    assert f"checkpoint_best.pth of hlwu/DeltaVLM at main is not in the cache {cache}" in text
    assert "without --offline" in text
    assert hub.asked == []


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        (LANGUAGE, "pytorch_model-00002-of-00002.bin"),
        (LANGUAGE, "tokenizer.model"),
        (VOCABULARY, "vocab.txt"),
        (VISION, "model-00002-of-00003.safetensors"),
    ],
)
def test_offline_with_half_a_part_names_what_is_not_there(
    asked: Callable[..., Plan], part: str, gone: str
) -> None:
    fetched = fetch(asked(part))
    (fetched.components[0].folder / gone).unlink()
    assert f"{gone} of {REPOS[part]}" in refused(asked, part, offline=True)


def test_offline_fetch_looks_again(asked: Callable[..., Plan], cache: Path) -> None:
    fetch(asked(VOCABULARY))
    planned = asked(VOCABULARY, offline=True)
    shutil.rmtree(cache)
    assert "not in the cache" in refused(fetch, planned)


def test_a_blob_of_an_older_commit_counts_as_there(hub: Hub, asked: Callable[..., Plan]) -> None:
    fetch(asked(CHECKPOINT))
    hub[CHECKPOINT].commit = commit_of("a new card")
    hub.downloads()
    planned = asked(CHECKPOINT)
    assert planned.missing == 0
    assert fetch(planned).components[0].commit == commit_of("a new card")
    assert hub.downloads() == []


def test_a_repository_that_moves_on_is_told(hub: Hub, asked: Callable[..., Plan]) -> None:
    planned = asked(CHECKPOINT)
    before, hub[CHECKPOINT].commit = hub[CHECKPOINT].commit, commit_of("moved")
    text = refused(fetch, planned)
    assert before[:12] in text
    assert commit_of("moved")[:12] in text


# ---- bad input


def test_too_little_disk(
    hub: Hub, asked: Callable[..., Plan], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = asked()
    hub.downloads()
    usage = shutil.disk_usage(cache)._replace(free=planned.missing - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    text = refused(fetch, planned)
    assert f"{format_bytes(planned.missing)} are to be downloaded" in text
    assert f"{cache} has {format_bytes(planned.missing - 1)} free" in text
    assert "pytorch_model-00001-of-00002.bin of lmsys/vicuna-7b-v1.5 the largest (5.0 kB)" in text
    assert "free 1 B more, or give a --cache-dir" in text
    assert hub.asked == []  # nothing was begun
    orphan = cache / "models--a--b" / "blobs" / "x.incomplete"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"x" * 2000)
    assert "2.0 kB taken by broken downloads (*.incomplete)" in refused(fetch, planned)

    usage = usage._replace(free=planned.missing)
    fetch(planned)


def test_free_disk_is_that_of_the_nearest_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    real = shutil.disk_usage

    def usage(place: Path) -> Any:
        asked.append(place)
        return real(place)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    files.free_bytes(tmp_path / "not" / "yet")
    assert asked == [tmp_path]


def test_no_network(hub: Hub, asked: Callable[..., Plan]) -> None:
    planned = asked(CHECKPOINT)
    hub.stop()
    for text in (refused(asked, CHECKPOINT), refused(fetch, planned)):
        assert "cannot get checkpoint_best.pth of hlwu/DeltaVLM: no connection to http://127.0.0.1" in text
        assert "refused" in text
        assert "--offline" in text


def test_a_gated_repository_is_refused_before_anything_is_fetched(
    hub: Hub, asked: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub[LANGUAGE].gated = True
    text = refused(asked, LANGUAGE)
    assert "tokenizer.model of lmsys/vicuna-7b-v1.5 is gated" in text
    assert f"accept the terms at {hub.endpoint}/lmsys/vicuna-7b-v1.5" in text
    assert "`hf auth login` or set HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
    text = refused(asked, LANGUAGE)
    assert "account of the token that is set" in text
    assert "hf auth login" not in text


def test_a_gate_that_shows_only_at_the_file(hub: Hub, asked: Callable[..., Plan]) -> None:
    hub[CHECKPOINT].gated, hub[CHECKPOINT].tells_gated = True, False
    text = refused(fetch, asked(CHECKPOINT))
    assert "checkpoint_best.pth of hlwu/DeltaVLM is gated" in text
    assert "hanlinwu/DeltaVLM" in text


def test_a_repository_that_is_not_there(hub: Hub, asked: Callable[..., Plan]) -> None:
    del hub.repos[REPOS[VISION]]
    text = refused(asked)
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
    hub: Hub, asked: Callable[..., Plan], status: int, remedy: str
) -> None:
    hub.status = status
    text = refused(asked, CHECKPOINT)
    assert "checkpoint_best.pth of hlwu/DeltaVLM" in text
    assert str(status) in text
    assert any(one in text for one in remedy.split("|"))


def test_trouble_after_the_plan_is_not_called_a_missing_network(hub: Hub, asked: Callable[..., Plan]) -> None:
    """huggingface_hub says "check your connection" then, and hides the answer in the cause."""
    planned = asked(CHECKPOINT)
    hub.status = 503
    assert "cannot get checkpoint_best.pth of hlwu/DeltaVLM (HTTP 503)" in refused(fetch, planned)


def test_a_page_of_a_proxy_is_not_the_hub(hub: Hub, asked: Callable[..., Plan]) -> None:
    hub.page = b"<html>please log in</html>"
    assert "does not answer as the Hub does" in refused(asked, CHECKPOINT)


@pytest.mark.parametrize(("part", "name"), [(CHECKPOINT, "checkpoint_best.pth"), (VOCABULARY, "vocab.txt")])
def test_a_damaged_file_is_told_with_its_remedy(
    hub: Hub, asked: Callable[..., Plan], part: str, name: str
) -> None:
    """sha256 of a large file, git's sha1 of a small one; deleting what the message names helps."""
    good = hub[part].files[name]
    hub[part].told[name] = good
    hub[part].files[name] = good[:-1] + b"#"
    text = refused(fetch, asked(part))
    assert f"{name} of {REPOS[part]} differs from its checksum; delete " in text
    assert "differs from its checksum" in refused(fetch, asked(part, offline=True))
    assert fetch(asked(part), check=False).components[0].unchecked  # not looked at

    hub[part].files[name] = good
    refused(fetch, asked(part))  # the cache still has the bad one
    Path(text.split("delete ")[1].split(" and fetch")[0]).unlink()
    assert (fetch(asked(part)).components[0].folder / name).read_bytes() == good


def test_a_file_of_another_size_is_told(asked: Callable[..., Plan]) -> None:
    planned = asked(CHECKPOINT)
    fetched = fetch(planned)
    fetched.path(CHECKPOINT).resolve().write_bytes(b"cut")
    assert "checkpoint_best.pth of hlwu/DeltaVLM has 3 bytes, not 3000" in refused(fetch, planned)


def test_a_cache_that_cannot_be_written(hub: Hub, asked: Callable[..., Plan], cache: Path) -> None:
    cache.write_text("a file")
    text = refused(asked, VISION, kind=OutputError)
    assert str(cache) in text
    assert "--cache-dir" in text
    assert str(cache) in refused(fetch, asked(CHECKPOINT), kind=OutputError)


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
def test_a_download_that_breaks_off(
    asked: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[DeltaVLMError],
    says: str,
) -> None:
    planned = asked(CHECKPOINT)

    def broken(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert says in refused(fetch, planned, kind=kind)


def test_progress_bars_are_left_as_they_were(
    asked: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    seen: list[bool] = []
    real = huggingface_hub.snapshot_download

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(are_progress_bars_disabled())
        return real(*args, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", spy)
    before = are_progress_bars_disabled()
    fetch(asked(VOCABULARY), progress=False)
    fetch(asked(VOCABULARY), progress=True)
    assert seen == [True, before]
    assert are_progress_bars_disabled() == before


def test_import_is_light() -> None:
    code = (
        "import sys, deltavlm.upstream.fetch; print(sorted({'torch', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_components_can_be_replaced(hub: Hub, cache: Path) -> None:
    """timm's base, and a repository under its other name."""
    hub.repos["hanlinwu/DeltaVLM"] = hub.repos.pop(REPOS[CHECKPOINT])
    hub.repos[TIMM_BASE.repo] = Repo({"model.safetensors": b"eva"}, commit_of("timm"))
    components = (replace(COMPONENTS[0], repo="hanlinwu/DeltaVLM"), TIMM_BASE)
    fetched: Fetched = fetch(plan(components, cache_dir=cache, endpoint=hub.endpoint))
    assert [component.repo for component in fetched.components] == ["hanlinwu/DeltaVLM", TIMM_BASE.repo]
    assert (fetched.path(VISION) / "model.safetensors").read_bytes() == b"eva"


# ---- the command


@pytest.fixture
def small(hub: Hub, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`deltavlm weights fetch` on a Hub that has the original's files at small size."""
    llm, bert = GOLDEN / "vicuna-7b-v1.5", GOLDEN / "bert-base-uncased"
    base = as_instructblip(GOLDEN / "eva_vit_g.pth", tmp_path / "instructblip")
    hub[CHECKPOINT].files = {"checkpoint_best.pth": (GOLDEN / "checkpoint_best.pth").read_bytes()}
    hub[LANGUAGE].files = {path.name: path.read_bytes() for path in llm.iterdir()}
    hub[VOCABULARY].files = {path.name: path.read_bytes() for path in bert.iterdir()}
    hub[VISION].files = {path.name: path.read_bytes() for path in base.iterdir()}
    monkeypatch.setattr("deltavlm.upstream.plan.plan", partial(plan, endpoint=hub.endpoint))
    monkeypatch.setenv("DELTAVLM_HOME", str(tmp_path / "home"))

    def run(*args: object) -> Result:
        words = ["weights", "fetch", "deltavlm-7b", "--cache-dir", cache, *args]
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


def test_the_command_ends_with_a_model_that_is_known_by_name(small: Callable[..., Result], hub: Hub) -> None:
    planned = small("--dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "checkpoint: hlwu/DeltaVLM at main" in planned.stderr
    assert "terms: " in planned.stderr
    assert hub.downloads() == []
    done = small("--json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["parts"]["hlwu/DeltaVLM"]["commit"] == hub[CHECKPOINT].commit
    assert models()["deltavlm-7b"] == Path(record["output"])
    config = read_config(find_folder("deltavlm-7b"))
    assert config.vision.depth == 3
    assert config.sources["language"] == f"lmsys/vicuna-7b-v1.5@{hub[LANGUAGE].commit[:12]}"
    assert config.sources["checkpoint"].startswith("hlwu/DeltaVLM@")
    assert "exists already" in refused_line(small())


def test_the_command_takes_what_is_here_and_works_offline(
    small: Callable[..., Result], hub: Hub, tmp_path: Path
) -> None:
    given = ("--vision", GOLDEN / "eva_vit_g.pth", "--llm", GOLDEN / "vicuna-7b-v1.5")
    pin = ("--revision", f"hlwu/DeltaVLM={hub[CHECKPOINT].commit}")
    assert small(*given, *pin, "--no-convert").exit_code == 0
    assert hub.downloads() == ["checkpoint_best.pth", "config.json", "vocab.txt"]
    assert models().keys() == {"nano"}
    hub.stop()
    done = small(*given, *pin, "--offline", "--link-llm", "-o", tmp_path / "mine")
    assert done.exit_code == 0, done.stderr
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
def test_the_command_says_what_is_wrong(
    small: Callable[..., Result], args: tuple[str, ...], words: str
) -> None:
    assert words in refused_line(small(*args))


def test_the_command_leaves_room_for_the_checkpoint(
    small: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "free_bytes", lambda folder: 2_000_000)
    assert "give -o on another disk, or --link-llm" in refused_line(small())


def refused_line(result: Result) -> str:
    """The last line of stderr, of a command that was refused."""
    assert result.exit_code == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    return last
