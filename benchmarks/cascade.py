"""Speed of `--cascade`, which asks the other questions only for chips whose first answer is yes.

Baseline: all questions for every chip. The input is a mosaic of synthetic scenes, one per chip, of which a
share has changed; both variants alternate in one process with one model, from open files to the finished
GeoPackage.

    python benchmarks/cascade.py --changed 0.1

Prints Markdown on stdout, messages on stderr.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import pyogrio  # noqa: E402
import rasterio  # noqa: E402
import torch  # noqa: E402

from benchmarks.answered import SPECS, ours  # noqa: E402
from benchmarks.rows import Table, heading, spread  # noqa: E402
from deltavlm.data.synthetic import SceneOptions  # noqa: E402
from deltavlm.data.synthetic.cache import TEST_SEED, open_cache, render_cache  # noqa: E402
from deltavlm.geo.pair import RasterPair  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402

SIZE = 256


def mosaic(folder: Path, side: int, changed: float) -> tuple[RasterPair, float]:
    """Raster pair of `side` x `side` synthetic chips, and the share of them that has changed."""
    render_cache(folder / "scenes", side**2, seed=TEST_SEED, options=SceneOptions(change=changed))
    images, truth = open_cache(folder / "scenes")
    paths = []
    for date, name in enumerate(("before", "after")):
        pixels = images[:, date].reshape(side, side, SIZE, SIZE, 3).transpose(4, 0, 2, 1, 3)
        paths.append(str(folder / f"{name}.tif"))
        with rasterio.open(
            paths[-1], "w", driver="GTiff", width=side * SIZE, height=side * SIZE, count=3, dtype="uint8",
            crs="EPSG:32631", transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
            photometric="RGB", tiled=True, blockxsize=512, blockysize=512, compress="deflate",
        ) as raster:  # fmt: skip
            raster.write(pixels.reshape(3, side * SIZE, side * SIZE))
    return RasterPair(*paths), float((truth[:, 0] > 0).any(axis=(1, 2)).mean())


def read_answers(output: Path) -> dict[str, tuple[bool, list[str]]]:
    """Yes/no value and texts of all answers, by chip id."""
    table = pyogrio.read_dataframe(output, layer="chips", read_geometry=False)
    texts = table[[f"answer_{spec.name}" for spec in SPECS]].to_numpy().tolist()
    return dict(zip(table["chip_id"], zip(table["changed"], texts, strict=True), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=16, help="chips along the side of the mosaic")
    parser.add_argument(
        "--changed", type=float, nargs="+", default=[0.1, 0.6], help="shares of changed scenes"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = load_model(args.model, device="cpu", threads=args.threads)
    print(heading(args.threads, f"torch {torch.__version__}"), end="\n\n")
    table = Table()
    for changed in args.changed:
        with tempfile.TemporaryDirectory() as scratch:
            pair, share = mosaic(Path(scratch), args.side, changed)
            speeds: dict[bool, list[float]] = {False: [], True: []}
            answers = {}
            for number in range(args.rounds + 1):
                for cascade, values in speeds.items():
                    output = Path(scratch, f"{cascade}.gpkg")
                    started = time.perf_counter()
                    summary = ours(model, pair, output, SIZE, args.batch_size, cascade=cascade)
                    if number:  # the first warms up
                        values.append(summary.chips / (time.perf_counter() - started))
                    answers[cascade] = read_answers(output)
                print(f"round {number}", file=sys.stderr)
        changed_chips = [chip for chip, (yes, _) in answers[True].items() if yes]
        same = sum(answers[True][chip][0] == answers[False][chip][0] for chip in answers[True])
        equal = sum(answers[True][chip] == answers[False][chip] for chip in changed_chips)
        table.row(
            {
                "model": f"{model.name} {model.fingerprint[:8]}",
                "chips": args.side**2,
                "truly changed": f"{share:.0%}",
                "answered yes": f"{len(changed_chips) / args.side**2:.0%}",
                "chips/s, all questions": spread(speeds[False]),
                "cascade": spread(speeds[True]),
                "ratio": f"**{statistics.median(np.divide(speeds[True], speeds[False])):.2f}x**",
                "equal yes/no answers": same,
                "equal answers where yes": f"{equal} of {len(changed_chips)}",
            }
        )


if __name__ == "__main__":
    main()
