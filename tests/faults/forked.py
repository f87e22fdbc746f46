"""Runs of `deltavlm` that are stopped at an exact place: each in a fork of this process, so that a run takes
part of a second.

    python -m tests.faults.forked crashes|full_disk|small_disk FOLDER SUFFIX [masks]
"""

from __future__ import annotations

import io
import os
import re
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import geopandas  # noqa: F401  all that a run imports, once for all runs
import pyogrio.raw  # noqa: F401
import typer.main

import deltavlm
from deltacli.main import app
from deltavlm.pipeline.lines import Lines
from tests.conftest import write_tiled
from tests.rasters import noise
from tests.scripted_model import ScriptedModel

SMALL = ("--chip-size", "32", "--batch-size", "2", "--no-progress")
TIMES = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z?")
MASKS = ("mask.tif", "probability.tif")  # beside an output, in runs with masks
command = typer.main.get_command(app)


def content(path: Path) -> Any:
    """What an output holds, without the times at which it was written."""
    if path.suffix != ".gpkg":
        return path.read_bytes()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return [TIMES.sub("", line) for line in database.iterdump()]


def run(*args: object, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Exit code (a signal as its negative number) and stderr of a run in a fork, where `before` is called."""
    heard, told = os.pipe()  # a file could not grow on a full disk
    with os.fdopen(heard, "rb") as said:
        child = os.fork()
        if child == 0:
            os.dup2(told, 2)
            code = 99
            try:
                before()
                command([str(arg) for arg in args], prog_name="deltavlm")
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(told)
        text = said.read().decode()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def killed_at(step: int, folder: Path) -> Callable[[], None]:
    """Kills the process at its `step`-th deed on the disk, from 0; of a group of lines a part is written."""
    left = step

    def deed() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    def heard(event: str, given: tuple[Any, ...]) -> None:
        is_ours = (
            bool(given) and isinstance(given[0], str | os.PathLike) and str(given[0]).startswith(str(folder))
        )
        writes = event == "open" and is_ours and bool(given[2] & (os.O_WRONLY | os.O_RDWR))
        if (writes or (is_ours and event in ("os.rename", "os.remove"))) and deed():
            os.kill(os.getpid(), signal.SIGKILL)

    def synced(handle: int) -> None:
        if deed():
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    def appended(lines: Lines, group: list[Any]) -> list[int]:
        if deed():
            with lines.path.open("ab") as torn:
                torn.write(repr(group).replace("'", '"').encode()[:99])
            os.kill(os.getpid(), signal.SIGKILL)
        return append(lines, group)

    fsync, append = os.fsync, Lines.append

    def install() -> None:
        os.fsync = synced
        Lines.append = appended  # type: ignore[method-assign]
        sys.addaudithook(heard)

    return install


def beside(out: Path) -> list[Path]:
    """What a run writes beside its output: nothing, or with masks two rasters and polygons."""
    if not with_masks:
        return []
    rasters = [out.parent / name for name in MASKS]
    return rasters if out.suffix == ".gpkg" else [*rasters, out.with_name(f"out.changes{out.suffix}")]


def contents(out: Path) -> list[Any]:
    """What the output holds, and what lies beside it."""
    return [content(path) for path in (out, *beside(out))]


def styles(out: Path) -> list[Path]:
    """The styles that lie beside vector files that hold none."""
    return [path.with_suffix(".qml") for path in (out, *beside(out)) if path.suffix not in (".gpkg", ".tif")]


def remove(out: Path) -> None:
    for path in (out, *beside(out), *styles(out)):
        path.unlink(missing_ok=path.suffix == ".qml")


def crashes(folder: Path, suffix: str) -> None:
    """Kill a run at each of its deeds, and go on: the output is that of an unbroken run, and nothing is left.

    What comes before the output is written does not hang on its format: with GeoPackage it is left out.
    """
    args, whole = made(folder, suffix)
    out = folder / f"out{suffix}"
    step, killed = 15 if suffix == ".gpkg" and not with_masks else 0, 0
    while True:
        code, said = run(*args, "-o", out, before=killed_at(step, folder))
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        killed += 1
        is_there = out.exists()  # killed after the output got its name
        assert not is_there or contents(out) == whole
        code, said = run(*args, "-o", out, *(["--overwrite"] if is_there else []))
        assert code == 0, (step, said)
        assert contents(out) == whole, step
        there = {"a.tif", "b.tif", out.name, *(path.name for path in [*beside(out), *styles(out)])}
        assert {path.name for path in folder.iterdir()} == there, step
        remove(out)
        step += 1
    print(killed)


def full_disk(folder: Path, suffix: str) -> None:
    """No file may grow beyond a size: one clear line, no output, and the same command goes on later."""
    args, whole = made(folder, suffix)
    length = size_of(args, folder / f"out{suffix}")
    near = [length - less for less in (12_000, 500, 1) if less < length]
    stopped = 0
    for size in (0, 2_000, 5_000, *near):

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        stopped += is_stopped(args, folder / f"out{suffix}", whole, limit)
    print(stopped)


def small_disk(folder: Path, suffix: str) -> None:
    """The same on a disk that is really full: a filler leaves less room each time."""
    args, whole = made(folder, suffix)
    out = folder / f"out{suffix}"
    length = size_of(args, out)
    filler, stopped = folder / "filler", 0
    for room in (0, 4_096, 8_192, length, 4 * length):
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize
        filler.write_bytes(bytes(max(0, free - max(room, 0))))
        stopped += is_stopped(args, out, whole, filler=filler)
        filler.unlink(missing_ok=True)
    print(stopped)


def size_of(args: list[object], out: Path) -> int:
    """Bytes of the output."""
    code, said = run(*args, "-o", out)
    assert code == 0, said
    length = out.stat().st_size
    remove(out)
    return length


def is_stopped(
    args: list[object],
    out: Path,
    whole: Any,
    before: Callable[[], None] = lambda: None,
    filler: Path | None = None,
) -> bool:
    """Whether a full disk stops a run, which must tell it in one line; then it is gone on with."""
    code, said = run(*args, "-o", out, before=before)
    known = {"a.tif", "b.tif", "filler", *(path.name for path in styles(out))}
    left = {path.name for path in out.parent.iterdir()} - known
    if code != 0:
        assert code in (1, 2), said
        assert said.splitlines()[-1].startswith("Error: "), said
        assert "Traceback" not in said
        assert "unexpected" not in said
        kept = {f"{out.name}.journal.{end}" for end in ("jsonl", "masks")}
        assert left <= {*kept, *(path.name for path in beside(out))}, left
        if filler is not None:
            filler.unlink()
        again, said = run(*args, "-o", out)
        assert again == 0, said
    else:
        assert left == {out.name, *(path.name for path in beside(out))}
    assert contents(out) == whole
    remove(out)
    return code != 0


def made(folder: Path, suffix: str) -> tuple[list[object], Any]:
    """The arguments of a run, and what it gives when nothing stops it."""
    pixels = noise(3, 64, 96)
    before = write_tiled(folder / "a.tif", pixels)
    pixels[:, 40:50, 40:50] = 255
    args = ["analyze", before, write_tiled(folder / "b.tif", pixels), *SMALL]
    if with_masks:
        args += ["--polygons", "--mask", folder / MASKS[0], "--probability", folder / MASKS[1]]
    out = folder / f"out{suffix}"
    code, said = run(*args, "-o", out)
    assert code == 0, said
    whole = contents(out)
    remove(out)
    return args, whole


with_masks = sys.argv[4:] == ["masks"]
if __name__ == "__main__":
    deltavlm.load_model = lambda name, runtime: ScriptedModel()
    with suppress(SystemExit), redirect_stderr(io.StringIO()):
        command(["analyze", "nosuch.tif", "nosuch.tif"])  # what the first call takes long for is done once
    {"crashes": crashes, "full_disk": full_disk, "small_disk": small_disk}[sys.argv[1]](
        Path(sys.argv[2]), sys.argv[3]
    )
