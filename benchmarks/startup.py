"""How long `deltavlm COMMAND --help` takes, as a whole process.

    python benchmarks/startup.py

Prints one dated row a command: median seconds of several runs, and the ratio to Python that imports typer
and stops, measured in turn with it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("", "analyze", "grid", "synth", "weights", "doctor")


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rounds", type=int, default=7)
    rounds = ask.parse_args().rounds
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {rounds} rounds\n")
    print("| command | median s | min | max | ratio to importing typer |\n|---|---|---|---|---|")
    for command in COMMANDS:
        ours, base = [], []
        for turn in range(rounds + 1):  # the first is not counted
            one = seconds([sys.executable, "-m", "deltacli", *command.split(), "--help"])
            other = seconds([sys.executable, "-c", "import typer"])
            if turn:
                ours.append(one)
                base.append(other)
        ratio = statistics.median(a / b for a, b in zip(ours, base, strict=True))
        name = f"deltavlm {command}".strip()
        middle = statistics.median(ours)
        print(f"| `{name} --help` | {middle:.2f} | {min(ours):.2f} | {max(ours):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
