"""Does `analyze` come to the same output however often it is killed?

    python benchmarks/kills.py --kills 50

Runs over the sample pair are killed (SIGKILL) at random times, and gone on with by the same command until the
output is there; it is compared with that of an unbroken run, and the next begins. Three kills of ten come at
any time, five while chips are answered, two while the output is written. Prints rows of a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rows import commit, hardware  # noqa: E402

PAIR = ("sample_data/before.tif", "sample_data/after.tif")
TIMES = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z?")
LONGEST_S = {"any": 12.0, "chips": 4.0, "writing": 0.1}  # from a moment to the kill
MOMENTS = ("any",) * 3 + ("chips",) * 5 + ("writing",) * 2


def content(path: Path) -> Any:
    """What an output holds, without the times at which it was written."""
    if path.suffix != ".gpkg":
        return path.read_bytes()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return [TIMES.sub("", line) for line in database.iterdump()]


def chips_kept(journal: Path) -> int:
    """Chips in whole groups: what a killed run had written down."""
    kept, group = 0, 0
    for line in journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []:
        try:
            told = json.loads(line)
        except ValueError:
            break
        group += 1
        if "end" in told:
            kept, group = kept + group, 0
    return kept


@dataclass
class Count:
    """What the kills have come to."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("any", "chips", "writing"), 0))
    outputs: int = 0
    different: int = 0
    lost: int = 0  # chips that were written down, and not there when the run was gone on with
    left: int = 0  # files beside an output, once it was there, but for its style


def start(out: Path, more: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deltacli", "analyze", *PAIR, "-o", str(out), *more, "--no-progress"]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )


def wait_for(process: subprocess.Popen[str], moment: str, journal: Path, seconds: float) -> None:
    """Wait until the run has come to a moment, or is over."""
    seen = journal.stat().st_size if journal.exists() else 0
    folder = journal.parent
    while process.poll() is None:
        if moment == "any" or (moment == "chips" and journal.exists() and journal.stat().st_size > seen):
            break
        if moment == "writing" and any(folder.glob(".deltavlm-*")):
            break
        time.sleep(0.001)
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)


def one_output(out: Path, whole: Any, more: list[str], rng: random.Random, kills: int, count: Count) -> None:
    """An output over as many kills as it takes; when there were `kills` in all, the rest goes on in peace."""
    journal, kept = out.with_name(out.name + ".journal.jsonl"), 0
    while True:
        moment = rng.choice(MOMENTS) if sum(count.kills.values()) < kills else "none"
        process = start(out, more)
        if moment != "none":
            wait_for(process, moment, journal, rng.uniform(0, LONGEST_S[moment]))
            process.kill()
        _, said = process.communicate()
        known = re.search(r"(\d+) chips? of \d+ answered already", said)
        if known or process.returncode == 0:
            count.lost += max(0, kept - int(known[1] if known else 0))
        if process.returncode == -signal.SIGKILL:
            count.kills[moment] += 1
            kept = chips_kept(journal)
            if not out.exists():  # else it was killed after the output had its name
                continue
        elif process.returncode != 0:
            raise SystemExit(f"exit code {process.returncode}: {said}")
        count.outputs += 1
        count.different += content(out) != whole
        if process.returncode == 0:
            count.left += len({*out.parent.iterdir()} - {out, out.with_suffix(".qml")})
        for path in out.parent.iterdir():
            path.unlink()
        return


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--kills", type=int, default=50, help="for each format")
    ask.add_argument("--seed", type=int, default=1)
    ask.add_argument("--formats", default=".geojson,.gpkg")
    given = ask.parse_args()
    more = ["--overlap", "128", "--batch-size", "2"]
    machine = hardware(os.cpu_count() or 1)
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {machine}, seed {given.seed}\n")
    print("| format | kills: any time, chips, writing | outputs | different | chips lost | files left |")
    print("|---|---|---|---|---|---|", flush=True)
    for suffix in given.formats.split(","):
        rng, count = random.Random(given.seed), Count()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / f"out{suffix}"
            process = start(out, more)
            if process.communicate() and process.returncode != 0:
                raise SystemExit("an unbroken run fails")
            whole = content(out)
            out.unlink()
            with suppress(KeyboardInterrupt):  # Ctrl-C goes on to the next format
                while sum(count.kills.values()) < given.kills:
                    one_output(out, whole, more, rng, given.kills, count)
        kills = ", ".join(str(number) for number in count.kills.values())
        print(
            f"| `{suffix}` | {sum(count.kills.values())}: {kills} | {count.outputs} | {count.different} "
            f"| {count.lost} | {count.left} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
