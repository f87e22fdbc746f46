"""Peak memory of reading every chip of a small and of a large pair: it must not grow with the raster.

Each pair is read by a process of its own, without a model; the peak is that process's largest resident set.
It is started by a process that never grows, because on Linux a peak is inherited from the parent. Cases:
tiled files on one grid; tiled files of which `after` is half a pixel off, and so warped; files in strips, as
GDAL writes them by default; and tiles of 16 bits, of which a row does not fit into the cache.

    python benchmarks/memory.py --small 4000 --large 20000

Prints Markdown rows on stdout; talk goes to stderr. Exits with 1 where the large pair needs 10 % more. Needs
about 1 GB in the temporary folder, and some minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

LIMIT = 1.10
TILED = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
CASES: dict[str, tuple[dict[str, Any], str, float]] = {  # profile, dtype, shift of after in pixels
    "tiled": (TILED, "uint8", 0.0),
    "tiled, warped": (TILED, "uint8", 0.5),
    "strips": ({"compress": "deflate", "zlevel": 1}, "uint8", 0.0),
    "tiled, 16 bit": (TILED, "uint16", 0.0),
}


def write_pair(folder: str, case: str, side: int) -> None:
    """Two GeoTIFFs of `side` x `side` pixels, written in rows of blocks."""
    import numpy as np
    import rasterio
    from affine import Affine
    from rasterio.windows import Window

    profile, dtype, shift = CASES[case]
    x, y = np.meshgrid(np.arange(side), np.arange(512))
    rows = np.stack([(x // 3 + y) % 251, (x + y // 2) % 241, (x // 2 + y // 2) % 239]).astype(dtype)
    for name, offset in (("before", 0.0), ("after", shift)):
        transform = Affine(0.5, 0, 500_000 + 0.5 * offset, 0, -0.5, 5_000_000)
        with rasterio.open(
            Path(folder, f"{name}.tif"), "w", driver="GTiff", width=side, height=side, count=3, dtype=dtype,
            crs="EPSG:32631", transform=transform, photometric="RGB", **profile,
        ) as raster:  # fmt: skip
            for top in range(0, side, 512):
                height = min(512, side - top)
                raster.write(rows[:, :height], window=Window(0, top, side, height))


def read_pair(folder: str) -> None:
    """Read every chip, and print the number of chips, the seconds, and the peak in MB."""
    from deltavlm.geo.pair import RasterPair, open_pair

    started = time.monotonic()
    with open_pair(RasterPair(f"{folder}/before.tif", f"{folder}/after.tif")) as reader:
        chips = sum(1 for chip in reader.grid() if reader.read(chip).valid_fraction > 0)
    seconds = time.monotonic() - started
    print(chips, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def in_process(call: str) -> str:
    """What a function of this file prints in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from memory import *; {call}"
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", type=int, default=4000, help="side of the small pair, px")
    parser.add_argument("--large", type=int, default=20_000, help="side of the large pair, px")
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; may be repeated")
    given = parser.parse_args()
    cpu = platform.processor() or platform.machine()
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({cpu}), Python {platform.python_version()}\n"
    )
    print(f"| case | {given.small} px: MB | {given.large} px: MB | ratio | chips | chips/s |")
    print("|---|---|---|---|---|---|")
    failed = False
    for case in given.case or CASES:
        peaks: list[float] = []
        for side in (given.small, given.large):
            print(f"{case}: {side} x {side} px", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder:
                in_process(f"write_pair({folder!r}, {case!r}, {side})")
                chips, seconds, peak = (float(word) for word in in_process(f"read_pair({folder!r})").split())
            peaks.append(peak)
        small, large = peaks
        failed |= large / small > LIMIT
        numbers = f"{small:.0f} | {large:.0f} | {large / small:.2f} | {chips:.0f} | {chips / seconds:.0f}"
        print(f"| {case} | {numbers} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
