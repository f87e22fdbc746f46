"""Estimates of `deltavlm analyze --dry-run` against the run itself: time, memory, disk.

    python benchmarks/estimates.py [--side 4096] [--pairs 150] [--rounds 1]

Each job is estimated and then run, as whole processes in turns, with made pairs. Prints the ratio of the
estimate to the measured value: seconds of the process, peak resident memory, bytes of all outputs.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

from benchmarks.layouts import make_pair  # noqa: E402
from benchmarks.rows import Table, heading, spread  # noqa: E402


def write_list(folder: Path, count: int) -> Path:
    """List of `count` pairs of one chip."""
    lines = ["id,before,after"]
    before, after = make_pair(folder, "tiled 512 deflate", 4096)
    import rasterio
    from rasterio.windows import Window

    for number in range(count):
        window = Window(256 * (number % 16), 256 * (number // 16), 256, 256)
        names = []
        for date, path in (("b", before), ("a", after)):
            small = folder / f"{date}{number}.tif"
            names.append(small.name)
            if small.exists():
                continue
            with rasterio.open(path) as source:
                profile = source.profile | {
                    "width": 256,
                    "height": 256,
                    "transform": source.window_transform(window),
                    "blockxsize": 256,
                    "blockysize": 256,
                }
                with rasterio.open(small, "w", **profile) as raster:
                    raster.write(source.read(window=window))
        lines.append(f"p{number},{names[0]},{names[1]}")
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def process(args: list[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, peak memory in bytes and stdout of a command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deltacli", "analyze", *args, "--json", "-q"]
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        running = subprocess.Popen(command, cwd=folder, stdout=out, env=environment)
        _, status, usage = os.wait4(running.pid, 0)
        seconds = time.perf_counter() - start
        out.seek(0)
        if status:
            sys.exit(f"{' '.join(command)}: exit {os.waitstatus_to_exitcode(status)}")
        return seconds, usage.ru_maxrss * 1024, out.read().decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096, help="pixels of the side of a single pair")
    parser.add_argument("--pairs", type=int, default=150, help="pairs of the list")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "deltavlm_estimates")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    single = [str(path) for path in make_pair(args.folder, "tiled 512 deflate", args.side)]
    striped = [str(path) for path in make_pair(args.folder, "striped deflate", args.side)]
    many = ["--pairs", str(write_list(args.folder, args.pairs))]
    jobs: dict[str, list[str]] = {
        "one pair": [*single],
        "one pair, striped": [*striped],
        "one pair, --cascade": [*single, "--cascade"],
        "one pair, --polygons --mask --probability": [
            *single,
            *("--polygons", "--mask", "o/m.tif", "--probability", "o/p.tif"),
        ],
        f"{args.pairs} pairs of one chip": many,
        f"{args.pairs} pairs, an output each": [*many, "-o", "o/"],
    }
    print(heading(os.cpu_count() or 1) + "\n")
    table = Table()
    for name, words in jobs.items():
        ratios: dict[str, list[float]] = {"time": [], "memory": [], "disk": []}
        measured: list[float] = []
        estimate: dict[str, Any] = {}
        for _ in range(args.rounds):
            shutil.rmtree(args.folder / "o", ignore_errors=True)
            (args.folder / "o").mkdir()
            output = [] if "-o" in words else ["-o", "o/out.gpkg"]
            estimate = json.loads(process([*words, *output, "-n"], args.folder)[2])["estimate"]
            seconds, memory, _ = process([*words, *output], args.folder)
            disk = sum(path.stat().st_size for path in (args.folder / "o").iterdir())
            measured.append(seconds)
            for key, value, real in (
                ("time", estimate["seconds"], seconds),
                ("memory", estimate["memory_bytes"], memory),
                ("disk", estimate["output_bytes"], disk),
            ):
                ratios[key].append(value / real)
        table.row(
            {
                "job": name,
                "chips": estimate["chips"],
                "run, s": spread(measured),
                **{f"{key}, estimate / run": f"**{spread(values, 2)}**" for key, values in ratios.items()},
            }
        )


if __name__ == "__main__":
    main()
