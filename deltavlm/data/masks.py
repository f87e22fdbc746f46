"""LEVIR-MCI and other class masks (road, building): a reader, and rules that derive counts and cells.

LEVIR-MCI:

- Content: the image pairs of LEVIR-CC with masks of the change between the two dates, and its captions.
- Size and splits: those of LEVIR-CC (train 6,815, val 1,333, test 1,929 pairs).
- Images: 256 x 256 px at 0.5 m; masks of the same size.
- Classes: background, road (grey 128 or #ffff00), building (grey 255 or #ff0000).
- License: the repository says MIT and also "academic purposes only".
- Source: https://github.com/Chen-Yang-Liu/Change-Agent
- Paper: not stated here.

The rules decide scores, so each is an option of `MaskRules`. Two published sets have rules of their own, in
which the outlines of objects are simplified to polygons (`outlines`):

- ChangeChat-87k counts all outlines, and its places are the polygons; the cells are those that they reach
  into;
- ChangeIMTI counts the polygons that have an area, which a single pixel and a long straight strip have not;
  the cell of each is that of its centroid, without the decimals.

By the rule of components:

- an object is a connected component of one class; with connectivity 8 pixels that touch at a corner connect;
- a component of fewer than `min_area_px` pixels is ignored, neither counted nor located;
- a cell of the 3x3 grid is named by "any" pixel of a component in it, by a "share" of its pixels (where no
  cell has that share, by the largest), or by the "centroid" of a component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltavlm.data.images import open_image
from deltavlm.data.outlines import moments, outlines, polygon_of
from deltavlm.data.synthetic.facts import cell_shares
from deltavlm.errors import ConfigError, InputError
from deltavlm.messages import pluralize
from deltavlm.tasks import contours
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import LABELS, Cells

__all__ = [
    *("CELL_RULES", "LEVIR_MCI", "ClassMap", "MaskRules", "find_mask", "find_polygons", "measure_mask"),
    *("parse_class_map", "read_mask"),
]

CellRule = Literal["any", "share", "centroid"]
CELL_RULES: tuple[CellRule, ...] = ("any", "share", "centroid")
BACKGROUND, ROAD, BUILDING = 0, 1, 2
CLASSES = {"background": BACKGROUND, "road": ROAD, "building": BUILDING}


@dataclass(frozen=True, slots=True)
class MaskRules:
    """Options of `measure_mask`; all but the first are those of the rule "components"."""

    rule: Literal["components", "changechat", "changeimti"] = "components"
    connectivity: Literal[4, 8] = 8
    min_area_px: int = 1
    cell_rule: CellRule = "any"
    cell_share: float = 0.01  # of the pixels of a cell, for "share"


@dataclass(frozen=True, slots=True)
class ClassMap:
    """Class codes of the values in a mask: of grey values, and of colors 0xRRGGBB."""

    greys: Mapping[int, int]
    colors: Mapping[int, int]


def parse_class_map(text: str) -> ClassMap:
    """Parse `"road=1,building=2"`: classes and a grey value or color #rrggbb; a class may have several.

    Background is always 0. A grey value up to 255 is also the color with three such channels.

    Raises: ConfigError.
    """
    greys, colors = {0: BACKGROUND}, {0: BACKGROUND}
    for entry in text.split(","):
        name, _, value = (field.strip() for field in entry.partition("="))
        try:
            code = CLASSES[name]
            number = int(value[1:], 16) if value.startswith("#") and len(value) == 7 else int(value)
        except (KeyError, ValueError):
            number, code = -1, BACKGROUND
        if not 0 <= number <= 0xFFFFFF:
            raise ConfigError(
                f"class map {text!r}: {entry.strip()!r} is not CLASS=VALUE with a class of"
                f" {', '.join(CLASSES)} and a value such as 128 or #ffff00"
            )
        grey = None if value.startswith("#") else number
        color = number if grey is None else number * 0x010101
        if grey is not None and greys.setdefault(grey, code) != code:
            raise ConfigError(f"class map {text!r}: {value} stands for two classes")
        if (grey is None or grey <= 255) and colors.setdefault(color, code) != code:
            raise ConfigError(f"class map {text!r}: {value} stands for two classes")
    return ClassMap(greys, colors)


LEVIR_MCI = parse_class_map("road=128,building=255,road=#ffff00,building=#ff0000")
"""Class map of LEVIR-MCI's masks, grey or colored."""


def read_mask(path: Path, classes: ClassMap = LEVIR_MCI) -> npt.NDArray[np.uint8]:
    """Read a mask as class codes (BACKGROUND, ROAD, BUILDING), (height, width).

    Values of a palette image are its indices, not its colors.

    Raises: InputError when the file cannot be read, or holds a value that is not in `classes`.
    """
    with open_image(path) as image:
        if image.mode in ("1", "LA"):
            pixels = np.asarray(image.convert("L"))
        elif image.mode in ("L", "P", "RGB") or image.mode.startswith("I"):
            pixels = np.asarray(image)
        else:
            pixels = np.asarray(image.convert("RGB"))
    code_of = classes.greys
    values = pixels.astype(np.int64)
    if pixels.ndim == 3:
        code_of = classes.colors
        values = (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2]
    unique_values, indices = np.unique(values, return_inverse=True)
    for value in unique_values.tolist():
        if value not in code_of:
            text = f"#{value:06x}" if pixels.ndim == 3 else str(value)
            number = int((values == value).sum())
            raise InputError(
                f"{path} has the value {text} in {pluralize(number, 'pixel')}, which is no class;"
                f" add it to the class map (`class_map`)"
            )
    codes = np.array([code_of[value] for value in unique_values.tolist()], np.uint8)
    mask: npt.NDArray[np.uint8] = codes[indices.reshape(values.shape)]
    return mask


