"""`deltavlm mcp`: the official SDK's own client on a real pair, and paths that are refused."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pyogrio
import pytest
import rasterio
from mcp import Client, StdioServerParameters
from mcp.server.mcpserver.exceptions import ToolError

from deltavlm import mcp_server
from deltavlm.errors import InputError
from deltavlm.mcp_server import TOOLS, Folders
from tests.cli.conftest import Run, one_line
from tests.sample import write_corner

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("images", "results", "secret"):
        (tmp_path / name).mkdir()
    before, _ = write_corner(tmp_path / "images")
    shutil.copy(before, tmp_path / "secret")
    return Folders.of([tmp_path / "images"], [tmp_path / "results"])


class Session:
    """Client of a server in a process of its own."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.progress: list[tuple[float, float | None]] = []

    async def call(self, tool: str, **arguments: Any) -> Any:
        """Result of a tool as the client gets it."""

        async def show(done: float, total: float | None, message: str | None) -> None:
            self.progress.append((done, total))

        return await self.client.call_tool(tool, arguments, progress_callback=show)

    async def values(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """JSON of a tool that succeeds."""
        result = await self.call(tool, **arguments)
        text = result.content[0].text
        assert not result.is_error, text
        values: dict[str, Any] = json.loads(text)
        return values

    async def refusal(self, tool: str, **arguments: Any) -> str:
        """Message of a tool that refuses."""
        result = await self.call(tool, **arguments)
        assert result.is_error, result.content
        return str(result.content[0].text)


def serve(folders: Folders, steps: Any) -> None:
    """Run `steps(session)` with a server for these folders."""
    words = ["-m", "deltacli", "mcp"]
    words += [word for folder in folders.read[:1] for word in ("--read", str(folder))]
    words += [word for folder in folders.write for word in ("--write", str(folder))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DELTAVLM_ANALYZE_BATCH_SIZE": "2"}
    server = StdioServerParameters(command=sys.executable, args=words, env=environment)

    async def run() -> None:
        async with Client(server) as client:
            await steps(Session(client))

    anyio.run(run)


@pytest.mark.slow
def test_every_tool_on_the_sample_pair(folders: Folders) -> None:
    images, results = folders.read[0], folders.write[0]
    pair = {"before": str(images / "before.tif"), "after": str(images / "after.tif")}
    out, probability = str(results / "out.gpkg"), str(results / "probability.tif")

    async def steps(session: Session) -> None:
        listed = (await session.client.list_tools()).tools
        assert {tool.name for tool in listed} == set(TOOLS)
        assert all(tool.description for tool in listed)

        plan = await session.values("check_pair", **pair)
        assert (plan["chips"], round(plan["gsd_m"], 1)) == (4, 0.5)
        summary = await session.values("analyze", **pair, output=out, probability=probability)
        table = pyogrio.read_dataframe(out, layer="chips")
        assert (summary["chips"], summary["changed"]) == (len(table), table["changed"].sum())
        assert (summary["output"], summary["extras"]) == (out, {"probability": probability})
        assert "exists already" in await session.refusal("analyze", **pair, output=out)

        (answer,) = (await session.values("ask", **pair, questions=["Has it changed?"], at="15.002,48.751"))[
            "answers"
        ]
        assert (answer["status"], answer["answer"] in ("yes", "no")) == ("answered", True)
        totals = await session.values("summarize", outputs=[out], by="grid", cell=300)
        assert (totals["all"]["changed"], len(totals["areas"]) > 1) == (summary["changed"], True)
        surer = await session.values(
            "polygons", source=out, output=str(results / "surer.gpkg"), mask_threshold=0.9
        )
        ground = [pyogrio.read_dataframe(path, layer="changes").area.sum() for path in (surer["output"], out)]
        assert 0 < ground[0] < ground[1]

        html, png = str(results / "report.html"), str(results / "quicklook.png")
        plain = await session.call("report", source=out, output=html, quicklook=png)
        assert [content.type for content in plain.content] == ["text"]
        asked = await session.call(
            "report", source=out, output=html, quicklook=png, return_picture=True, overwrite=True
        )
        assert [content.type for content in asked.content] == ["text", "image"]
        assert base64.b64decode(asked.content[1].data) == Path(png).read_bytes()

    serve(folders, steps)


@pytest.mark.slow
def test_a_cancelled_call_stops_the_run_and_the_next_one_resumes(folders: Folders) -> None:
    images, results = folders.read[0], folders.write[0]
    pair = {"before": str(images / "before.tif"), "after": str(images / "after.tif")}
    for path in pair.values():  # more chips than are answered before the cancellation
        with rasterio.open(ROOT / "sample_data" / Path(path).name) as source:
            values, profile = np.tile(source.read(), (1, 2, 2)), source.profile
        profile |= {"height": values.shape[1], "width": values.shape[2]}
        profile |= {"compress": "deflate", "photometric": "rgb"}
        with rasterio.open(path, "w", **profile) as target:
            target.write(values)
    out = results / "out.gpkg"
    journal = results / "out.gpkg.journal.jsonl"

    async def steps(session: Session) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: session.call("analyze", **pair, output=str(out)))
            while not journal.exists() or journal.read_bytes().count(b"\n") < 4:  # header, pair, 2 chips
                await anyio.sleep(0.02)
            group.cancel_scope.cancel()
        while (results / ".out.gpkg.lock").exists():  # a run that is killed leaves it
            await anyio.sleep(0.02)
        kept = journal.read_bytes().count(b"\n")
        assert {path.name for path in results.iterdir()} == {journal.name, "out.gpkg.journal.masks"}
        result = await session.call("analyze", **pair, output=str(out))
        assert not result.is_error, result.content
        assert [path.name for path in results.iterdir()] == ["out.gpkg"]
        summary = json.loads(result.content[0].text)
        assert (summary["chips"], summary["earlier"]) == (63, kept - 2)
        assert 2 <= summary["earlier"] < 63
        assert session.progress
        assert {total for _, total in session.progress} == {63}

    serve(folders, steps)


def test_a_client_that_is_gone_ends_the_server_without_an_error(folders: Folders) -> None:
    """The pipes are closed while an answer is due, as when an agent is killed."""
    ask = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": ask}
    command = [sys.executable, "-m", "deltacli", "mcp", "--read", str(folders.read[0])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env={**os.environ, "PYTHONPATH": str(ROOT)}) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        server.stdout.close()
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.close()
        assert (server.stderr.read(), server.wait()) == (b"", 141)


def test_a_call_that_is_cancelled_as_its_program_ends_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        """Process that ends between the cancellation and the signal."""

        stdout = stderr = b""

        async def __aenter__(self) -> Ended:
            return self

        async def __aexit__(self, *error: object) -> None:
            pass

        async def wait(self) -> int:
            if not self.is_signalled:
                await anyio.sleep_forever()
            return 0

        is_signalled = False

        def send_signal(self, number: int) -> None:
            self.is_signalled = True
            raise ProcessLookupError

    async def open_process(*words: object, **settings: object) -> Ended:
        return Ended()

    async def no_lines(stream: object) -> AsyncIterator[str]:
        for line in ():
            yield line

    async def run() -> bool:
        with anyio.move_on_after(0.01) as scope:
            await mcp_server._run_all(None, ["analyze"])  # type: ignore[arg-type]
        return scope.cancelled_caught

    monkeypatch.setattr(mcp_server.anyio, "open_process", open_process)
    monkeypatch.setattr(mcp_server, "_lines", no_lines)
    assert anyio.run(run)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a.tif",
        "/vsicurl/https://example.org/a.tif",
        "vsizip/a.zip/a.tif",
        "GTIFF_DIR:1:a.tif",
        "s3://bucket/a.tif",
        "file:///etc/passwd",
        "~/a.tif",
        "-",
        "",
        "a\0.tif",
    ],
)
def test_what_is_no_local_path_is_refused(folders: Folders, text: str) -> None:
    for resolve in (folders.input, folders.output):
        with pytest.raises(ToolError, match="is not a path of a local file"):
            resolve(text)


