"""How good are polygons and masks of change where the truth is known, do chips show, and what do they cost?

    python benchmarks/polygons.py --scenes 4 --rounds 3
    python benchmarks/polygons.py --quick

Scenes larger than a chip are drawn from seeds that no training saw; each is also cut half a chip further on,
where every chip lies elsewhere: a mask without seams is the same there. All goes through `deltavlm analyze`,
with nano in this process. Prints Markdown tables for `results.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import pyogrio  # noqa: E402
import rasterio  # noqa: E402
import shapely  # noqa: E402
from affine import Affine  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import deltavlm  # noqa: E402
from deltacli.main import app  # noqa: E402
from deltavlm.data.synthetic import Scene, SceneOptions, make_scene  # noqa: E402
from deltavlm.data.synthetic.cache import RICH_TEST_SEED, TEST_SEED  # noqa: E402
from deltavlm.data.synthetic.ground_truth import CHANGE_CLASSES  # noqa: E402
from deltavlm.geo.geotiff import write_geotiff  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.pipeline.mask_codec import CLASSES  # noqa: E402

SIDE, CHIP = 1024, 256
HALF = CHIP // 2
OVERLAPS = (0, 16, 32, 64)
HEADS = (
    "| scenes | overlap, px | chips of a large raster | IoU building | road | other "
    "| pixels that differ half a chip on | pixels changed |",
    "| scenes | right of polygons below 10 m2 | to 30 | to 100 | to 300 | larger "
    "| corners, by simplifying | area |",
    "| runs | chips without, with | chips a second of a core without | with | time |",
)
SIZES_M2 = (0, 10, 30, 100, 300, float("inf"))  # of polygons
KIND_OF = np.array(
    [0]
    + [
        1 + (CLASSES.index(name.split("_")[0]) if name.split("_")[0] in CLASSES else 2)
        for name in CHANGE_CLASSES[1:]
    ],
    np.uint8,
)  # truth's code -> that of a mask
PLACE = {"transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), "crs": "EPSG:32633"}


def analyze(folder: Path, *words: object) -> dict[str, Any]:
    """The summary of a run over the pair in a folder, with its processor time as `cpu`."""
    args = ["analyze", folder / "before.tif", folder / "after.tif", "-o", folder / "out.gpkg", "--overwrite"]
    start = time.process_time()
    done = CliRunner().invoke(app, [*map(str, args), "--json", "-q", *map(str, words)])
    if done.exit_code:
        sys.exit(done.output)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary | {"cpu": time.process_time() - start}


def write_pair(folder: Path, scene: Scene) -> None:
    for name, pixels in (("before.tif", scene.before), ("after.tif", scene.after)):
        write_geotiff(folder / name, pixels, **PLACE)


def mask_of(folder: Path, overlap: int) -> NDArray[np.uint8]:
    """Classes over the pair in the folder."""
    analyze(folder, "--ask", "change", "--mask", folder / "mask.tif", "--overlap", overlap)
    with rasterio.open(folder / "mask.tif") as raster:
        return raster.read(1)


def agreement(folder: Path, kind: str, scenes: list[Scene]) -> list[str]:
    """Rows: IoU by class, and the share of pixels that differ half a chip further on."""
    rows = []
    for overlap in OVERLAPS:
        shared, either = np.zeros(3), np.zeros(3)
        differ, changed = [], []
        for scene in scenes:
            truth = KIND_OF[scene.change[:SIDE, :SIDE]]
            write_pair(folder, scene.window(0, 0, SIDE))
            here = mask_of(folder, overlap)
            write_pair(folder, scene.window(HALF, HALF, SIDE))
            there = mask_of(folder, overlap)
            for value in range(3):
                one, other = here == value + 1, truth == value + 1
                shared[value] += (one & other).sum()
                either[value] += (one | other).sum()
            inner = slice(CHIP, SIDE - HALF), slice(HALF, SIDE - CHIP)  # half a chip from both rasters' edges
            differ.append((here[inner[0], inner[0]] != there[inner[1], inner[1]]).mean())
            changed.append((here > 0).mean())
        told = " | ".join(f"{value:.3f}" for value in shared / either)
        cost = (CHIP / (CHIP - overlap)) ** 2
        rows.append(
            f"| {kind} | {overlap} | {cost:.2f}x | {told} | {np.mean(differ):.2%} | {np.mean(changed):.2%} |"
        )
    return rows


def found(folder: Path, kind: str, scenes: list[Scene]) -> list[str]:
    """Rows: how many polygons of each size lie on ground that did change so, and how they were simplified."""
    right, number = np.zeros(len(SIZES_M2) - 1), np.zeros(len(SIZES_M2) - 1)
    areas, corners = np.zeros(2), np.zeros(2)
    for scene in scenes:
        truth = KIND_OF[scene.change[:SIDE, :SIDE]]
        write_pair(folder, scene.window(0, 0, SIDE))
        frames = []
        for more in (("--min-area", 0), ("--min-area", 0, "--simplify", 0)):
            analyze(folder, "--ask", "change", "--polygons", *more)
            frames.append(pyogrio.read_dataframe(folder / "out.gpkg", layer="changes"))
        for place, frame in enumerate(frames):
            areas[place] += frame.area_m2.sum()
            corners[place] += len(shapely.get_coordinates(frame.geometry.values))
        for row in frames[0].itertuples():
            inside = rasterio.features.geometry_mask(
                [row.geometry], truth.shape, PLACE["transform"], all_touched=True, invert=True
            )
            size = int(np.searchsorted(SIZES_M2, row.area_m2, side="right")) - 1
            number[size] += 1
            right[size] += (truth[inside] == 1 + CLASSES.index(row._1)).mean() >= 0.5
    told = " | ".join(f"{one:.0f} of {all_:.0f}" for one, all_ in zip(right, number, strict=True))
    return [f"| {kind} | {told} | {corners[1] / corners[0]:.1f}x fewer | {areas[0] / areas[1] - 1:+.1%} |"]


def cost(folder: Path, side: int, rounds: int) -> list[str]:
    """Rows: the processor time of a run with masks by that of one without, in turn; reading, asking and
    writing."""
    write_pair(folder, make_scene(TEST_SEED + 99, side, side))
    rasters = ("--mask", folder / "mask.tif", "--probability", folder / "probability.tif")
    rows = []
    for name, plain, drawn in (
        ("equal chips (--overlap 32)", ("--overlap", 32), ("--overlap", 32, "--polygons", *rasters)),
        ("as it comes", (), ("--polygons", *rasters)),
        ("polygons alone, as it comes", (), ("--polygons",)),
    ):
        turns = []
        for _ in range(rounds + 1):
            off, on = analyze(folder, *plain), analyze(folder, *drawn)
            turns.append((off, on, on["cpu"] / off["cpu"]))
        ratios = [ratio for *_, ratio in turns[1:]]  # the first warms up
        off, on, _ = turns[-1]
        speeds = [
            statistics.median(turn[of]["chips"] / turn[of]["cpu"] for turn in turns[1:]) for of in (0, 1)
        ]
        rows.append(
            f"| {name} | {off['chips']}, {on['chips']} | {speeds[0]:.1f} | {speeds[1]:.1f} | "
            f"**{statistics.median(ratios):.2f}x** ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )
    return rows


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--scenes", type=int, default=4)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--side", type=int, default=2048, help="of the scene that is timed, px")
    ask.add_argument("--threads", type=int, default=None)
    ask.add_argument("--quick", action="store_true", help="one scene, one round")
    asked = ask.parse_args()
    scenes, rounds = (1, 1) if asked.quick else (asked.scenes, asked.rounds)
    model = load_model("nano", threads=asked.threads)
    deltavlm.load_model = lambda name, runtime: model  # loaded once
    load = os.getloadavg()[0]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, nano {model.fingerprint[:8]}, {os.cpu_count()} cores, load before "
        f"{load:.1f}; {scenes} scenes of {SIDE} px of each kind, chips of {CHIP} px"
    )
    kinds: list[tuple[str, int, SceneOptions]] = [
        ("made", TEST_SEED, SceneOptions()),
        ("rich", RICH_TEST_SEED, SceneOptions(rich=True)),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = {
            kind: [make_scene(seed + place, SIDE + HALF, SIDE + HALF, options) for place in range(scenes)]
            for kind, seed, options in kinds
        }
        for head, work in ((HEADS[0], agreement), (HEADS[1], found)):
            print_table(head, [row for kind, those in drawn.items() for row in work(folder, kind, those)])
        print_table(HEADS[2], cost(folder, asked.side, rounds))


def print_table(head: str, rows: list[str]) -> None:
    print("", head, "|" + "---|" * (head.count("|") - 1), *rows, sep="\n", flush=True)


if __name__ == "__main__":
    main()
