"""Runs of `deltavlm` interrupted at an exact step, each in a fork of this process to save its start.

python -m tests.faults.forked

Each line of stdin is a JSON list [crashes|full_disk|small_disk, FOLDER, SUFFIX, with masks]; the scenario
runs in a fork too, and is answered with a line [exit code, stderr], whose last line is the number of
interrupted runs. All checks are here.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from contextlib import closing, redirect_stderr, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer.main

import deltavlm
from deltacli.main import app
from deltavlm.pipeline.journal.file import JournalFile
from tests.conftest import write_tiled
from tests.rasters import noise
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", "32", "--batch-size", "2", "--no-progress")
TIMES = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z?")
MASKS = ("mask.tif", "probability.tif")  # beside an output, in runs with masks
command = typer.main.get_command(app)


def content(path: Path) -> Any:
    """Content of an output without its timestamps."""
    if path.suffix != ".gpkg":
        return path.read_bytes()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return [TIMES.sub("", line) for line in database.iterdump()]


def in_fork(action: Callable[[], object]) -> tuple[int, str]:
    """Exit code (negative for a signal) and stderr of an action in a fork."""
    read_end, write_end = os.pipe()  # a file could not grow on a full disk
    with os.fdopen(read_end, "rb") as stderr:
        child = os.fork()
        if child == 0:
            os.dup2(write_end, 2)
            code = 99
            try:
                action()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(write_end)
        text = stderr.read().decode()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def run(*args: object, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Exit code and stderr of a run in a fork that calls `before` first."""

    def action() -> None:
        before()
        command([str(arg) for arg in args], prog_name="deltavlm")

    return in_fork(action)


def kill_at(step: int, folder: Path) -> Callable[[], None]:
    """Kill the process at disk operation `step`, from 0; of a journal group a part is written.

    Operations before which the folder is as it was at the last one counted are not counted: to the run that
    resumes, both kills are the same.
    """
    remaining, last_seen = step, None

    def is_due(*, always: bool = False) -> bool:
        nonlocal remaining, last_seen
        seen = files_in(folder)
        remaining -= always or seen != last_seen
        last_seen = seen
        return remaining < 0

    def audit(event: str, args: tuple[Any, ...]) -> None:
        is_ours = (
            bool(args) and isinstance(args[0], str | os.PathLike) and str(args[0]).startswith(str(folder))
        )
        writes = event == "open" and is_ours and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if (writes or (is_ours and event in ("os.rename", "os.remove"))) and is_due():
            os.kill(os.getpid(), signal.SIGKILL)

    def killing_fsync(handle: int) -> None:
        if is_due():
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    def appended(journal: JournalFile, group: list[Any]) -> list[int]:
        if is_due(always=True):
            with journal.path.open("ab") as file:
                file.write(repr(group).replace("'", '"').encode()[:99])
            os.kill(os.getpid(), signal.SIGKILL)
        return append(journal, group)

    fsync, append = os.fsync, JournalFile.append

    def install() -> None:
        os.fsync = killing_fsync
        JournalFile.append = appended  # type: ignore[method-assign]
        sys.addaudithook(audit)

    return install


def files_in(folder: Path) -> dict[str, bytes]:
    """Content of the files of a folder except the two images, which no run writes."""
    files = {}
    for path in folder.iterdir():
        if path.name not in ("a.tif", "b.tif"):
            with suppress(FileNotFoundError):  # removed meanwhile by another thread
                files[path.name] = path.read_bytes()
    return files


def extra_files(out: Path) -> list[Path]:
    """Paths of the files beside an output: none, or with masks two rasters and polygons."""
    if not with_masks:
        return []
    rasters = [out.parent / name for name in MASKS]
    return rasters if out.suffix == ".gpkg" else [*rasters, out.with_name(f"out.changes{out.suffix}")]


def contents(out: Path) -> list[Any]:
    """Contents of the output and of the files beside it."""
    return [content(path) for path in (out, *extra_files(out))]


def styles(out: Path) -> list[Path]:
    """Paths of the QGIS styles beside vector files."""
    return [
        path.with_suffix(".qml") for path in (out, *extra_files(out)) if path.suffix not in (".gpkg", ".tif")
    ]


def remove(out: Path) -> None:
    for path in (out, *extra_files(out), *styles(out)):
        path.unlink(missing_ok=path.suffix == ".qml")


def crashes(folder: Path, suffix: str) -> int:
    """Kill a run at each disk operation and resume: the output is complete, and no other file remains."""
    args, expected = prepare(folder, suffix)
    out = folder / f"out{suffix}"
    step, killed = 0, 0
    while True:
        code, stderr = run(*args, "-o", out, before=kill_at(step, folder))
        if code == 0:
            break
        assert code == -signal.SIGKILL, stderr
        killed += 1
        exists = out.exists()  # killed after the rename
        assert not exists or contents(out) == expected
        code, stderr = run(*args, "-o", out, *(["--overwrite"] if exists else []))
        assert code == 0, (step, stderr)
        assert contents(out) == expected, step
        files = {"a.tif", "b.tif", out.name, *(path.name for path in [*extra_files(out), *styles(out)])}
        assert {path.name for path in folder.iterdir()} == files, step
        remove(out)
        step += 1
    return killed


