"""ChangeChat-105k's files, from a Hub of our own on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from deltavlm.data import fetch as module
from deltavlm.data.changechat import RELEASED_RECORDS
from deltavlm.data.fetch import REPO, REVISION, Plan, fetch, plan
from deltavlm.errors import DeltaVLMError, InputError, OutputError, WriteError
from tests.cli.conftest import one_line

pytestmark = pytest.mark.network

LARGE = "changechat_105k_train.json"  # kept under sha256, the others under git's sha1


@dataclass
class Hub:
    """The data set at one commit, and what the server was asked."""

    files: dict[str, bytes]
    commit: str = REVISION
    endpoint: str = ""
    status: int = 200  # of every answer, if another
    page: bytes | None = None  # in place of every answer
    asked: list[str] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    def entry(self, name: str) -> tuple[int, str, str | None]:
        """(size, git's sha1, sha256 of a large file)."""
        content = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return len(content), blob, hashlib.sha256(content).hexdigest() if name == LARGE else None

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

    def do_GET(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.hub
        hub.asked.append(f"{self.command} {path}")
        if hub.status != 200 or hub.page is not None:
            return self.send(hub.status, hub.page or b"")
        _, inside, rest = path.partition(f"datasets/{REPO}/")
        verb, revision, *names = rest.split("/")
        if not inside:
            return self.send(401, X_Error_Code="RepoNotFound")
        if revision not in ("main", hub.commit):
            return self.send(404, X_Error_Code="RevisionNotFound")
        if verb in ("revision", "tree"):
            return self.send(200, json.dumps(self.told(verb)).encode(), Content_Type="application/json")
        size, blob, large = hub.entry(names[0])
        tag = f'"{large or blob}"'
        told = {"ETag": tag, "X_Linked_Etag": tag, "X_Linked_Size": str(size), "X_Repo_Commit": hub.commit}
        return self.send(200, hub.files[names[0]], **told)

    def told(self, verb: str) -> Any:
        siblings, tree = [], []
        for name in self.hub.files:
            size, blob, large = self.hub.entry(name)
            lfs = {"sha256": large, "oid": large, "size": size, "pointerSize": 130}
            extra = {"lfs": lfs} if large else {}
            siblings.append({"rfilename": name, "size": size, "blobId": blob, **extra})
            tree.append({"type": "file", "path": name, "size": size, "oid": blob, **extra})
        return tree if verb == "tree" else {"id": REPO, "sha": self.hub.commit, "siblings": siblings}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = Hub({name: f'["{name}"]'.encode() for name in RELEASED_RECORDS} | {"README.md": b"card"})
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
def asked(hub: Hub, tmp_path: Path) -> Callable[..., Plan]:
    return lambda **options: plan(cache_dir=tmp_path / "cache", endpoint=hub.endpoint, **options)


def refused(
    call: Callable[..., object], *args: Any, kind: type[DeltaVLMError] = InputError, **options: Any
) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_eight_files_are_weighed_and_fetched_once(
    hub: Hub, asked: Callable[..., Plan], tmp_path: Path
) -> None:
    planned = asked()
    assert {file.name for file in planned.files} == set(RELEASED_RECORDS)
    assert planned.size == planned.missing == sum(len(hub.files[name]) for name in RELEASED_RECORDS)
    assert hub.downloads() == []
    said: list[str] = []
    files = fetch(planned, tmp_path / "set", notify=said.append)
    assert hub.downloads() == sorted(RELEASED_RECORDS)
    assert {path.name: path.read_bytes() for path in files} == {
        name: hub.files[name] for name in RELEASED_RECORDS
    }
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted(RELEASED_RECORDS)
    assert len(said) == 8
    again = asked()
    assert again.missing == 0
    said.clear()
    assert fetch(again, tmp_path / "set", notify=said.append) == files
    assert (hub.downloads(), said) == ([], [])


def test_offline_takes_what_was_fetched(hub: Hub, asked: Callable[..., Plan], tmp_path: Path) -> None:
    assert "is not in the cache" in refused(asked, offline=True)
    online = asked()
    fetch(online, tmp_path / "one")
    hub.stop()
    planned = asked(offline=True)
    assert (planned.commit, planned.missing, planned.hub.offline) == (online.commit, 0, True)
    assert [file.digest for file in planned.files] == [file.digest for file in online.files]
    fetch(planned, tmp_path / "two")
    assert (tmp_path / "two" / LARGE).read_bytes() == hub.files[LARGE]
    assert asked(offline=True, revision=online.commit).commit == online.commit
    shutil.rmtree(tmp_path / "cache")
    assert "is not in the cache" in refused(fetch, planned, tmp_path / "three")


def test_another_file_of_that_name_is_kept(asked: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    mine = tmp_path / "set" / LARGE
    mine.write_text("mine")
    planned = asked()
    assert f"{mine} differs from the file of" in refused(fetch, planned, tmp_path / "set", kind=OutputError)
    assert mine.read_text() == "mine"
    fetch(planned, tmp_path / "set", overwrite=True)
    assert mine.read_bytes() != b"mine"


@pytest.mark.parametrize("name", [LARGE, "changechat_105k_test.json"])
def test_a_damaged_file_is_told(hub: Hub, asked: Callable[..., Plan], tmp_path: Path, name: str) -> None:
    planned = asked()
    hub.files[name] = hub.files[name][:-1] + b"#"
    text = refused(fetch, planned, tmp_path / "set")
    assert f"{name} of {REPO} differs from its checksum; delete " in text
    assert not (tmp_path / "set").exists()


def test_refusals(hub: Hub, asked: Callable[..., Plan]) -> None:
    assert "has no revision 'v9'" in refused(asked, revision="v9")
    removed = hub.files.pop("changechat_105k_test_open.json")
    assert f"has no changechat_105k_test_open.json at {REVISION}" in refused(asked)
    hub.files["changechat_105k_test_open.json"] = removed
    for status, remedy in ((403, "access denied"), (429, "too many requests"), (503, "try again later")):
        hub.status = status
        text = refused(asked)
        assert f"(HTTP {status})" in text
        assert remedy in text
    hub.status = 401
    assert REPO in refused(asked)
    hub.status, hub.page = 200, b"<html>please log in</html>"
    assert "does not answer as the Hub does" in refused(asked)
    hub.stop()
    text = refused(asked)
    assert f"no connection to {hub.endpoint}" in text
    assert "--offline" in text


def test_a_set_that_moves_on_is_told(hub: Hub, asked: Callable[..., Plan], tmp_path: Path) -> None:
    planned = asked(revision="main")
    hub.commit = "d" * 40
    assert "changed from" in refused(fetch, planned, tmp_path / "set")


def test_too_little_disk(
    hub: Hub, asked: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = asked()
    hub.downloads()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2 * planned.size - 1))
    assert "are needed; free some" in refused(fetch, planned, tmp_path / "set")
    assert hub.asked == []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2 * planned.size))
    fetch(planned, tmp_path / "set")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), WriteError, "is full, while fetching"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), OutputError, "give another --cache-dir"),
        (OSError("Consistency check failed\nand more"), InputError, "failed (Consistency check failed)"),
        (RuntimeError("of xet"), InputError, "HF_HUB_DISABLE_XET"),
    ],
)
def test_trouble_while_downloading(
    asked: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[DeltaVLMError],
    says: str,
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise error

    planned = asked()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert says in refused(fetch, planned, tmp_path / "set", kind=kind)


def test_a_folder_that_cannot_be_written(
    asked: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(fetch, asked(), tmp_path / "file" / "set", kind=OutputError)

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.shutil, "copyfile", full)
    assert "No space left" in refused(fetch, asked(), tmp_path / "set", kind=WriteError)
    assert list((tmp_path / "set").iterdir()) == []


def test_the_command(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "plan", partial(plan, endpoint=hub.endpoint))

    def run(*args: object) -> Result:
        return CliRunner().invoke(app, list(map(str, args)))

    cache = ("--cache-dir", tmp_path / "cache")
    dry = run("data", "fetch", "changechat", "-n", "--json", *cache)
    assert dry.exit_code == 0, dry.stderr
    record = json.loads(dry.stdout)
    assert (record["dry_run"], record["missing"], len(record["files"])) == (True, record["bytes"], 8)
    assert "license: CC-BY-4.0" in dry.stderr
    assert not Path("changechat-105k").exists()
    done = run("data", "fetch", "changechat", *cache)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "LEVIR-CC-Dataset" in done.stderr.splitlines()[-1]
    assert len(list(Path("changechat-105k").iterdir())) == 8
    for args, what in (
        (["levir"], "no set 'levir'"),
        (["changechat", "--revision", "v9"], "no revision 'v9'"),
        (["changechat", "--offline", "--cache-dir", tmp_path / "none"], "is not in the cache"),
    ):
        result = run("data", "fetch", *args)
        assert result.exit_code == 2
        assert what in one_line(result)
