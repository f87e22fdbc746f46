"""The sum of `benchmarks/scaling.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def table(*args: str) -> tuple[str, list[list[str]]]:
    """What is said before the table, and its rows."""
    command = [sys.executable, ROOT / "benchmarks" / "scaling.py", *args]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assumptions, rows = said.split("\n\n")
    return assumptions, [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()[2:]]


def test_an_hour_of_one_gpu() -> None:
    """1 km2 of chips 100 m apart at a speed of 1/36 a second: an hour on one GPU, and the cost its price."""
    said, rows = table(
        *("--area-km2", "1", "--chip-px", "200", "--gpus", "1,4", "--efficiency", "0.5", "--start-s", "0"),
        *("--price", "7", "--speed", f"mine={1 / 36}"),
    )
    assert "100 chips, one every 100 m" in said
    assert "--efficiency 0.5" in said
    one, four = [row for row in rows if row[0] == "mine"]
    assert one[1:6] == ["given", f"{1 / 36:g}", "1 GPU", "1.00", "7"]
    assert four[3:6] == ["4 GPUs", "0.50", "14"]


@pytest.mark.parametrize(("driver", "limit"), [("1", "driver"), ("1000000", "GPU")])
def test_what_holds_it_up(driver: str, limit: str) -> None:
    _, rows = table("--driver", driver, "--gpus", "8")
    assert rows[0][-1] == limit
    assert {row[1] for row in rows} == {"paper", "measured"}