def test_files_outside_of_the_folders_are_refused(folders: Folders, tmp_path: Path) -> None:
    images, results = folders.read[0], folders.write[0]
    secret = tmp_path / "secret" / "before.tif"
    (images / "link.tif").symlink_to(secret)
    (images / "folder").symlink_to(secret.parent)
    (results / "link.gpkg").symlink_to(tmp_path / "secret" / "new.gpkg")
    (images / "circle.tif").symlink_to(images / "circle.tif")
    for text in (secret, images / "link.tif", images / "folder" / "before.tif", "/etc/passwd", "before.tif"):
        with pytest.raises(ToolError, match="outside of the folders that may be read"):
            folders.input(str(text))
    with pytest.raises(ToolError, match=r"without '\.\.'"):
        folders.input(str(images / ".." / "images" / "before.tif"))
    with pytest.raises(ToolError, match=r"cannot be resolved|no such file"):
        folders.input(str(images / "circle.tif"))
    for text in (images / "out.gpkg", results / "link.gpkg", tmp_path / "out.gpkg"):
        with pytest.raises(ToolError, match="outside of the folders that may be written"):
            folders.output(str(text))
    with pytest.raises(ToolError, match="its folder does not exist"):
        folders.output(str(results / "deeper" / "out.gpkg"))
    assert folders.input(str(images / "before.tif")) == images / "before.tif"
    assert folders.output(str(results / "out.gpkg")) == results / "out.gpkg"


@pytest.mark.slow
def test_an_output_that_names_images_elsewhere_is_not_rendered(
    folders: Folders, tmp_path: Path, run: Run
) -> None:
    """A report embeds its images: those of an output that somebody wrote may be anywhere."""
    results = folders.write[0]
    secret, after = tmp_path / "secret" / "before.tif", folders.read[0] / "after.tif"
    out = results / "out.gpkg"
    assert run("analyze", secret, after, "--limit", 1, "-o", out).exit_code == 0

    async def steps(session: Session) -> None:
        message = await session.refusal("report", source=str(out), output=str(results / "report.html"))
        assert f"refers to {secret}, which is outside of the folders" in message
        message = await session.refusal("check_pair", before=str(secret), after=str(after))
        assert "outside of the folders that may be read" in message

    serve(folders, steps)
    assert not (results / "report.html").exists()


def test_folders_must_exist_and_one_is_needed(run: Run, tmp_path: Path) -> None:
    result = run("mcp")
    assert (result.exit_code, "--read FOLDER" in one_line(result)) == (2, True)
    result = run("mcp", "--read", tmp_path / "nowhere")
    assert (result.exit_code, "nowhere: no such folder" in one_line(result)) == (2, True)
    with pytest.raises(InputError):
        Folders.of([], [tmp_path / "nowhere"])


def test_json_lists_folders_and_tools(run: Run, tmp_path: Path) -> None:
    result = run("mcp", "--write", tmp_path, "--json")
    assert json.loads(result.stdout) == {
        "read": [str(tmp_path)],
        "write": [str(tmp_path)],
        "model": "nano",
        "tools": list(TOOLS),
    }