def find_mask(masks: Path, before: str) -> Path:
    """Mask of the pair whose first image is SPLIT/A/NAME: MASKS/SPLIT/label/NAME or MASKS/SPLIT/NAME; a lossy
    image may have a lossless mask. The file may be missing.

    >>> find_mask(Path("masks"), "train/A/7.jpg").as_posix()
    'masks/train/7.png'
    """
    image = PurePosixPath(before)
    folder = masks / (image.parent.parent if image.parent.name == "A" else image.parent)
    path = (folder / "label" if (folder / "label").is_dir() else folder) / image.name
    return path if path.is_file() else path.with_suffix(".png")


def measure_mask(mask: npt.NDArray[np.uint8], rules: MaskRules = MaskRules()) -> tuple[Counts, Cells]:
    """Count and locate the roads and buildings of a mask of class codes, (height, width)."""
    if rules.rule != "components":
        borders = [outlines(mask == code) for code in (ROAD, BUILDING)]
        if rules.rule == "changechat":
            cells = contours.cells_of(find_polygons(mask))
            return Counts(*map(len, borders)), cells
        (roads, road_cells), (buildings, building_cells) = (
            _centroid_cells(each, mask.shape) for each in borders
        )
        return Counts(roads, buildings), Cells(road_cells, building_cells)
    roads, road_cells = _measure_class(mask == ROAD, rules)
    buildings, building_cells = _measure_class(mask == BUILDING, rules)
    return Counts(roads, buildings), Cells(road_cells, building_cells)


def find_polygons(mask: npt.NDArray[np.uint8]) -> contours.Contours:
    """Simplified outlines of the roads and buildings of a mask of class codes, in pixels of an image of
    `contours.SIZE_PX`."""
    height, width = mask.shape
    scale = np.array([contours.SIZE_PX / width, contours.SIZE_PX / height])
    is_scaled = (width, height) != (contours.SIZE_PX, contours.SIZE_PX)

    def polygons(code: int) -> tuple[contours.Polygon, ...]:
        corners = [polygon_of(outline) for outline in outlines(mask == code)]
        scaled = [np.round(each * scale).astype(int) if is_scaled else each for each in corners]
        return tuple(tuple((int(x), int(y)) for x, y in polygon) for polygon in scaled)

    return contours.Contours(polygons(ROAD), polygons(BUILDING))


def _centroid_cells(
    borders: Sequence[npt.NDArray[np.int64]], shape: tuple[int, ...]
) -> tuple[int, tuple[str, ...]]:
    """Number of outlines whose polygon has an area, and the cells of their centroids, row by row."""
    height, width = shape
    named = set()
    centroids = [each for each in (moments(polygon_of(outline)) for outline in borders) if each.area]
    for each in centroids:
        row, col = 3 * int(each.y) // height, 3 * int(each.x) // width
        named.add(3 * row + col)
    return len(centroids), tuple(label for index, label in enumerate(LABELS) if index in named)


def _measure_class(mask: npt.NDArray[np.bool_], rules: MaskRules) -> tuple[int, tuple[str, ...]]:
    """(number of components, labels of their cells row by row)."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(2, 2 if rules.connectivity == 8 else 1)
    components, _ = ndimage.label(mask, structure=structure)
    sizes = np.bincount(components.ravel())
    ids = np.flatnonzero(sizes >= rules.min_area_px)
    ids = ids[ids > 0]
    if not len(ids):
        return 0, ()
    if rules.cell_rule == "centroid":
        is_named = np.zeros(9, bool)
        borders = [_cell_edges(length)[1:3] - 0.5 for length in mask.shape]  # centers of pixels are integers
        for centroid in ndimage.center_of_mass(mask, components, ids):
            row, col = (int(np.searchsorted(b, c, "right")) for b, c in zip(borders, centroid, strict=True))
            is_named[3 * row + col] = True
    else:
        shares = cell_shares(np.isin(components, ids))
        min_share = rules.cell_share if rules.cell_rule == "share" else 0.0
        is_named = (shares > 0) & (shares >= min_share)
        if not is_named.any():
            is_named[shares.argmax()] = True
    return len(ids), tuple(label for label, on in zip(LABELS, is_named, strict=True) if on)


def _cell_edges(length: int) -> npt.NDArray[np.int64]:
    """Four edges of the three cells of a side in pixels, as in `cell_shares`."""
    return np.linspace(0, length, 4).round().astype(np.int64)
