"""Light install: seconds and disk space from an empty virtual environment to the first map.

    python benchmarks/install.py [--extra torch]

Makes a virtual environment in a temporary folder, installs a copy of this checkout into it (with an extra, if
one is given), and analyzes the sample pair twice: the first run compiles the graphs of nano and the byte code
of Python, the second one does not. Needs the package index; the download depends on the line, and on pip's
cache. Prints a row of a Markdown table: seconds by the clock and, of a busy machine, of the processor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

from benchmarks.rows import Table, heading  # noqa: E402


def timed(command: list[str], environment: dict[str, str], folder: Path) -> tuple[float, float]:
    """Seconds of a command: by the clock, and of the processor."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
    after = os.times()
    processor_s = sum(after[2:4]) - sum(before[2:4])  # of ended children, user and system
    return time.perf_counter() - start, processor_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", help="for example torch; none for the light install")
    args = parser.parse_args()
    python_variables = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in python_variables}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment["OV_CACHE_DIR"] = name
        binaries = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin")
        source = str(ROOT) + (f"[{args.extra}]" if args.extra else "")
        sample = [str(ROOT / "sample_data" / f"{date}.tif") for date in ("before", "after")]
        analyze = [str(binaries / "deltavlm"), "analyze", *sample, "-o", "map.gpkg", "--overwrite"]
        install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", source]
        steps = {
            "environment": [sys.executable, "-m", "venv", str(folder / "env")],
            "pip install": install,
            "first map": analyze,
            "second map": analyze,
        }
        seconds = {step: timed(command, environment, folder) for step, command in steps.items()}
        size = sum(path.lstat().st_size for path in (folder / "env").rglob("*") if not path.is_dir())
    print(f"{heading(os.cpu_count() or 1)}\n")
    table = Table()
    table.row(
        {"install": args.extra or "light"}
        | {
            f"{step}, s (processor)": f"{wall:.1f} ({processor:.1f})"
            for step, (wall, processor) in seconds.items()
        }
        | {"environment, GB": f"{size / 1e9:.2f}"}
    )


if __name__ == "__main__":
    main()
