"""What `deltavlm analyze` says with two sets of weights, of the sample pair and of a folder of real ones.

    python benchmarks/before_after.py OLD NEW [--real FOLDER] [--picture FILE]

OLD and NEW are model folders, or `nano`. Old weights are in the repository's history:

    git archive 1f33911 deltavlm/weights/nano | tar -x -C /tmp/old

Prints Markdown on stdout; talk goes to stderr. The truth of the sample is its own `truth.tif`; of a real pair
with a `mask.png` that, in which one pixel of a chip is enough. The picture shows the sample as both see it.
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

from benchmarks.overlay import draw  # noqa: E402
from benchmarks.rows import Table  # noqa: E402


def analyzed(pair: Path, model: str, output: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Chips and named cells of a pair."""
    command = [sys.executable, "-m", "deltacli", "analyze", pair / "before.tif", pair / "after.tif"]
    command += ["-o", output, "--model", model, "--device", "cpu", "--overwrite", "--quiet"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{pair}: {done.stderr.strip()}")
    return tuple(pyogrio.read_dataframe(output, layer=name) for name in ("chips", "locations"))  # type: ignore[return-value]


def truth(pair: Path, chips: pd.DataFrame) -> list[bool] | None:
    """Whether each chip has changed; None where nobody has said."""
    for name in ("truth.tif", "mask.png"):
        if (pair / name).exists():
            mask = np.asarray(Image.open(pair / name)) > 0
            places = chips["chip_id"].str.extract(r"r(\d+)_c(\d+)").astype(int).to_numpy().tolist()
            return [bool(mask[row : row + 256, col : col + 256].any()) for row, col in places]
    return None


def row_of(name: str, found: tuple[pd.DataFrame, pd.DataFrame], true: list[bool] | None) -> dict[str, object]:
    """What one set of weights says of one pair."""
    chips, cells = found
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
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("old")
    ask.add_argument("new")
    ask.add_argument("--real", type=Path, help="a folder with pairs before.tif, after.tif in its folders")
    ask.add_argument("--picture", type=Path)
    args = ask.parse_args()
    real = sorted(file.parent for file in args.real.rglob("before.tif")) if args.real else []
    table = Table()
    with tempfile.TemporaryDirectory() as scratch:
        for pair in [ROOT / "sample_data", *real]:
            for name, model in (("old", args.old), ("new", args.new)):
                output = Path(scratch, f"{name}.gpkg")
                found = analyzed(pair, model, output)
                told = "sample_data" if pair.parent == ROOT else str(pair.relative_to(args.real))
                table.row({"pair": told} | row_of(name, found, truth(pair, found[0])))
                if pair.parent == ROOT and args.picture:
                    before, after = (str(pair / f"{date}.tif") for date in ("before", "after"))
                    picture = Path(scratch, f"{name}.png")
                    draw(before, after, str(output), picture, 640, allow_no_crs=False, captions=True)
            if pair.parent == ROOT and args.picture:
                stacked([Path(scratch, f"{name}.png") for name in ("old", "new")], args.picture)


def stacked(parts: list[Path], picture: Path) -> None:
    """Pictures below each other."""
    images = [Image.open(part) for part in parts]
    sheet = Image.new("RGB", (images[0].width, sum(one.height for one in images) + 8), (255, 255, 255))
    for at, image in enumerate(images):
        sheet.paste(image, (0, at * (image.height + 8)))
    sheet.save(picture, quality=82)


if __name__ == "__main__":
    main()
