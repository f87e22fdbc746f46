"""Class masks (background, road, building) and what they say: how many, and in which cells.

The rules matter to scores, so each is a choice of `MaskRules`:

- a thing is a connected component of one class; with connectivity 8 pixels that touch at a corner are one;
- a component of fewer than `min_area_px` pixels is nothing, neither counted nor located;
- a cell of the 3x3 grid is named by "any" pixel of a component in it, by a "share" of its pixels (where no
  cell has that share, by the largest), or by the "centroid" of a component.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltavlm.data.images import open_image
from deltavlm.data.synthetic.facts import cell_shares
from deltavlm.errors import ConfigError, InputError
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import LABELS, Cells

__all__ = ["CELL_RULES", "LEVIR_MCI", "ClassMap", "MaskRules", "measure_mask", "parse_class_map", "read_mask"]

CellRule = Literal["any", "share", "centroid"]
CELL_RULES: tuple[CellRule, ...] = ("any", "share", "centroid")
BACKGROUND, ROAD, BUILDING = 0, 1, 2
CLASSES = {"background": BACKGROUND, "road": ROAD, "building": BUILDING}


@dataclass(frozen=True, slots=True)
class MaskRules:
    """From a mask to counts and cells."""

    connectivity: Literal[4, 8] = 8
    min_area_px: int = 1
    cell_rule: CellRule = "any"
    cell_share: float = 0.01  # of a cell's pixels, for "share"


@dataclass(frozen=True, slots=True)
class ClassMap:
    """What the values of a mask mean: classes by grey value, and by colour 0xRRGGBB."""

    greys: Mapping[int, int]
    colours: Mapping[int, int]


def parse_class_map(text: str) -> ClassMap:
    """`"road=1,building=2"`: a class and a grey value or a colour #rrggbb; a class may have several.

    Background is 0 always. A grey value of at most 255 is the colour of three such channels too.

    Raises: ConfigError.
    """
    greys, colours = {0: BACKGROUND}, {0: BACKGROUND}
    for entry in text.split(","):
        name, _, value = (part.strip() for part in entry.partition("="))
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
        colour = number if grey is None else number * 0x010101
        if grey is not None and greys.setdefault(grey, code) != code:
            raise ConfigError(f"class map {text!r}: {value} stands for two classes")
        if (grey is None or grey <= 255) and colours.setdefault(colour, code) != code:
            raise ConfigError(f"class map {text!r}: {value} stands for two classes")
    return ClassMap(greys, colours)


LEVIR_MCI = parse_class_map("road=128,building=255,road=#ffff00,building=#ff0000")
"""LEVIR-MCI's labels: grey, and its coloured ones (github.com/Chen-Yang-Liu/Change-Agent)."""


def read_mask(path: Path, classes: ClassMap = LEVIR_MCI) -> npt.NDArray[np.uint8]:
    """Classes 0 to 2, (height, width). Of a picture with a palette the numbers count, not the colours.

    Raises: InputError where the file cannot be read, or holds a value that is no class.
    """
    with open_image(path) as picture:
        if picture.mode in ("1", "LA"):
            pixels = np.asarray(picture.convert("L"))
        elif picture.mode in ("L", "P", "RGB") or picture.mode.startswith("I"):
            pixels = np.asarray(picture)
        else:
            pixels = np.asarray(picture.convert("RGB"))
    known = classes.greys
    values = pixels.astype(np.int64)
    if pixels.ndim == 3:
        known = classes.colours
        values = (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2]
    kinds, places = np.unique(values, return_inverse=True)
    for kind in kinds.tolist():
        if kind not in known:
            shown = f"#{kind:06x}" if pixels.ndim == 3 else str(kind)
            number = int((values == kind).sum())
            raise InputError(
                f"{path} has the value {shown} in {number} pixels, which is no class; say what it is"
                f" with a class map (--class-map)"
            )
    codes = np.array([known[kind] for kind in kinds.tolist()], np.uint8)
    mask: npt.NDArray[np.uint8] = codes[places.reshape(values.shape)]
    return mask


def measure_mask(mask: npt.NDArray[np.uint8], rules: MaskRules = MaskRules()) -> tuple[Counts, Cells]:
    """What a mask of classes says, (height, width)."""
    roads, road_cells = _things(mask == ROAD, rules)
    buildings, building_cells = _things(mask == BUILDING, rules)
    return Counts(roads, buildings), Cells(road_cells, building_cells)


def _things(mask: npt.NDArray[np.bool_], rules: MaskRules) -> tuple[int, tuple[str, ...]]:
    """(components, labels of their cells row by row)."""
    from scipy import ndimage

    near = ndimage.generate_binary_structure(2, 2 if rules.connectivity == 8 else 1)
    labels, _ = ndimage.label(mask, structure=near)
    sizes = np.bincount(labels.ravel())
    kept = np.flatnonzero(sizes >= rules.min_area_px)
    kept = kept[kept > 0]
    if not len(kept):
        return 0, ()
    if rules.cell_rule == "centroid":
        named = np.zeros(9, bool)
        inner = [_edges(length)[1:3] - 0.5 for length in mask.shape]  # between the centres of two pixels
        for centre in ndimage.center_of_mass(mask, labels, kept):
            row, col = (int(np.searchsorted(edge, c, "right")) for edge, c in zip(inner, centre, strict=True))
            named[3 * row + col] = True
    else:
        shares = cell_shares(np.isin(labels, kept))
        least = rules.cell_share if rules.cell_rule == "share" else 0.0
        named = (shares > 0) & (shares >= least)
        if not named.any():
            named[shares.argmax()] = True
    return len(kept), tuple(label for label, on in zip(LABELS, named, strict=True) if on)


def _edges(length: int) -> npt.NDArray[np.int64]:
    """Where the three cells of a side begin and end, in pixels, as `cell_shares` has them."""
    return np.linspace(0, length, 4).round().astype(np.int64)
