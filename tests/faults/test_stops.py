"""Stopped at every step, or by a disk that is full: what was found is kept, and the same command goes on.

Kills at random times are in `tests/cli/test_resume.py`, `test_pairs.py` and `benchmarks/kills.py`; a journal
that is cut at any byte is in `tests/pipeline/test_journal.py` and `test_pair_journal.py`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.conftest import Scene
from tests.scripted_model import ScriptedModel

ROOT = Path(__file__).resolve().parents[2]
forks = pytest.mark.skipif(sys.platform != "linux", reason="runs are forks")


def in_forks(what: str, folder: Path, suffix: str, *more: str) -> int:
    """How many runs were stopped; all checks are in `forked.py`."""
    command = [sys.executable, "-m", "tests.faults.forked", what, folder, suffix, *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


@pytest.mark.slow
@forks
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_killed_at_each_step(tmp_path: Path, suffix: str) -> None:
    """SIGKILL before every opening, renaming, removing, syncing of a file, and in the midst of a group."""
    assert in_forks("crashes", tmp_path, suffix) > 10


@pytest.mark.slow
@forks
def test_killed_at_each_step_with_masks(tmp_path: Path) -> None:
    """The rasters and the polygons too are those of an unbroken run, byte for byte."""
    assert in_forks("crashes", tmp_path, ".gpkg", "masks") > 20


@pytest.mark.slow
@forks
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_files_that_may_not_grow_with_masks(tmp_path: Path, suffix: str) -> None:
    assert in_forks("full_disk", tmp_path, suffix, "masks") > 3


@pytest.mark.slow
@forks
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb", ".parquet"])
def test_files_that_may_not_grow(tmp_path: Path, suffix: str) -> None:
    """A GeoPackage lost its index, a FlatGeobuf its end, and the run ended with 0: GDAL had said nothing."""
    assert in_forks("full_disk", tmp_path, suffix) > 3


def test_out_of_memory(run: Run, scene: Scene, model: ScriptedModel) -> None:
    """Not that of a GPU, which halves the batch: the machine's own. What was found before is kept."""
    encode, calls = model.encode, 0

    def failing(before: object, after: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError
        return encode(before, after)  # type: ignore[arg-type]

    model.encode = failing  # type: ignore[method-assign, assignment]
    args = ("analyze", *scene.args, "-o", "out.geojson", "--chip-size", 32, "--batch-size", 2)
    result = run(*args)
    assert result.exit_code == 1
    assert "6 chips kept in out.geojson.journal.jsonl; the same command resumes" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: out of memory; a smaller --batch-size")
    assert run(*args).exit_code == 0
    assert run(*args[:4], "whole.geojson", *args[5:]).exit_code == 0
    assert Path("out.geojson").read_bytes() == Path("whole.geojson").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("no file system can be made here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@forks
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_a_disk_that_is_full(small_disk: Path, suffix: str) -> None:
    assert in_forks("small_disk", small_disk, suffix) > 2
