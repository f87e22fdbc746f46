"""What an output says of each pair, in the pixels of its grid: windows of chips, polygons of change."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from deltavlm.config import suggest
from deltavlm.errors import InputError
from deltavlm.geo.alignment import LONLAT, PixelGrid, ground_size_m, lonlat, project
from deltavlm.geo.drivers import MAX_PIXELS
from deltavlm.geo.grid import Window
from deltavlm.report.outputs import Output, Row

__all__ = ["Scene", "SceneImage", "build_scenes", "score_of", "select_scene"]

CHIP_ID = re.compile(r"r(\d{1,9})_c(\d{1,9})")
LARGEST_CHIP = 8192  # px, as --chip-size

Ring = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class SceneImage:
    """One image of a pair as the output names it, and how its pixels became colours."""

    path: str
    taken: str = ""
    size: tuple[int, int] | None = None  # width, height of the file, px
    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    stretch: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # low, high


@dataclass(frozen=True)
class Scene:
    """A pair, and the rows of its chips; those that it could not be asked about are there too."""

    name: str  # id of the pair, "" where there is one only
    before: SceneImage
    after: SceneImage
    grid: PixelGrid | None  # None: nothing was asked
    chip_px: int
    resampling: str = "bilinear"
    has_recorded_grid: bool = True  # False: the grid is a guess, and so is how the pixels were read
    chips: list[Row] = field(default_factory=list, repr=False)
    changes: list[Row] = field(default_factory=list, repr=False)
    crs: CRS | None = None  # of the geometries
    reason: str = ""  # why nothing was asked, or not all
    notes: tuple[str, ...] = ()

    @property
    def max_score(self) -> float:
        """The largest score of a chip that changed; -1 without one."""
        return max((score_of(chip) for chip in self.chips if chip.get("changed")), default=-1.0)

    @cached_property
    def windows(self) -> list[Window]:
        """The pixels of each chip, from its name."""
        width, height = (self.grid.width, self.grid.height) if self.grid else (LARGEST_CHIP,) * 2
        places = [chip_origin(chip) for chip in self.chips]
        return [
            Window(col, row, max(1, min(self.chip_px, width - col)), max(1, min(self.chip_px, height - row)))
            for row, col in places
        ]

    @cached_property
    def points(self) -> list[tuple[float, float] | None]:
        """Longitude and latitude of the middle of each chip; None where nothing leads there."""
        grid = self.grid
        if grid is None or not self.chips:
            return [None] * len(self.chips)
        middles = np.array([(x + w / 2, y + h / 2) for x, y, w, h in self.windows])
        found = lonlat(grid.crs, *grid.to_ground(middles).T.tolist())
        return [None] * len(self.chips) if found is None else list(found)

    @property
    def gsd_m(self) -> float | None:
        """Length of a pixel on the ground in metres; None without a CRS."""
        size_m = ground_size_m(self.grid) if self.grid else None
        return math.sqrt(size_m[0] * size_m[1]) if size_m else None

    @property
    def north(self) -> float | None:
        """Where north is, in degrees clockwise from up; None without a CRS."""
        grid = self.grid
        if grid is None or grid.crs is None:
            return None
        middle = grid.to_ground(np.array([[grid.width / 2, grid.height / 2]]))
        here = project(middle, grid.crs, LONLAT)
        if not np.isfinite(here).all() or abs(here[0, 1]) > 89.9:
            return None
        there = grid.to_pixels(project(here + np.array([[0, 1e-4]]), LONLAT, grid.crs))
        right, down = (there[0] - grid.to_pixels(middle)[0]).tolist()
        return math.degrees(math.atan2(right, -down)) if math.isfinite(right + down) else None

    def rings(self, change: Row) -> list[Ring]:
        """The outlines of a polygon of change in pixels of the grid."""
        if self.grid is None or change["geometry"] is None:
            return []
        shape = shapely.transform(
            change["geometry"], lambda points: self.grid.to_pixels(project(points, self.crs, self.grid.crs))
        )
        parts = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
        lines = [line for part in parts for line in (part.exterior, *part.interiors)]
        whole = [line for line in lines if np.isfinite(shapely.get_coordinates(line)).all()]
        return [[(round(x, 1), round(y, 1)) for x, y, *_ in line.coords] for line in whole]


def score_of(chip: Row) -> float:
    """The score of "changed", -1 where there is none."""
    score = chip.get("changed_score")
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else -1.0


def chip_origin(chip: Row) -> tuple[int, int]:
    """Row and column of the upper left pixel of a chip. Raises: InputError where its name does not say it."""
    found = CHIP_ID.fullmatch(str(chip.get("chip_id")))
    if found is None:
        raise InputError(f"chip {chip.get('chip_id')!r}: is not named by its pixels; was the output edited?")
    return int(found[1]), int(found[2])


def build_scenes(output: Output) -> list[Scene]:
    """The pairs of an output: the most changed first.

    Raises:
        InputError: its provenance cannot be what deltavlm wrote.
    """
    try:
        return _scenes(output)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, CRSError) as error:
        raise InputError(
            f"{output.path}: says of its images what cannot be ({error or type(error).__name__}); "
            "was the output edited? run deltavlm analyze again"
        ) from error


def _scenes(output: Output) -> list[Scene]:
    chip_px = int(output.provenance["options"]["chip_px"])
    if not 1 <= chip_px <= LARGEST_CHIP:
        raise ValueError(f"chips of {chip_px} px")
    inputs = output.provenance.get("inputs")
    if inputs is not None:
        first = output.chips[0] if output.chips else {}
        return [
            _scene(output, inputs, {"pair_id": first.get("pair_id") or ""} | first, output.chips, chip_px)
        ]
    chips: dict[str, list[Row]] = {str(row["pair_id"]): [] for row in output.pairs}
    for chip in output.chips:
        chips.setdefault(str(chip["pair_id"]), []).append(chip)
    told = {str(row["pair_id"]): row for row in output.pairs}
    scenes = [
        _scene(output, row.get("inputs"), row, chips[name], chip_px)
        for name, row in ((name, told.get(name) or rows[0]) for name, rows in chips.items())
    ]
    return sorted(scenes, key=lambda scene: -scene.max_score)


def _scene(output: Output, inputs: Any, row: Row, chips: list[Row], chip_px: int) -> Scene:
    name = str(row.get("pair_id") or "")
    inputs = inputs if isinstance(inputs, dict) else {}
    before, after = (_image(inputs.get(which), row, which) for which in ("before", "after"))
    told = inputs.get("grid")
    grid = _told_grid(told) if isinstance(told, dict) else _fitted_grid(chips, chip_px, output.crs)
    return Scene(
        name=name,
        before=before,
        after=after,
        grid=grid,
        chip_px=chip_px,
        resampling=str(inputs.get("alignment", {}).get("resampling", "bilinear")),
        has_recorded_grid=isinstance(told, dict),
        chips=chips,
        changes=[one for one in output.changes if str(one.get("pair_id") or "") in ("", name)],
        crs=output.crs,
        reason=str(row.get("reason") or ""),
        notes=tuple(map(str, row.get("notes") or ())),
    )


def _image(told: Any, row: Mapping[str, Any], which: str) -> SceneImage:
    taken = str(row.get(f"{which}_date") or "")
    if not isinstance(told, dict):
        return SceneImage(str(row.get(which) or ""), taken)
    nodata, stretch = told.get("nodata"), told.get("stretch")
    return SceneImage(
        path=str(told["path"]),
        taken=taken,
        size=(int(told["width"]), int(told["height"])),
        bands=tuple(int(band) for band in told["bands"]),
        nodata=None if nodata is None else float(nodata),
        stretch=None if stretch is None else (_three(stretch["low"]), _three(stretch["high"])),
    )


def _three(numbers: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(one) for one in numbers)
    if len(found) != 3 or not all(map(math.isfinite, found)):
        raise ValueError(f"a stretch of {numbers}")
    return found


def _told_grid(told: Mapping[str, Any]) -> PixelGrid:
    numbers = [float(one) for one in told["transform"]]
    width, height = int(told["width"]), int(told["height"])
    crs = CRS.from_user_input(told["crs"]) if told["crs"] else None
    grid = PixelGrid(crs, Affine(*numbers), width, height)
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"a grid of {width} x {height} px")
    if not grid.is_invertible():
        raise ValueError(f"a transform {numbers}")
    return grid


def _fitted_grid(chips: Sequence[Row], chip_px: int, crs: CRS | None) -> PixelGrid | None:
    """The grid that chips lie on, found from where they lie: an output of one layer does not tell it."""
    if not chips:
        return None
    places = [chip_origin(chip) for chip in chips]
    width, height = max(col for _, col in places) + chip_px, max(row for row, _ in places) + chip_px
    in_a_line = min(len({row for row, _ in places}), len({col for _, col in places})) == 1
    pixels: list[tuple[float, float]] = []
    ground: list[tuple[float, float]] = []
    for chip, (row, col) in zip(chips, places, strict=True):
        shape = chip["geometry"]
        if shape is not None and shape.geom_type == "Polygon":
            pixels.append((col + chip_px / 2, row + chip_px / 2))
            ground.append((shape.centroid.x, shape.centroid.y))
            if in_a_line:  # nothing but the corners of an upright chip tells the other direction
                left, bottom, right, top = shape.bounds
                pixels += [(col, row), (col + chip_px, row + chip_px)]
                ground += [(left, top), (right, bottom)]
    if not pixels:
        return PixelGrid(None, Affine.identity(), width, height)
    with_one = np.column_stack([np.array(pixels), np.ones(len(pixels))])
    (a, d), (b, e), (c, f) = np.linalg.lstsq(with_one, np.array(ground), rcond=None)[0].tolist()
    grid = PixelGrid(crs, Affine(a, b, c, d, e, f), width, height)
    return grid if grid.is_invertible() else PixelGrid(None, Affine.identity(), width, height)


def select_scene(scenes: Iterable[Scene], name: str) -> Scene:
    """The scene of that pair. Raises: InputError naming the nearest one there is."""
    by_name = {scene.name: scene for scene in scenes}
    if list(by_name) == [""] and name:
        raise InputError(
            f"there is no pair {name!r}: the output is of one pair, without a name; leave it out"
        )
    if name not in by_name:
        raise InputError(f"there is no pair {name!r} in the output{suggest(name, list(by_name)[:20])}")
    return by_name[name]
