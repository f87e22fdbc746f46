"""Smoke tests of benchmarks/analyze.py at a small size, at which its numbers mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is measured from /proc"),
]


def rows(folder: Path, *words: str) -> list[dict[str, str]]:
    """Run the benchmark; return the rows of all tables that it prints, by column name."""
    command = [sys.executable, "benchmarks/analyze.py", "--keep", str(folder), "--rounds", "1", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = []
    names: list[str] = []
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            names = []
        elif not names:
            names = cells
        elif set(line) != {"|", "-"}:
            found.append(dict(zip(names, cells, strict=True)))
    return found


def test_reading_alone(tmp_path: Path) -> None:
    layouts = ("--layout", "striped deflate", "--layout", "COG JPEG")
    told = rows(tmp_path, "--read-only", "--side", "600", "--loop-chips", "2", *layouts)
    assert [row["chips"] for row in told] == ["9", "9"]
    assert all(float(row["ratio"].strip("*x")) > 0 for row in told)
    assert [row["share of that"] == "-" for row in told] == [False, True]


def test_growth(tmp_path: Path) -> None:
    words = ("--growth", "--layout", "tiled 512 deflate", "--sides", "300", "600", "--chips", "9", "16")
    told = rows(tmp_path, *words)
    assert [row["chips"] for row in told[:2]] == ["4", "9"]
    assert [row["chips (32 px)"] for row in told[2:]] == ["9", "16"]


def test_both_ways_give_the_same_answers(tmp_path: Path) -> None:
    (told,) = rows(tmp_path, "--layout", "striped deflate", "--side", "512", "--loop-chips", "1")
    assert told["chips, batch"] == "4, 32"
    assert told["equal answers"] == "4 of 4"
