"""Remote images whose requests fail, once or permanently."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyogrio
import pytest

from deltavlm.errors import RasterError
from deltavlm.geo.gdal import SLOW_S
from deltavlm.geo.gdal import Server as ImageServer
from tests.cli.conftest import Run, program
from tests.conftest import write_tiled
from tests.rasters import noise

pytestmark = pytest.mark.network

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--chip-size", 256, "--batch-size", 2)


@dataclass
class Server:
    """A served folder, its faults and its request log."""

    folder: Path
    url: str

    def fail(self, times: int, begin: int, status: int) -> None:
        faults = {"times": times, "from": begin, "status": status}
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def requests(self) -> list[str]:
        """Lines of the log since the last call."""
        log = self.folder / "requests.log"
        lines = log.read_text().splitlines()
        log.unlink()
        return lines


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    folder = tmp_path / "served"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.faults.server", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Server(folder, f"http://127.0.0.1:{int(process.stdout.readline())}/")
        process.terminate()


@pytest.fixture
def pair(server: Server, tmp_path: Path) -> tuple[str, str]:
    """A local image, and one of 12 chips on the server, about 190 kB per chip."""
    pixels = noise(3, 768, 1024)
    tiles = {"blockxsize": 256, "blockysize": 256, "interleave": "pixel"}
    before = write_tiled(tmp_path / "before.tif", pixels, **tiles)
    write_tiled(server.folder / "after.tif", pixels, **tiles)
    return str(before), f"{server.url}after.tif"


def statuses(path: Path) -> dict[str, str]:
    meta, _, _, columns = pyogrio.raw.read(path)
    values = dict(zip(meta["fields"], columns, strict=True))
    return dict(zip(values["chip_id"], values["status"], strict=True))


@pytest.mark.parametrize("status", [503, 429, 500, 0])
def test_requests_that_succeed_at_the_third_try(
    run: Run, server: Server, pair: tuple[str, str], status: int
) -> None:
    server.fail(2, 500_000, status)
    result = run("analyze", *pair, "-o", "out.geojson", *SMALL)
    assert result.exit_code == 0, result.stderr
    requests = server.requests()
    failed = [line for line in requests if not line.endswith("None")]
    assert len(failed) == 2
    begin = failed[0].split()[1]
    assert [line for line in requests if line.split()[1] == begin][:2] == failed  # the same range again
    assert {*statuses(Path("out.geojson")).values()} == {"answered"}


@pytest.mark.slow
def test_requests_that_always_fail_and_the_next_run(
    server: Server, pair: tuple[str, str], tmp_path: Path
) -> None:
    """The chips are recorded as unreadable, and `--retry-failed` reads only these."""
    out = tmp_path / "out.geojson"

    def analyze(*options: str) -> tuple[int, str]:
        process = program("analyze", *pair, "-o", out, *SMALL, *options, cwd=ROOT)
        _, stderr = process.communicate(timeout=100)
        return process.returncode, stderr

    server.fail(-1, 1_800_000, 503)
    code, stderr = analyze()
    assert code == 3, stderr
    assert "--retry-failed tries them again" in stderr.splitlines()[-1]
    assert "after.tif" in stderr.splitlines()[-1]
    failed = {chip for chip, status in statuses(out).items() if status == "unreadable"}
    assert 0 < len(failed) < 9  # GDAL requests longer ranges the further it reads
    assert "r00000_c00000" not in failed
    first = server.requests()
    assert len([line for line in first if line.endswith("503")]) > 3  # each range is tried again

    server.fail(0, 0, 0)
    code, stderr = analyze("--retry-failed")
    assert code == 0, stderr
    assert f"resuming: {12 - len(failed)} of 12 chips done" in stderr
    assert {*statuses(out).values()} == {"answered"}
    ends = [int(line.split()[2]) for line in server.requests()]
    assert max(ends) > 1_800_000


def test_a_server_that_never_answers(
    run: Run, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts the connection, and that is all."""
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/after.tif"
        begin = time.monotonic()
        result = run("analyze", pair[0], url, "-o", "out.geojson")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"Error: {url}: cannot be read as a raster (")
    assert time.monotonic() - begin < 30


def test_a_server_that_has_gone_is_not_asked_for_every_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 10.0 + SLOW_S + 1])
    monkeypatch.setattr("deltavlm.geo.gdal.time.monotonic", lambda: next(clock))
    server = ImageServer()
    for _ in range(2):
        with pytest.raises(RasterError, match="failed"), server.watch("https://me:secret@host/a.tif"):
            raise RasterError("failed")
    with (
        pytest.raises(RasterError, match=r"^https://host/a\.tif: its server does not answer any more"),
        server.watch("https://me:secret@host/a.tif"),
    ):
        pytest.fail("it was asked again")


def test_no_server(run: Run, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    result = run("analyze", pair[0], "http://127.0.0.1:9/after.tif", "-o", "out.geojson")
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: http://127.0.0.1:9/after.tif: cannot be read as a raster (")
