"""Part of the sample pair: four chips, all with changes, where the whole pair has twelve."""

from __future__ import annotations

from pathlib import Path

import rasterio
from rasterio.windows import Window

SAMPLE = Path(__file__).resolve().parent.parent / "sample_data"
WINDOW = Window(0, 256, 512, 512)  # columns from 0, rows from 256: the lower left corner


def write_corner(folder: Path) -> tuple[Path, Path]:
    """Write the lower left 512 x 512 px of the sample pair as `before.tif` and `after.tif`."""
    for date in ("before", "after"):
        with rasterio.open(SAMPLE / f"{date}.tif") as source:
            profile = {
                **source.profile,
                **{"width": WINDOW.width, "height": WINDOW.height, "compress": "deflate"},
                **{"photometric": "rgb", "transform": source.window_transform(WINDOW)},
            }
            with rasterio.open(folder / f"{date}.tif", "w", **profile) as target:
                target.write(source.read(window=WINDOW))
    return folder / "before.tif", folder / "after.tif"
