"""Smoke tests of benchmarks/analyze.py at a small size, at which its numbers mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.nano_scores import score_rule
from deltavlm.data.synthetic.cache import open_cache, render_cache
from deltavlm.data.synthetic.facts import facts_of
from deltavlm.model.kinds import load_model

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is measured from /proc"),
]


def rows(folder: Path, *words: str) -> list[dict[str, str]]:
    """Run the benchmark; return the rows of all tables that it prints, by column name."""
    command = [sys.executable, "benchmarks/analyze.py", "--keep", str(folder), "--rounds", "1", *words]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    table: list[dict[str, str]] = []
    names: list[str] = []
    for line in process.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            names = []
        elif not names:
            names = cells
        elif set(line) != {"|", "-"}:
            table.append(dict(zip(names, cells, strict=True)))
    return table


def test_reading_alone(tmp_path: Path) -> None:
    layouts = ("--layout", "striped deflate", "--layout", "COG JPEG")
    table = rows(tmp_path, "--read-only", "--side", "600", "--loop-chips", "2", *layouts)
    assert [row["chips"] for row in table] == ["9", "9"]
    assert all(float(row["ratio"].strip("*x")) > 0 for row in table)
    assert [row["share of that"] == "-" for row in table] == [False, True]


def test_growth(tmp_path: Path) -> None:
    words = ("--growth", "--layout", "tiled 512 deflate", "--sides", "300", "600", "--chips", "9", "16")
    table = rows(tmp_path, *words)
    assert [row["chips"] for row in table[:2]] == ["4", "9"]
    assert [row["chips (32 px)"] for row in table[2:]] == ["9", "16"]


def test_analyze_and_the_simple_loop_give_equal_answers(tmp_path: Path) -> None:
    (table,) = rows(tmp_path, "--layout", "striped deflate", "--side", "512", "--loop-chips", "1")
    assert table["chips, batch"] == "4, 16"
    assert table["equal answers"] == "4 of 4"


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_rule_of_the_mask_head_is_scored_in_both_runtimes(tmp_path: Path, runtime: str) -> None:
    render_cache(tmp_path, 2, seed=5, workers=1)
    facts = [facts_of(*maps) for maps in open_cache(tmp_path)[1]]
    scores = score_rule(load_model("nano", device="cpu", runtime=runtime), tmp_path, facts)
    assert 0 <= scores["rule_count_mae"] < 20
