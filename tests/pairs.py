"""Lists of pairs of small rasters, and outputs read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio

from tests.rasters import moved, write_raster


def write_pairs(
    folder: Path, count: int, *, chips: int = 1, broken: Sequence[int] = (), **profile: Any
) -> Path:
    """Write a list of `count` pairs side by side, each `chips` chips wide, and return its path.

    Every third pair has changed; the `after` of broken ones is an empty file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    rows = ["id,before,after,before_date,date"]
    for n in range(count):
        pixels = rng.integers(1, 255, (3, 32, 32 * chips)).astype(np.uint8)
        location = {"transform": moved(32 * chips * n, 0), **profile}
        write_raster(folder / f"b{n}.tif", pixels, **location)
        if n % 3 == 0:
            pixels[:, 8:20, 8:20] = 255
        write_raster(folder / f"a{n}.tif", pixels, **location)
        if n in broken:
            (folder / f"a{n}.tif").write_bytes(b"")
        rows.append(f"p{n},b{n}.tif,a{n}.tif,2020,2024-05-{1 + n % 30:02d}")
    path = folder / "list.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def layer(path: Path | str, name: str) -> list[dict[str, Any]]:
    """Rows of a layer of a GeoPackage; None for null."""
    frame = pyogrio.read_dataframe(path, layer=name).astype(object)
    rows: list[dict[str, Any]] = frame.where(frame.notna(), None).to_dict("records")
    return rows


def features(path: Path | str) -> list[dict[str, Any]]:
    """Features of a GeoJSON file."""
    rows: list[dict[str, Any]] = json.loads(Path(path).read_text())["features"]
    return rows