def full_disk(folder: Path, suffix: str) -> int:
    """Limit the size of files (RLIMIT_FSIZE): one error line, no output, and the same command resumes."""
    args, expected = prepare(folder, suffix)
    length = size_of(args, folder / f"out{suffix}")
    near = [length - missing for missing in (12_000, 500, 1) if missing < length]
    failures = 0
    for size in (0, 2_000, 5_000, *near):

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        failures += fails_and_resumes(args, folder / f"out{suffix}", expected, limit)
    return failures


def small_disk(folder: Path, suffix: str) -> int:
    """The same on a full file system, with a filler file that leaves the given space."""
    args, expected = prepare(folder, suffix)
    out = folder / f"out{suffix}"
    length = size_of(args, out)
    filler, failures = folder / "filler", 0
    for space in (0, 4_096, 8_192, length, 4 * length):
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize
        filler.write_bytes(bytes(max(0, free - max(space, 0))))
        failures += fails_and_resumes(args, out, expected, filler=filler)
        filler.unlink(missing_ok=True)
    return failures


def size_of(args: list[object], out: Path) -> int:
    """Size of the output in bytes."""
    code, stderr = run(*args, "-o", out)
    assert code == 0, stderr
    length = out.stat().st_size
    remove(out)
    return length


def fails_and_resumes(
    args: list[object],
    out: Path,
    expected: Any,
    before: Callable[[], None] = lambda: None,
    filler: Path | None = None,
) -> bool:
    """Run on a full disk; if it fails, check the error line and resume. Returns whether it failed."""
    code, stderr = run(*args, "-o", out, before=before)
    inputs = {"a.tif", "b.tif", "filler", *(path.name for path in styles(out))}
    remaining = {path.name for path in out.parent.iterdir()} - inputs
    if code != 0:
        assert code in (1, 2), stderr
        assert stderr.splitlines()[-1].startswith("Error: "), stderr
        assert "Traceback" not in stderr
        assert "unexpected" not in stderr
        journal = {f"{out.name}.journal.{end}" for end in ("jsonl", "masks")}
        assert remaining <= {*journal, *(path.name for path in extra_files(out))}, remaining
        if filler is not None:
            filler.unlink()
        second_code, stderr = run(*args, "-o", out)
        assert second_code == 0, stderr
    else:
        assert remaining == {out.name, *(path.name for path in extra_files(out))}
    assert contents(out) == expected
    remove(out)
    return code != 0


def prepare(folder: Path, suffix: str) -> tuple[list[object], Any]:
    """Arguments of a run, and the contents that it writes when it is not interrupted."""
    args, out = arguments(folder), folder / f"out{suffix}"
    code, stderr = run(*args, "-o", out)
    assert code == 0, stderr
    expected = contents(out)
    remove(out)
    return args, expected


def arguments(folder: Path) -> list[object]:
    """Arguments of a run without its output: six chips in three batches of a new pair."""
    height, width = (60, 88) if with_masks else (64, 96)  # chips overlap by 4 px where masks are written
    pixels = noise(3, height, width)
    before = write_tiled(folder / "a.tif", pixels)
    pixels[:, 40:50, 40:50] = 255
    args = ["analyze", before, write_tiled(folder / "b.tif", pixels), *SMALL]
    if with_masks:
        args += ["--polygons", "--mask", folder / MASKS[0], "--probability", folder / MASKS[1]]
    return args


def warm_up() -> None:
    """Run once in this process, whose forks then have all imports."""
    global with_masks
    with TemporaryDirectory() as name, redirect_stderr(io.StringIO()):
        with_masks = True
        args = [*arguments(Path(name)), "-o", Path(name) / "out.gpkg"]
        with suppress(SystemExit):
            command([str(arg) for arg in args])
        with_masks = False


with_masks = False
SCENARIOS = {"crashes": crashes, "full_disk": full_disk, "small_disk": small_disk}


def answer(name: str, folder: str, suffix: str, masks: bool) -> tuple[int, str]:
    """Exit code and stderr of a scenario in a fork."""

    def action() -> None:
        global with_masks
        with_masks = masks
        count = SCENARIOS[name](Path(folder), suffix)
        print(count, file=sys.stderr)

    return in_fork(action)


if __name__ == "__main__":
    deltavlm.load_model = lambda name, runtime: ScriptedModel()
    warm_up()
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a run sets up stdin, of which nothing may have been read
    for line in requests:
        print(json.dumps(answer(*json.loads(line))), flush=True)
