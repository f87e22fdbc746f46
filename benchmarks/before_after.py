"""Comparison of the answers of two sets of weights, on the sample pair and on a folder of real pairs.

    python benchmarks/before_after.py OLD NEW [--real FOLDER] [--picture FILE]

OLD and NEW are model folders, or `nano`. Old weights are in the repository's history:

    git archive 1f33911 deltavlm/weights/nano | tar -x -C /tmp/old

Prints Markdown on stdout, messages on stderr. A chip has changed if a pixel of it has, by `truth.tif` of the
sample or `mask.png` of a real pair. The picture shows the answers of both on the sample.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pyogrio  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.overlay import draw_overlay  # noqa: E402
from benchmarks.rows import Table  # noqa: E402
from deltavlm.geo.pair import RasterPair  # noqa: E402


def analyze(pair: Path, model: str, output: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Analyze a pair. Returns the layers `chips` and `locations`."""
    command = [sys.executable, "-m", "deltacli", "analyze", pair / "before.tif", pair / "after.tif"]
    command += ["-o", output, "--model", model, "--device", "cpu", "--overwrite", "--quiet"]
    process = subprocess.run(
        list(map(str, command)), cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True
    )
    if process.returncode:
        sys.exit(f"{pair}: {process.stderr.strip()}")
    return tuple(pyogrio.read_dataframe(output, layer=name) for name in ("chips", "locations"))  # type: ignore[return-value]


def changed_chips(pair: Path, chips: pd.DataFrame) -> list[bool] | None:
    """Flags of the chips that have changed by a reference mask; None without a mask."""
    for name in ("truth.tif", "mask.png"):
        if (pair / name).exists():
            mask = np.asarray(Image.open(pair / name)) > 0
            origins = chips["chip_id"].str.extract(r"r(\d+)_c(\d+)").astype(int).to_numpy().tolist()
            return [bool(mask[row : row + 256, col : col + 256].any()) for row, col in origins]
    return None


def row_of(
    name: str, layers: tuple[pd.DataFrame, pd.DataFrame], true: list[bool] | None
) -> dict[str, object]:
    """Row of the table: answers of one set of weights about one pair."""
    chips, cells = layers
    yes = chips["changed"].fillna(False).astype(bool)
    cells = cells["class"].value_counts()
    return {
        "weights": name,
        "chips": len(chips),
        "truly changed": "-" if true is None else sum(true),
        "said changed": int(yes.sum()),
        "right": "-" if true is None else int((yes.to_numpy() == np.array(true)).sum()),
        "mean score": f"{chips['changed_score'].mean():.2f}",
        "new buildings": int(chips["new_buildings"].sum()),
        "new roads": int(chips["new_roads"].sum()),
        "cells: buildings, roads": f"{cells.get('building', 0)}, {cells.get('road', 0)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--real", type=Path, help="a folder with pairs before.tif, after.tif in its folders")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    real = sorted(file.parent for file in args.real.rglob("before.tif")) if args.real else []
    table = Table()
    with tempfile.TemporaryDirectory() as scratch:
        for pair in [ROOT / "sample_data", *real]:
            for name, model in (("old", args.old), ("new", args.new)):
                output = Path(scratch, f"{name}.gpkg")
                layers = analyze(pair, model, output)
                pair_name = "sample_data" if pair.parent == ROOT else str(pair.relative_to(args.real))
                table.row({"pair": pair_name} | row_of(name, layers, changed_chips(pair, layers[0])))
                if pair.parent == ROOT and args.picture:
                    images = RasterPair(str(pair / "before.tif"), str(pair / "after.tif"))
                    draw_overlay(images, output, Path(scratch, f"{name}.png"), width=640)
            if pair.parent == ROOT and args.picture:
                stack_images([Path(scratch, f"{name}.png") for name in ("old", "new")], args.picture)


def stack_images(paths: list[Path], picture: Path) -> None:
    """Stack images vertically into one file."""
    images = [Image.open(path) for path in paths]
    sheet = Image.new("RGB", (images[0].width, sum(image.height for image in images) + 8), (255, 255, 255))
    for number, image in enumerate(images):
        sheet.paste(image, (0, number * (image.height + 8)))
    sheet.save(picture, quality=82)


if __name__ == "__main__":
    main()
