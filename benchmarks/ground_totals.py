"""Totals of outputs: sums over chips, by the ground that is each chip's own, and by polygons.

    python benchmarks/ground_totals.py out.gpkg polygons.gpkg     # outputs of analyze, one row each
    python benchmarks/ground_totals.py --scenes 4                 # drawn scenes, whose changes are known

"sums" are those over whole chips, which count ground in two chips twice. Of an output with polygons, both
"by chips" and "by polygons" are shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from affine import Affine
from rows import commit, hardware

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import deltavlm  # noqa: E402
from deltavlm.data.synthetic import Scene, SceneOptions, make_scene  # noqa: E402
from deltavlm.data.synthetic.cache import RICH_TEST_SEED, TEST_SEED  # noqa: E402
from deltavlm.data.synthetic.ground_truth import CHANGE_CODE  # noqa: E402
from deltavlm.geo.geotiff import write_geotiff  # noqa: E402
from deltavlm.pipeline.totals import Totals  # noqa: E402
from deltavlm.summaries.results import Results, read_results  # noqa: E402

HEAD = "| output | what | changed km² | new buildings | new roads |"
PLACE = {"transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), "crs": "EPSG:32633"}
SIDES = (600, 700, 900, 1000)  # px, of scenes; no multiple of a chip
SEEDS = {"made": (TEST_SEED, SceneOptions()), "rich": (RICH_TEST_SEED, SceneOptions(rich=True))}  # held out
MIN_PIXELS = 26  # of a building or road, from which it counts in training


def rows_of(name: str, results: Results) -> list[tuple[str, str, float | None, float | None, float | None]]:
    """Rows of one output."""
    arrays = results.chip_arrays
    whole = np.where(arrays.shares > 0, 1 / np.where(arrays.shares > 0, arrays.shares, 1), 0)
    kinds: list[tuple[str, Totals]] = [("sums", arrays.totals(parts=whole)), ("by chips", arrays.totals())]
    if results.from_polygons.any():
        polygons = results.polygon_arrays.totals()
        new_buildings, new_roads = (polygons.kinds.get(f"{each}_built", 0.0) for each in ("building", "road"))
        polygons = replace(polygons, new_buildings=new_buildings, new_roads=new_roads)
        kinds.append(("by polygons", polygons))
    return [(name, what, each.changed_km2, each.new_buildings, each.new_roads) for what, each in kinds]


def truth_of(scene: Scene) -> tuple[float, int, int]:
    """Changed km², new buildings and new roads of a scene."""
    counts = []
    for kind in ("building_built", "road_built"):
        sizes = np.bincount(scene.instances[scene.change == CHANGE_CODE[kind]], minlength=1)[1:]
        counts.append(int((sizes >= MIN_PIXELS).sum()))
    return float((scene.change > 0).sum()) * 0.25e-6, *counts  # type: ignore[return-value]


def rows_of_scenes(count: int) -> list[tuple[str, str, float | None, float | None, float | None]]:
    """Rows of drawn scenes, summed over the scenes of a kind."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        before, after, output = (Path(folder) / name for name in ("before.tif", "after.tif", "out.gpkg"))
        for kind, (seed, options) in SEEDS.items():
            sums: dict[str, np.ndarray] = {}
            for number in range(count):
                side = SIDES[number % len(SIDES)]
                scene = make_scene(seed + number, side, side, options)
                write_geotiff(before, scene.before, **PLACE)
                write_geotiff(after, scene.after, **PLACE)
                output.unlink(missing_ok=True)
                deltavlm.analyze(before, after, output=output, polygons=True)
                made = [(kind, "drawn", *truth_of(scene)), *rows_of(kind, read_results([output]))]
                for _, what, *figures in made:
                    sums[what] = sums.get(what, 0) + np.nan_to_num(np.array(figures, float))
            rows += [(f"{count} scenes, {kind}", what, *figures.tolist()) for what, figures in sums.items()]
    return rows


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("outputs", nargs="*", type=Path)
    ask.add_argument("--scenes", type=int, default=0, help="drawn scenes of each kind")
    asked = ask.parse_args()
    rows = [row for path in asked.outputs for row in rows_of(path.stem, read_results([path]))]
    rows += rows_of_scenes(asked.scenes) if asked.scenes else []
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {hardware(1)}\n\n{HEAD}\n|---|---|---|---|---|")
    for name, what, km2, *counts in rows:
        texts = ["-" if value is None else f"{value:.1f}" for value in counts]
        print(f"| {name} | {what} | {'-' if km2 is None else f'{km2:.3f}'} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
