"""CPU time and peak memory of this checkout against another one, as whole processes that run in turns.

    python benchmarks/versions.py OTHER_CHECKOUT [--rounds 5] [--side 2048]

Both run with the installed dependencies: `--help` of analyze, `analyze` of a synthetic pair with nano, and
the same with polygons and a raster. The outputs are compared too: as GeoJSON they must be byte-equal. CPU
time is compared and not that of the clock, which other programs on the machine prolong.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rows import ROOT, Table, commit, heading, spread


@dataclass(frozen=True)
class Usage:
    """Resources of a finished process and its children."""

    cpu_s: float
    peak_mb: float


def run(checkout: Path, folder: Path, *words: str) -> Usage:
    """Run `deltavlm` of a checkout in a folder. Exits if it fails."""
    command = [sys.executable, "-m", "deltacli", *words]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    with (folder / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} of {checkout}: {(folder / 'stderr.txt').read_text()}")
    return Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=2048, help="side of the pair, px")
    options = parser.parse_args()
    other = options.other.resolve()
    with tempfile.TemporaryDirectory() as name:
        scene = Path(name)
        run(ROOT, scene, "synth", "scene", ".", "--width", str(options.side), "--height", str(options.side))
        pair = (str(scene / "before.tif"), str(scene / "after.tif"))
        analyze = ("analyze", *pair, "-o", "out.geojson", "--overwrite", "--no-progress")
        cases = {
            "analyze --help": ("analyze", "--help"),
            "analyze": analyze,
            "analyze --polygons --mask": (*analyze, "--polygons", "--mask", "mask.tif"),
        }
        table, folders = Table(), (scene / "this", scene / "other")
        for folder in folders:
            folder.mkdir()
        print(heading(os.cpu_count() or 1, f"against {commit(other)}") + "\n")
        for case, words in cases.items():
            turns = []
            for turn in range(options.rounds + 1):  # the first is not counted
                pair_of_runs = [
                    run(checkout, folder, *words)
                    for checkout, folder in zip((ROOT, other), folders, strict=True)
                ]
                if turn:
                    turns.append(pair_of_runs)
            same = {path.name: path.read_bytes() for path in folders[1].glob("*.geojson")}
            equal = all((folders[0] / file).read_bytes() == content for file, content in same.items())
            ratio = statistics.median(here.cpu_s / there.cpu_s for here, there in turns)
            table.row(
                {
                    "command": f"`{case}`",
                    "CPU s, other": spread([there.cpu_s for _, there in turns], 2),
                    "CPU s, this": spread([here.cpu_s for here, _ in turns], 2),
                    "ratio": f"**{ratio:.2f}**",
                    "peak MB, other": f"{statistics.median(there.peak_mb for _, there in turns):.0f}",
                    "peak MB, this": f"{statistics.median(here.peak_mb for here, _ in turns):.0f}",
                    "outputs equal": "-" if not same else "yes" if equal else "NO",
                }
            )


if __name__ == "__main__":
    main()
