"""Chips of a reviewed output as images and class masks, from which `data build` makes a training set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import InputError
from deltavlm.geo.geobox import Window
from deltavlm.pipeline.mask_codec import CLASSES
from deltavlm.pipeline.outputs_reader import Row
from deltavlm.pipeline.schema import ANALYZED_STATUSES
from deltavlm.report.build import Report
from deltavlm.report.images import open_images
from deltavlm.report.pairs import ReportPair

__all__ = ["ExportedChips", "export_chips", "reviewed_polygons"]

GREYS = {"road": 128, "building": 255}
"""Grey values of a mask, as in LEVIR-MCI; changes of another class are background there."""


@dataclass
class ExportedChips:
    """Number of chips written, and of chips left out by reason."""

    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def reviewed_polygons(chip: Row, changes: Sequence[Row]) -> list[Row] | str:
    """Polygons that a reviewed chip truly has; or why its truth is not known. `changes` are its polygons.

    A chip is known if it is called unchanged and accepted, called changed and rejected, or if all of its
    polygons have a verdict and it is not rejected.
    """
    verdict = chip.get("verdict")
    shown = [change for change in changes if change.get("verdict") in ("accept", *CLASSES)]
    if chip.get("changed") is False and verdict:
        return "a change was missed" if verdict == "reject" else [] if not shown else "verdicts contradict"
    if verdict == "reject":
        return "verdicts contradict" if shown else []
    judged = [change for change in changes if change.get("verdict")]
    if not verdict and not judged:
        return "not reviewed"
    if not changes:
        return "without polygons"
    return shown if len(judged) == len(changes) else "a polygon has no verdict"


def export_chips(report: Report, folder: Path, split: str) -> ExportedChips:
    """Write FOLDER/SPLIT/A, B and label with a PNG for each chip whose truth a review tells.

    Images are cut as the model saw them, masks have the grey values GREYS. A pair without a grid or images
    is an error, since a set must not silently lack it.

    Raises:
        InputError: no chip is reviewed, or a pair of a reviewed chip has no images.
        RasterError: an image is missing or cannot be read.
    """
    exported = ExportedChips()
    for name in ("A", "B", "label"):
        (folder / split / name).mkdir(parents=True)
    for pair in report.pairs:
        known = _known_chips(pair, exported)
        if known:
            _write_pair(report, pair, known, folder / split)
            exported.written += len(known)
    if not exported.written:
        reasons = ", ".join(f"{count} {reason}" for reason, count in exported.left_out.items())
        without_verdicts = {*exported.left_out} <= {"not reviewed"}
        hint = "; give the file of verdicts by `review_file`" if without_verdicts else ""
        raise InputError(
            f"{report.output.path}: no chip is reviewed so that its truth is known ({reasons}){hint}"
        )
    return exported


def _known_chips(pair: ReportPair, exported: ExportedChips) -> dict[int, list[Row]]:
    """Polygons of each chip whose truth is known, by the chip's index."""
    of_chip: dict[str, list[Row]] = {}
    for change in pair.changes:
        for name in change.get("chip_ids") or ():
            of_chip.setdefault(str(name), []).append(change)
    known = {}
    for index, chip in enumerate(pair.chips):
        if chip.get("status") not in ANALYZED_STATUSES:
            continue
        polygons = reviewed_polygons(chip, of_chip.get(str(chip["chip_id"]), []))
        if isinstance(polygons, str):
            exported.left_out[polygons] += 1
        else:
            known[index] = polygons
    return known


def _write_pair(report: Report, pair: ReportPair, known: dict[int, list[Row]], folder: Path) -> None:
    output = report.output.path
    with open_images(pair, report.images, report.output.folder) as opened:
        for index, polygons in known.items():
            window = pair.windows[index]
            stem = f"{pair.name}_" if pair.name else f"{output.stem}_"
            name = f"{stem.replace('/', '_')}{pair.chips[index]['chip_id']}.png"
            images = opened.crop(window, max(window.width, window.height))
            for part, image in zip("AB", images, strict=True):
                image.convert("RGB").save(folder / part / name)
            Image.fromarray(_mask(pair, window, polygons)).save(folder / "label" / name)


def _mask(pair: ReportPair, window: Window, polygons: Sequence[Row]) -> NDArray[np.uint8]:
    """Grey values (height, width) of the polygons in a window; buildings lie over roads."""
    shapes = []
    for grey_class in ("road", "building"):
        for change in polygons:
            verdict = change.get("verdict")
            if (verdict if verdict in CLASSES else change.get("class")) == grey_class:
                shapes.append((_in_window(pair.shape(change), window), GREYS[grey_class]))
    shapes = [(shape, grey) for shape, grey in shapes if not shape.is_empty]
    if not shapes:
        return np.zeros((window.height, window.width), np.uint8)
    mask: NDArray[np.uint8] = rasterize(shapes, (window.height, window.width), dtype="uint8")
    return mask


def _in_window(polygon: BaseGeometry, window: Window) -> BaseGeometry:
    return shapely.transform(polygon, lambda points: points - [window.col_off, window.row_off])
