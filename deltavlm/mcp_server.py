"""Server of the Model Context Protocol: deltavlm's commands as tools, limited to named folders.

    serve(Folders.of(read=[Path("images")], write=[Path("results")]), model="nano")

Each tool runs the command line as a process of its own, reads its JSON messages for progress, and returns its
JSON summary; a request that is cancelled sends it SIGTERM. Needs the extra `mcp`.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from deltavlm.errors import DeltaVLMError, InputError
from deltavlm.version import __version__

__all__ = ["TOOLS", "Folders", "Tools", "serve"]

TOOLS = ("check_pair", "analyze", "ask", "summarize", "report", "polygons")
PARTLY = 3  # exit code: written, but some chips failed
STOP_TIMEOUT_S = 60.0
MAX_NOTES = 20  # messages of a run that are returned
_GONE = (BrokenPipeError, anyio.BrokenResourceError, anyio.ClosedResourceError)  # the client was killed
_NO_PATH = re.compile(r"[a-z][a-z0-9+.-]*://|/?vsi[a-z0-9_]+[/?\\]|\w{2,}:|-$|~", re.IGNORECASE)
_INSTRUCTIONS = """Compares two images of the same area, taken at different dates, and says what changed.
Start with check_pair; analyze writes a GeoPackage of all chips; ask answers questions about a small pair or
a place. Results are paths and short JSON. Answers are a model's: check the images before any decision.
Files to read must be in {read}; files to write in {write}."""


@dataclass(frozen=True)
class Folders:
    """Folders, without symbolic links, in which tools may read and write."""

    read: tuple[Path, ...]
    write: tuple[Path, ...]

    @classmethod
    def of(cls, read: Sequence[Path], write: Sequence[Path]) -> Folders:
        """Folders that exist; what may be written may be read too. Raises: InputError."""
        for folder in (*read, *write):
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder")
        targets = tuple(folder.resolve() for folder in write)
        return cls((*(folder.resolve() for folder in read), *targets), targets)

    def input(self, text: str) -> Path:
        """Path of a file to read, without symbolic links. Raises: ToolError."""
        path = self._resolved(text, self.read, "read")
        if not path.is_file():
            raise ToolError(f"{text}: no such file")
        return path

    def output(self, text: str) -> Path:
        """Path of a file to write, without symbolic links. Raises: ToolError."""
        path = self._resolved(text, self.write, "written")
        if not path.parent.is_dir():
            raise ToolError(f"{text}: its folder does not exist")
        return path

    def check_read(self, path: Path, user: str) -> None:
        """Raises: ToolError for a file outside that `user`, a file, refers to."""
        resolved = path.resolve()
        if not any(resolved.is_relative_to(folder) for folder in self.read):
            raise ToolError(f"{user} refers to {path}, which is outside of the folders that may be read")

    def _resolved(self, text: str, folders: tuple[Path, ...], verb: str) -> Path:
        if not text or "\0" in text or _NO_PATH.match(text):
            raise ToolError(f"{text!r} is not a path of a local file, and only such may be {verb}")
        path = Path(text)
        if ".." in path.parts:
            raise ToolError(f"{text}: write the path without '..'")
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError) as error:  # a circle of links
            raise ToolError(f"{text}: cannot be resolved") from error
        if not any(resolved.is_relative_to(folder) for folder in folders):
            named = ", ".join(map(str, folders)) or "none"
            raise ToolError(f"{text} is outside of the folders that may be {verb}: {named}")
        return resolved


@dataclass(frozen=True)
class Tools:
    """Tools of the server; each checks its paths and runs one command."""

    folders: Folders
    model: str = "nano"

    async def check_pair(
        self, context: Context, before: str, after: str, allow_no_crs: bool = False
    ) -> dict[str, Any]:
        """Check whether two images can be compared, and estimate chips, time and memory; writes nothing."""
        with tempfile.TemporaryDirectory() as scratch:
            words = ["analyze", "--dry-run", *self._pair(before, after), "--model", self.model]
            words += ["-o", str(Path(scratch) / "plan.gpkg")]
            plan = await _run(context, [*words, *["--allow-no-crs"] * allow_no_crs])
        keys = ("notes", "gsd_m", "overlap_share", "chips", "rows", "cols", "chip_px", "estimate", "inputs")
        return {key: plan[key] for key in keys}

    async def analyze(
        self,
        context: Context,
        before: str,
        after: str,
        output: str,
        polygons: bool = True,
        probability: str | None = None,
        bbox: str | None = None,
        threshold: float | None = None,
        register: bool = False,
        allow_no_crs: bool = False,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Ask what changed in every chip of a pair, and write a GeoPackage (or .geojson, .fgb, .parquet).

        bbox: XMIN,YMIN,XMAX,YMAX in longitude and latitude. probability: a .tif to write, for polygons later.
        register: correct a shift between the images. The same call resumes a run that was interrupted.
        """
        words = ["analyze", *self._pair(before, after), "-o", str(self.folders.output(output))]
        words += ["--model", self.model]
        words += ["--polygons"] * polygons
        if probability is not None:
            words += ["--probability", str(self.folders.output(probability))]
        words += [f"--bbox={bbox}"] * (bbox is not None)
        words += [f"--threshold={threshold}"] * (threshold is not None)
        words += ["--register"] * register + ["--allow-no-crs"] * allow_no_crs
        return await _run(context, words + ["--overwrite"] * overwrite)

    async def ask(
        self, context: Context, before: str, after: str, questions: list[str], at: str | None = None
    ) -> dict[str, Any]:
        """Ask questions about a small pair, or about the chip around a place in a large one.

        at: LON,LAT. A status `unsupported` means that the model was not taught to answer the question.
        """
        words = ["ask", *self._pair(before, after), *(f"--question={text}" for text in questions)]
        words += ["--model", self.model] + [f"--at={at}"] * (at is not None)
        records = await _run_all(context, words)
        keys = ("question", "asked", "answer", "status", "value", "score", "bounds")
        return {"answers": [{key: record[key] for key in keys} for record in records]}

    async def summarize(
        self,
        context: Context,
        outputs: list[str],
        by: str | None = None,
        cell: float | None = None,
        output: str | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Add up outputs of analyze: changed ground, buildings, roads, chips that were not analyzed.

        by: grid (with cell, metres), pair, h3, or a file of polygons. output: .csv, .md, .html, or a map
        .gpkg.
        """
        sources = [self._output_of_run(text) for text in outputs]
        words = ["summarize", *map(str, sources)]
        if by is not None:
            words += ["--by", by if by in ("grid", "pair", "h3") else str(self.folders.input(by))]
        words += [f"--cell={cell}"] * (cell is not None)
        if output is not None:
            words += ["-o", str(self.folders.output(output))]
        return await _run(context, words + ["--overwrite"] * overwrite)

    async def report(
        self,
        context: Context,
        source: str,
        output: str,
        quicklook: str | None = None,
        return_picture: bool = False,
        overwrite: bool = False,
    ) -> list[Any]:
        """Render an output of analyze as one HTML file, and as a PNG (quicklook).

        return_picture: also return the quicklook itself as a picture.
        """
        from deltavlm.report.build import open_report
        from deltavlm.report.images import ImageOptions

        path = self._output_of_run(source)
        try:
            files = [file for file in open_report(path, ImageOptions()).image_files() if file.exists()]
        except DeltaVLMError as error:
            raise ToolError(str(error)) from error
        for file in files:
            self.folders.check_read(file, source)
        words = ["report", str(path), "-o", str(self.folders.output(output))]
        picture = None if quicklook is None else self.folders.output(quicklook)
        if picture is not None:
            words += ["--quicklook", str(picture)]
        elif return_picture:
            raise ToolError("return_picture needs a path for the quicklook")
        summary = await _run(context, words + ["--overwrite"] * overwrite)
        content: list[Any] = [json.dumps(summary, ensure_ascii=False)]
        return [*content, Image(picture)] if picture is not None and return_picture else content

    async def polygons(
        self,
        context: Context,
        source: str,
        output: str,
        mask_threshold: float = 0.5,
        min_area: float | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Draw the polygons of change again from the probabilities of a run, without asking the model.

        source: an output of analyze with probability. mask_threshold: lowest probability of a changed pixel.
        min_area: smallest area in m2.
        """
        path = self._output_of_run(source)
        words = ["polygonize", str(path), "-o", str(self.folders.output(output))]
        words += [f"--mask-threshold={mask_threshold}"] + [f"--min-area={min_area}"] * (min_area is not None)
        return await _run(context, words + ["--overwrite"] * overwrite)

    def _pair(self, before: str, after: str) -> list[str]:
        return [str(self.folders.input(text)) for text in (before, after)]

    def _output_of_run(self, text: str) -> Path:
        """Output of a run, whose own files may be read too. Raises: ToolError."""
        from deltavlm.pipeline.outputs_reader import read_output

        path = self.folders.input(text)
        try:
            output = read_output(path, ())
        except DeltaVLMError as error:
            raise ToolError(str(error)) from error
        name = output.provenance.get("probability")
        files = [path.parent / name] if isinstance(name, str) and (path.parent / name).exists() else []
        for file in (*output.other_files, *files):
            self.folders.check_read(file, text)
        return path


async def _run(context: Context, words: list[str]) -> dict[str, Any]:
    """JSON summary of one command, with its warnings. Raises: ToolError with the error of the command."""
    return (await _run_all(context, words))[-1]


async def _run_all(context: Context, words: list[str]) -> list[dict[str, Any]]:
    """JSON objects that a command prints. Raises: ToolError with the error of the command."""
    command = [sys.executable, "-m", "deltacli", *words, "--json", "--log-format", "json"]
    notes: list[str] = []
    errors: list[str] = []
    lines: list[str] = []

    async def read_messages(process: Process) -> None:
        assert process.stderr is not None
        async for line in _lines(process.stderr):
            message = _message(line)
            if message.get("total"):
                await context.report_progress(message["done"], message["total"], message["message"])
            elif message["level"] == "error":
                errors.append(message["message"])
            elif message["level"] == "warning":
                notes.append(message["message"])

    async def read_data(process: Process) -> None:
        assert process.stdout is not None
        lines.extend([line async for line in _lines(process.stdout)])

    async with await anyio.open_process(command, stdin=subprocess.DEVNULL) as process:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(read_messages, process)
                group.start_soon(read_data, process)
            code = await process.wait()
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(STOP_TIMEOUT_S):
                with suppress(ProcessLookupError):  # it has just ended by itself
                    process.send_signal(signal.SIGTERM)
                await process.wait()
            raise
    if code not in (0, PARTLY):
        raise ToolError("; ".join(errors) or f"deltavlm {words[0]} ended with exit code {code}")
    objects: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
    if not objects:
        raise ToolError("; ".join(errors) or f"deltavlm {words[0]} printed no result")
    objects[-1] |= {"warnings": [*notes, *errors][:MAX_NOTES]}
    return objects


async def _lines(stream: Any) -> Any:
    """Lines of a stream of bytes, without their ends."""
    rest = ""
    async for text in TextReceiveStream(stream, errors="replace"):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def _message(line: str) -> dict[str, Any]:
    """Message of one line of stderr."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    is_message = isinstance(message, dict) and {"level", "message"} <= message.keys()
    return message if is_message else {"level": "info", "message": line}


def make_server(tools: Tools) -> MCPServer:
    """Server with the tools, not yet running."""
    read, write = (", ".join(map(str, each)) for each in (tools.folders.read, tools.folders.write))
    instructions = _INSTRUCTIONS.format(read=read, write=write or "no folder")
    server: MCPServer = MCPServer(
        "deltavlm", instructions=instructions, version=__version__, log_level="WARNING"
    )
    for name in TOOLS:
        server.add_tool(getattr(tools, name), structured_output=name != "report")
    return server


def serve(folders: Folders, model: str = "nano") -> None:
    """Answer requests on stdin and stdout until stdin ends. Raises: BrokenPipeError if the client is gone."""
    try:
        make_server(Tools(folders, model)).run("stdio")
    except BaseExceptionGroup as group:
        if group.split(_GONE)[1] is not None:
            raise
        raise BrokenPipeError("the client has closed its end") from group
