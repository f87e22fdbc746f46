"""A Hugging Face Hub on this machine, for tests: the few requests that huggingface_hub makes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from deltavlm.errors import DeltaVLMError, InputError

LARGE = (".pth", ".bin", ".safetensors", ".model", "_train.json")  # files that the Hub keeps under sha256


@dataclass
class FakeRepo:
    """A repository at one commit."""

    files: dict[str, bytes]
    commit: str
    gated: bool = False
    lists_gated: bool = True  # in the list of files too
    originals: dict[str, bytes] = field(default_factory=dict)  # contents of which checksums lie

    def metadata(self, name: str) -> tuple[int, str, str | None]:
        """(size, git's sha1, sha256 of a large file)."""
        content = self.originals.get(name, self.files[name])
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return len(content), blob, hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else None


@dataclass
class FakeHub:
    """Repositories by path ("OWNER/NAME", "datasets/OWNER/NAME"), and the requests that were made."""

    repos: dict[str, FakeRepo]
    endpoint: str = ""
    status: int = 200  # of every response, if another
    page: bytes | None = None  # in place of every response
    broken: str = ""  # a file that cannot be downloaded
    requests: list[str] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    def downloads(self) -> list[str]:
        """Names of the files that were downloaded since the last call."""
        names = [
            line.split("/")[-1] for line in self.requests if line.startswith("GET ") and "/resolve/" in line
        ]
        self.requests.clear()
        return sorted(names)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

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
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status != 200 or self.hub.page is not None:
            return self.send(self.hub.status, self.hub.page or b"")
        words = path.strip("/").removeprefix("api/").removeprefix("models/").split("/")
        length = 3 if words[0] == "datasets" else 2
        name = "/".join(words[:length])
        repo = self.hub.repos.get(name)
        if repo is None:
            return self.send(401, X_Error_Code="RepoNotFound")
        verb, *arguments = words[length:]
        if verb == "auth-check":
            return self.send(401, X_Error_Code="GatedRepo") if repo.gated else self.send(200)
        if arguments[0] not in ("main", repo.commit):
            return self.send(404, X_Error_Code="RevisionNotFound")
        if verb == "revision":
            return self.send_json(self.info(name, repo))
        if verb == "tree":
            return self.send_json([self.tree_entry(repo, file) for file in repo.files])
        return self.send_file(repo, arguments[1])

    def send_file(self, repo: FakeRepo, file: str) -> None:
        if repo.gated and "authorization" not in self.headers:
            return self.send(401, X_Error_Code="GatedRepo")
        if self.command == "GET" and file == self.hub.broken:
            return self.send(500)
        size, blob, large = repo.metadata(file)
        tag = f'"{large or blob}"'
        return self.send(
            200,
            repo.files[file],
            ETag=tag,
            X_Linked_Etag=tag,
            X_Linked_Size=str(size),
            X_Repo_Commit=repo.commit,
        )

    def info(self, name: str, repo: FakeRepo) -> dict[str, Any]:
        siblings = []
        for file in repo.files:
            size, blob, large = repo.metadata(file)
            lfs = {"lfs": {"sha256": large, "size": size, "pointerSize": 130}} if large else {}
            siblings.append({"rfilename": file, "size": size, "blobId": blob, **lfs})
        gated = "manual" if repo.gated and repo.lists_gated else False
        return {
            "id": name.removeprefix("datasets/"),
            "sha": repo.commit,
            "siblings": siblings,
            "gated": gated,
        }

    def tree_entry(self, repo: FakeRepo, file: str) -> dict[str, Any]:
        size, blob, large = repo.metadata(file)
        lfs = {"lfs": {"oid": large, "size": size, "pointerSize": 130}} if large else {}
        return {"type": "file", "path": file, "size": size, "oid": blob, **lfs}


@contextmanager
def serve_hub(
    repos: Mapping[str, FakeRepo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """Serve the repositories on a free port, without the token and settings of this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = FakeHub(dict(repos))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
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


def refused(
    call: Callable[..., object], *args: Any, kind: type[DeltaVLMError] = InputError, **options: Any
) -> str:
    """One-line message of the error that a call raises; the class is exact, for the exit code."""
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)
