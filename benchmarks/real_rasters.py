"""Runs `deltavlm analyze` on real pairs of every awkward kind, and checks what comes out.

    python benchmarks/real_rasters.py FOLDER OUT

FOLDER holds naip_nd/2009_2020 (grids differ), oscd/abudhabi (uint16, grids differ), landsat_peru/1985_2020
(EPSG:4326) and sztaki_256/szada_2_y256_x256 (PNG, no CRS). For each pair: the output is read back, chips
are counted against the plan, every polygon must lie inside the footprint of the before image, and a
picture is drawn into OUT. Exits 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pyogrio  # noqa: E402
import rasterio  # noqa: E402
from shapely.geometry import Polygon  # noqa: E402

from benchmarks.overlay import draw_overlay  # noqa: E402
from deltavlm.geo.pair import RasterPair  # noqa: E402

PAIRS = {
    "naip_nd/2009_2020": (".tif", []),
    "oscd/abudhabi": (".tif", []),
    "landsat_peru/1985_2020": (".tif", []),
    "sztaki_256/szada_2_y256_x256": (".png", ["--allow-no-crs"]),
}


def footprint(path: Path) -> Polygon:
    """The image's outline on the ground (pixels where it has no CRS)."""
    with rasterio.open(path) as raster:
        corners = [(0, 0), (raster.width, 0), (raster.width, raster.height), (0, raster.height)]
        return Polygon([raster.transform * corner for corner in corners])


def check(folder: Path, name: str, suffix: str, flags: list[str], out: Path) -> list[str]:
    """Runs one pair; returns what was wrong."""
    before, after = (folder / name / f"{date}{suffix}" for date in ("before", "after"))
    output = out / f"{name.replace('/', '_')}.gpkg"
    command = [
        sys.executable,
        "-m",
        "deltacli",
        "analyze",
        str(before),
        str(after),
        "-o",
        str(output),
        "--overwrite",
        *flags,
    ]
    plan = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, cwd=ROOT)
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
    print(f"\n{name}: exit {done.returncode}\n{done.stderr.strip()}")
    if done.returncode:
        return [f"exit {done.returncode}"]
    summary, planned = json.loads(done.stdout), json.loads(plan.stdout)
    chips = pyogrio.read_dataframe(output, layer="chips")
    faults = []
    if not len(chips) == summary["chips"] == planned["chips"]:
        faults.append(f"{len(chips)} chips read, {summary['chips']} reported, {planned['chips']} planned")
    outline = footprint(before)
    slack = outline.buffer(1e-6 * outline.length)
    outside = [chip.chip_id for _, chip in chips.iterrows() if not slack.contains(chip.geometry)]
    if outside:
        faults.append(f"outside the footprint: {', '.join(outside)}")
    changed, statuses = int(chips.changed.fillna(False).sum()), chips.status.value_counts().to_dict()
    changed, statuses = int(chips.changed.fillna(False).sum()), chips.status.value_counts().to_dict()
    print(f"{len(chips)} chips, {changed} changed, statuses {statuses}")
    picture = out / f"{name.replace('/', '_')}.png"
    pair = RasterPair(str(before), str(after))
    draw_overlay(pair, output, picture, width=700, allow_no_crs="--allow-no-crs" in flags)
    return faults


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("folder", type=Path)
    ask.add_argument("out", type=Path)
    args = ask.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name, (suffix, flags) in PAIRS.items():
        for fault in check(args.folder, name, suffix, flags, args.out):
            failed = True
            print(f"FAILED {name}: {fault}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
