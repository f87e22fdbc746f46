"""Markdown tables of benchmark results, with commit, hardware and versions."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def hardware(threads: int) -> str:
    """Processor, threads used and cores of the machine, operating system."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    return f"{name}, {threads} of {os.cpu_count()} cores, {platform.system()}"


def commit(checkout: Path = ROOT) -> str:
    """Short hash of a checkout, with a plus if files differ from it."""
    try:
        short, changed = (
            subprocess.run(
                ["git", *words], cwd=checkout, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return short + ("+" if changed else "")


def heading(threads: int, *versions: str) -> str:
    """Date, commit, hardware, versions and load average, for all rows of a run."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    software = (f"Python {platform.python_version()}", *versions)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {hardware(threads)}, {', '.join(software)}; "
        f"load before: {load}"
    )


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and, of several values, the range."""
    median = f"{statistics.median(values):.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):.{digits}f}-{max(values):.{digits}f})"


class Table:
    """Markdown table that is printed row by row, with the header before the first."""

    def __init__(self) -> None:
        self.has_header = False

    def row(self, cells: Mapping[str, object]) -> None:
        if not self.has_header:
            print("| " + " | ".join(cells) + " |")
            print("|" + "---|" * len(cells))
            self.has_header = True
        print("| " + " | ".join(map(str, cells.values())) + " |", flush=True)
