"""What `--engine ray` costs and gives on one machine against `--engine local`; are the outputs equal?

    python benchmarks/engines.py --actors 1 --actor-cpus 2
    python benchmarks/engines.py --driver --size 2048

nano on a drawn pair, the engines in turn, each as a whole process. Prints a row of `results.md`: the speed of
the run itself (`--json`), and seconds until the model is ready. With `--driver`: how many chips a second the
driver handles, by the processor time that it spends itself; a model that answers at once is asked about chips
that overlap, a long run less a short one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUB = """
import deltavlm, deltavlm.cluster.worker
from tests.workers import scripted
deltavlm.cluster.worker.load_model_on_worker = scripted
deltavlm.load_model = lambda name, runtime: scripted(name, runtime, 1)
"""
START = """
import time
from pathlib import Path
from deltacli.main import app
try:
    app(prog_name="deltavlm")
finally:
    Path("cpu").write_text(str(time.process_time()))
"""
SHORT = 64  # chips


def run(folder: Path, start: str, *args: object) -> tuple[dict[str, float], bytes]:
    """The summary of a run, with its processor time as `cpu`, and the output."""
    words = ("analyze", "before.tif", "after.tif", "-o", "out.geojson", "--overwrite", "--json", "-q", *args)
    done = subprocess.run(
        [sys.executable, "-c", start, *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    summary: dict[str, float] = json.loads(done.stdout)
    return summary | {"cpu": float((folder / "cpu").read_text())}, (folder / "out.geojson").read_bytes()


def driver(folder: Path, there: tuple[object, ...], rounds: int) -> str:
    """How many chips a second one core hands out, takes back and writes."""
    rates = []
    there = (*there, "--stride", 64)
    for _ in range(rounds):
        short, _ = run(folder, STUB + START, *there, "--limit", SHORT)
        whole, _ = run(folder, STUB + START, *there)
        rates.append((whole["chips"] - SHORT) / (whole["cpu"] - short["cpu"]))
    return (
        f"driver, {whole['chips']} chips | {statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"
    )


def engines(folder: Path, there: tuple[object, ...], threads: int, rounds: int) -> str:
    """Speeds, their ratio, seconds to start, equal outputs."""
    turns = []
    for _ in range(rounds):
        local, one = run(folder, START, "--threads", threads)
        ray, other = run(folder, START, *there)
        turns.append((local, ray, one == other))
    ratios = [ray["seconds"] / local["seconds"] for local, ray, _ in turns]
    middle = [
        statistics.median(turn[engine][key] for turn in turns)
        for key in ("chips_per_s", "load_seconds")
        for engine in (0, 1)
    ]
    return (
        f"nano, {turns[0][0]['chips']} chips | {middle[0]:.1f} | {middle[1]:.1f} | "
        f"**{statistics.median(ratios):.2f}x** ({min(ratios):.2f}-{max(ratios):.2f}) | "
        f"{middle[2]:.1f}, {middle[3]:.1f} | {sum(same for *_, same in turns)} of {rounds}"
    )


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--size", type=int, default=4096, help="side of the pair, px")
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--actors", type=int, default=1)
    ask.add_argument("--actor-cpus", type=int, default=os.cpu_count())
    ask.add_argument("--driver", action="store_true", help="the driver's processor time a chip")
    asked = ask.parse_args()
    there = ("--engine", "ray", "--actors", asked.actors, "--actor-cpus", asked.actor_cpus)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = ("synth", "scene", ".", "--width", str(asked.size), "--height", str(asked.size), "-q")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "deltacli", *scene], cwd=folder, env=environment, check=True)
        if asked.driver:
            found = driver(folder, there, asked.rounds)
        else:
            found = engines(folder, there, asked.actors * asked.actor_cpus, asked.rounds)
    today = f"{datetime.now(UTC):%Y-%m-%d} | {os.cpu_count()} cores"
    print(f"| {today} | {asked.actors} of {asked.actor_cpus} CPUs | {found} | {os.getloadavg()[0]:.1f} |")


if __name__ == "__main__":
    main()
