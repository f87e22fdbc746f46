"""Program `deltavlm` as a subprocess: where it is, its version, its messages, and how it is stopped.

Imports nothing of QGIS, and runs on the Python that QGIS brings (3.9 or later).
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIN_VERSION = (0, 1, 0)
VERSION_TIMEOUT_S = 120.0  # the first start after an installation compiles the modules
STOP_TIMEOUT_S = 60.0  # a batch in progress ends before the program does
_POLL_S = 0.1
_WINDOWS = os.name == "nt"
_NAME = "deltavlm.exe" if _WINDOWS else "deltavlm"

#: variables by which QGIS points its own process at its own Python, PROJ and GDAL files
QGIS_VARIABLES = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PROJ_LIB", "PROJ_DATA"),
    *("GDAL_DATA", "GDAL_DRIVER_PATH", "QT_PLUGIN_PATH"),
)

tr: Callable[[str], str] = str  # translation.py puts the language of QGIS here
_versions: dict[tuple[str, int], tuple[int, ...]] = {}  # by path and time of modification


class ProgramError(Exception):
    """The program is not there, too old, or failed; the message says what to do."""


@dataclass
class Result:
    """End of a run: exit code, stdout, and the error messages of stderr."""

    code: int
    stdout: str = ""
    errors: list[str] = field(default_factory=list)
    canceled: bool = False

    def objects(self) -> list[dict[str, Any]]:
        """JSON objects of stdout, one a line."""
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]


def program_environment() -> dict[str, str]:
    """Environment of this process without what QGIS has set for itself."""
    return {name: value for name, value in os.environ.items() if name not in QGIS_VARIABLES}


def private_program(folder: Path) -> Path:
    """Path of the program in a private environment in `folder`, whether it exists or not."""
    return folder / ("Scripts" if _WINDOWS else "bin") / _NAME


def find_program(setting: str, private_folder: Path) -> str:
    """Path of the program: of the setting, on PATH, where uv and pipx link programs, else the private one.

    Raises: ProgramError.
    """
    if setting:
        path = Path(setting).expanduser()
        path = path / _NAME if path.is_dir() else path
        if not path.is_file() or not os.access(path, os.X_OK):
            text = tr(
                "{} is not a program; set its path in Settings > Options > Processing > Providers > deltavlm,"
                " or leave it empty"
            )
            raise ProgramError(text.format(setting))
        return str(path)
    linked = Path.home() / ".local" / "bin"  # a desktop may start QGIS without it on PATH
    folders = os.pathsep.join([os.environ.get("PATH", ""), str(linked)])
    found = shutil.which("deltavlm", path=folders)
    if found:
        return found
    private = private_program(private_folder)
    if private.is_file():
        return str(private)
    raise ProgramError(
        tr(
            "no deltavlm program found. Run the algorithm 'Install the program' of this provider, or install"
            " deltavlm yourself (uv tool install deltavlm) and set its path in Settings > Options >"
            " Processing > Providers > deltavlm"
        )
    )


def check_version(program: str) -> str:
    """Version of the program as text. Raises: ProgramError if it is too old, or not deltavlm."""
    key = (program, Path(program).stat().st_mtime_ns)
    if key not in _versions:
        try:
            process = subprocess.run(
                [program, "--version"],
                capture_output=True,
                text=True,
                timeout=VERSION_TIMEOUT_S,
                env=program_environment(),
                stdin=subprocess.DEVNULL,
                check=False,
                **_no_window(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProgramError(tr("{} cannot be started: {}").format(program, error)) from error
        match = re.match(r"deltavlm (\d+(?:\.\d+)*)", process.stdout.strip())
        if process.returncode != 0 or match is None:
            words = (process.stderr.strip() or process.stdout.strip() or tr("no output")).splitlines()[-1]
            message = tr("{} --version failed, so it is not a working deltavlm: {}")
            raise ProgramError(message.format(program, words))
        _versions[key] = tuple(map(int, match[1].split(".")))
    version = _versions[key]
    text = ".".join(map(str, version))
    if version < MIN_VERSION:
        needed = ".".join(map(str, MIN_VERSION))
        message = tr(
            "{} is deltavlm {}, and this plugin needs {} or later; update it (uv tool upgrade deltavlm, or"
            " the algorithm 'Install the program' again)"
        )
        raise ProgramError(message.format(program, text, needed))
    return text


def _no_window() -> dict[str, Any]:
    """Arguments of Popen that keep Windows from opening a console window."""
    return {"creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)} if _WINDOWS else {}


def run(
    command: Sequence[str],
    *,
    is_canceled: Callable[[], bool],
    on_message: Callable[[dict[str, Any]], None],
    folder: str | None = None,
) -> Result:
    """Run a command and pass on each line of its stderr as a dict of `--log-format json`, in this thread.

    Text that is no JSON has the level `info`. When `is_canceled` says so the program gets SIGTERM, by which
    it keeps its journal and removes partial files; one that does not end within a minute is killed.

    Raises: ProgramError if it cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=program_environment(),
            encoding="utf-8",
            errors="replace",
            **_no_window(),
        )
    except OSError as error:
        message = tr("{} cannot be started: {}")
        raise ProgramError(message.format(command[0], error.strerror or error)) from error
    lines: queue.Queue[str | None] = queue.Queue()
    words: list[str] = []
    readers = [
        threading.Thread(target=lambda: words.append(process.stdout.read()), daemon=True),
        threading.Thread(target=_read_lines, args=(process.stderr, lines), daemon=True),
    ]
    for reader in readers:
        reader.start()
    result, deadline = Result(code=0), None
    while True:
        if deadline is None and is_canceled():
            result.canceled = True
            process.terminate()
            deadline = time.monotonic() + STOP_TIMEOUT_S
        if deadline is not None and time.monotonic() > deadline:
            process.kill()
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if line is None:
            break
        message = parse_message(line)
        if message["level"] == "error":
            result.errors.append(message["message"])
        on_message(message)
    with process:  # waits for it, and closes its streams
        readers[0].join()
    result.code = process.returncode
    result.stdout = "".join(words)
    return result


def _read_lines(stream: Any, lines: Any) -> None:
    for line in stream:
        if line.strip():
            lines.put(line.rstrip())
    lines.put(None)


def parse_message(line: str) -> dict[str, Any]:
    """Message of one line of stderr."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict) or "message" not in message:
        return {"level": "info", "message": line}
    return {"level": "info", **message}


def find_uv() -> str:
    """Path of uv. Raises: ProgramError."""
    folders = [
        os.environ.get("PATH", ""),
        str(Path.home() / ".local" / "bin"),
        str(Path.home() / ".cargo" / "bin"),
    ]
    found = shutil.which("uv", path=os.pathsep.join(folders))
    if not found:
        raise ProgramError(
            tr(
                "uv is needed to make the environment, and is not installed: https://docs.astral.sh/uv. Or"
                " install deltavlm in another way, and set its path in Settings > Options > Processing >"
                " Providers > deltavlm"
            )
        )
    return found


def install_commands(uv: str, folder: Path, requirement: str) -> list[list[str]]:
    """Commands that install `requirement` into the private environment in `folder`, and make that first.

    An environment whose program works is updated in place: without a network it stays as it is.
    """
    make = [uv, "venv", "--clear", "--python", ">=3.11", str(folder)]
    install = [uv, "pip", "install", "--upgrade", "--reinstall-package", "deltavlm"]
    install += ["--python", str(folder), requirement]
    program = private_program(folder)
    try:
        works = program.is_file() and bool(check_version(str(program)))
    except ProgramError:
        works = False
    return [install] if works else [make, install]
