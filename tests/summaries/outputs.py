"""Outputs of chips on a grid, for summaries of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import shapely
from rasterio.crs import CRS

from deltavlm.config import shipped_config
from deltavlm.geo.features import Feature
from deltavlm.geo.sinks import open_sink
from deltavlm.pipeline.schema import LOCATIONS, chips_layer
from deltavlm.summaries.results import Results, read_results
from deltavlm.tasks.questions import load_questions

CHIPS = chips_layer(load_questions(shipped_config("questions.yaml")))
UTM = CRS.from_epsg(32633)
RUN: dict[str, Any] = {
    "tool": "deltavlm analyze",
    "model": {"name": "nano", "fingerprint": "f" * 16, "chip_px": 256, "training_gsd_m": 0.5},
    "options": {"chip_px": 256, "overlap_px": 0, "limit": None},
    "inputs": {"before": {"path": "a.tif"}, "after": {"path": "b.tif"}, "alignment": {"overlap_share": 1.0}},
    "versions": {"deltavlm": "0.1.0"},
}
SIDE = 100.0  # metres
STATUSES = ("answered", "answered", "nodata", "error", "cascaded", "unreadable")


def chip(step: int, col: float, row: float, crs_side: float = SIDE) -> Feature:
    """Chip number `step`: a square whose status, score and counts follow from the number."""
    status = STATUSES[step % len(STATUSES)]
    x, y = 500_000 + col * crs_side, 5_400_000 - row * crs_side
    is_answered = status in ("answered", "cascaded")
    score = (step * 37 % 100) / 100
    properties: dict[str, object] = {
        "chip_id": f"r{256 * row:05.0f}_c{256 * col:05.0f}",
        "status": status,
        "gsd_m": 0.5,
    }
    properties |= {"before": "a before.tif", "after": "https://example.org/b.tif"}
    if is_answered:
        properties |= {"changed": score > 0.5, "changed_score": score, "caption": f"caption {step}"}
        properties |= {"new_roads": step % 3, "new_buildings": step % 5}
    return Feature(shapely.box(x, y - crs_side, x + crs_side, y), properties)


GRID = [chip(12 * row + col, col, row) for row in range(6) for col in range(12)]


def written(
    path: Path, chips: list[Feature] = GRID, crs: CRS | None = UTM, run: dict[str, Any] = RUN
) -> Results:
    with open_sink(path, (CHIPS, LOCATIONS), crs, run) as sink:
        sink.write("chips", chips)
    return read_results([path])
