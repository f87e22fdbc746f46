"""ChangeChat-105k's files, from a Hub of our own on this machine."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner, Result

from deltacli.main import app
from deltavlm.data import fetch as module
from deltavlm.data.changechat import RELEASED_RECORDS
from deltavlm.data.fetch import REPO, REVISION, Plan, fetch, plan
from deltavlm.errors import DeltaVLMError, InputError, OutputError, WriteError
from tests.cli.conftest import one_line
from tests.hub_server import FakeHub, FakeRepo, refused, serve_hub

pytestmark = pytest.mark.network

LARGE = "changechat_105k_train.json"  # the Hub keeps it under sha256, the others under git's sha1
PATH = f"datasets/{REPO}"
Planner = Callable[..., Plan]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {name: f'["{name}"]'.encode() for name in RELEASED_RECORDS} | {"README.md": b"card"}
    with serve_hub({PATH: FakeRepo(files, REVISION)}, tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def planner(hub: FakeHub, tmp_path: Path) -> Planner:
    return lambda **options: plan(cache_dir=tmp_path / "cache", endpoint=hub.endpoint, **options)


def test_the_eight_files_are_planned_and_fetched_once(hub: FakeHub, planner: Planner, tmp_path: Path) -> None:
    planned = planner()
    assert {file.name for file in planned.files} == set(RELEASED_RECORDS)
    assert (
        planned.size == planned.missing == sum(len(hub.repos[PATH].files[name]) for name in RELEASED_RECORDS)
    )
    assert hub.downloads() == []
    lines: list[str] = []
    files = fetch(planned, tmp_path / "set", notify=lines.append)
    assert hub.downloads() == sorted(RELEASED_RECORDS)
    assert {path.name: path.read_bytes() for path in files} == {
        name: hub.repos[PATH].files[name] for name in RELEASED_RECORDS
    }
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted(RELEASED_RECORDS)
    assert len(lines) == 8
    replanned = planner()
    assert replanned.missing == 0
    lines.clear()
    assert fetch(replanned, tmp_path / "set", notify=lines.append) == files
    assert (hub.downloads(), lines) == ([], [])


def test_offline_uses_the_cache(hub: FakeHub, planner: Planner, tmp_path: Path) -> None:
    assert "is not in the cache" in refused(planner, offline=True)
    online = planner()
    fetch(online, tmp_path / "one")
    hub.stop()
    planned = planner(offline=True)
    assert (planned.commit, planned.missing, planned.hub.offline) == (online.commit, 0, True)
    assert [file.digest for file in planned.files] == [file.digest for file in online.files]
    fetch(planned, tmp_path / "two")
    assert (tmp_path / "two" / LARGE).read_bytes() == hub.repos[PATH].files[LARGE]
    assert planner(offline=True, revision=online.commit).commit == online.commit
    shutil.rmtree(tmp_path / "cache")
    assert "is not in the cache" in refused(fetch, planned, tmp_path / "three")


def test_a_different_file_of_that_name_is_not_replaced(planner: Planner, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    mine = tmp_path / "set" / LARGE
    mine.write_text("mine")
    planned = planner()
    assert f"{mine} differs from the file of" in refused(fetch, planned, tmp_path / "set", kind=OutputError)
    assert mine.read_text() == "mine"
    fetch(planned, tmp_path / "set", overwrite=True)
    assert mine.read_bytes() != b"mine"


@pytest.mark.parametrize("name", [LARGE, "changechat_105k_test.json"])
def test_a_damaged_file_is_an_error(hub: FakeHub, planner: Planner, tmp_path: Path, name: str) -> None:
    planned = planner()
    hub.repos[PATH].files[name] = hub.repos[PATH].files[name][:-1] + b"#"
    text = refused(fetch, planned, tmp_path / "set")
    assert f"{name} of {REPO} differs from its checksum; delete " in text
    assert not (tmp_path / "set").exists()


def test_refusals(hub: FakeHub, planner: Planner) -> None:
    assert "has no revision 'v9'" in refused(planner, revision="v9")
    removed = hub.repos[PATH].files.pop("changechat_105k_test_open.json")
    assert f"has no changechat_105k_test_open.json at {REVISION}" in refused(planner)
    hub.repos[PATH].files["changechat_105k_test_open.json"] = removed
    for status, remedy in ((403, "access denied"), (429, "too many requests"), (503, "try again later")):
        hub.status = status
        text = refused(planner)
        assert f"(HTTP {status})" in text
        assert remedy in text
    hub.status = 401
    assert REPO in refused(planner)
    hub.status, hub.page = 200, b"<html>please log in</html>"
    assert "does not answer as the Hub does" in refused(planner)
    hub.stop()
    text = refused(planner)
    assert f"no connection to {hub.endpoint}" in text
    assert "`offline=True`" in text


def test_a_changed_repository_is_an_error(hub: FakeHub, planner: Planner, tmp_path: Path) -> None:
    planned = planner(revision="main")
    hub.repos[PATH].commit = "d" * 40
    assert "changed from" in refused(fetch, planned, tmp_path / "set")


def test_too_little_disk(
    hub: FakeHub, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = planner()
    hub.downloads()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * planned.size - 1))
    assert "are needed; free some" in refused(fetch, planned, tmp_path / "set")
    assert hub.requests == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * planned.size))
    fetch(planned, tmp_path / "set")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), WriteError, "is full, while fetching"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), OutputError, "give another `cache_dir`"),
        (OSError("Consistency check failed\nand more"), InputError, "failed (Consistency check failed)"),
        (RuntimeError("of xet"), InputError, "HF_HUB_DISABLE_XET"),
    ],
)
def test_errors_while_downloading(
    planner: Planner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[DeltaVLMError],
    says: str,
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise error

    planned = planner()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert says in refused(fetch, planned, tmp_path / "set", kind=kind)


def test_a_folder_that_cannot_be_written(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(fetch, planner(), tmp_path / "file" / "set", kind=OutputError)

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.shutil, "copyfile", full)
    assert "No space left" in refused(fetch, planner(), tmp_path / "set", kind=WriteError)
    assert list((tmp_path / "set").iterdir()) == []


def test_the_command(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    result = run("data", "fetch", "changechat", *cache)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "LEVIR-CC-Dataset" in result.stderr.splitlines()[-1]
    assert len(list(Path("changechat-105k").iterdir())) == 8
    for args, message in (
        (["levir"], "no set 'levir'"),
        (["changechat", "--revision", "v9"], "no revision 'v9'"),
        (["changechat", "--offline", "--cache-dir", tmp_path / "none"], "is not in the cache"),
    ):
        result = run("data", "fetch", *args)
        assert result.exit_code == 2
        assert message in one_line(result)
