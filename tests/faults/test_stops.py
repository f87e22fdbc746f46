"""Runs killed at every step or ended by a full disk: results are kept, and the same command resumes.

Kills at random times are in `tests/cli/test_resume.py`, `test_pairs.py` and `benchmarks/kills.py`; a journal
truncated at any byte is in `tests/pipeline/test_journal.py` and `test_pair_journal.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.conftest import Scene
from tests.faults.conftest import mounted
from tests.scripted_model import ScriptedModel

ROOT = Path(__file__).resolve().parents[2]
forks = pytest.mark.skipif(sys.platform != "linux", reason="runs in forks")


Scenario = Callable[..., int]


@pytest.fixture(scope="module")
def run_in_forks() -> Iterator[Scenario]:
    """`run_in_forks(name, folder, suffix, masks=True)` is the number of interrupted runs; all checks are in
    `forked.py`, of which one process forks all scenarios."""
    command = [sys.executable, "-m", "tests.faults.forked"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(name: str, folder: Path, suffix: str, *, masks: bool = False) -> int:
            process.stdin.write(json.dumps([name, str(folder), suffix, masks]) + "\n")
            process.stdin.flush()
            code, stderr = json.loads(process.stdout.readline())
            assert code == 0, stderr[-3000:]
            return int(stderr.splitlines()[-1])

        yield run
        process.stdin.close()


@pytest.mark.slow
@forks
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_killed_at_each_step(run_in_forks: Scenario, tmp_path: Path, suffix: str) -> None:
    """SIGKILL before every open, rename, unlink and fsync of a file, and in the middle of a group."""
    assert run_in_forks("crashes", tmp_path, suffix) > 10


@pytest.mark.slow
@forks
def test_killed_at_each_step_with_masks(run_in_forks: Scenario, tmp_path: Path) -> None:
    """Rasters and polygons also equal those of an uninterrupted run, byte for byte."""
    assert run_in_forks("crashes", tmp_path, ".gpkg", masks=True) > 20


@pytest.mark.slow
@forks
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_limited_file_size_with_masks(run_in_forks: Scenario, tmp_path: Path, suffix: str) -> None:
    assert run_in_forks("full_disk", tmp_path, suffix, masks=True) > 3


@pytest.mark.slow
@forks
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb", ".parquet"])
def test_limited_file_size(run_in_forks: Scenario, tmp_path: Path, suffix: str) -> None:
    """GDAL reports no error: a GeoPackage lost its index, a FlatGeobuf its end, with exit code 0."""
    assert run_in_forks("full_disk", tmp_path, suffix) > 3


def test_out_of_memory(run: Run, scene: Scene, model: ScriptedModel) -> None:
    """Out of main memory (on a GPU the batch is halved): earlier results are kept."""
    encode, calls = model.encode, 0

    def failing(before: object, after: object, contexts: object = ()) -> object:
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
    assert run(*args[:4], "expected.geojson", *args[5:]).exit_code == 0
    assert Path("out.geojson").read_bytes() == Path("expected.geojson").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    with mounted(tmp_path / "disk", "size=2m") as folder:
        yield folder


@pytest.mark.slow
@forks
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_full_disk(run_in_forks: Scenario, small_disk: Path, suffix: str) -> None:
    assert run_in_forks("small_disk", small_disk, suffix) > 2
