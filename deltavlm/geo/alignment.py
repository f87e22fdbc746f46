"""Validation of a raster pair, and its common grid: that of `before`, cropped to the overlap.

Grids are compared by the positions of their pixels, never by `==`: rounding in a file is not a shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.drivers import MAX_PIXELS
from deltavlm.geo.gdal import wrap_gdal_errors
from deltavlm.geo.geobox import SAME_GRID_PX, GeoBox, Points, Window, crs_name, project
from deltavlm.geo.georeferencing import ADD_A_CRS
from deltavlm.geo.source import Source
from deltavlm.geo.warp import warp_onto

__all__ = [
    "Alignment",
    "Placement",
    "align",
    "crop_window",
    "locate",
    "warped_share",
]

MIN_OVERLAP_PX = 8  # of each side; less is the edge of a neighboring tile
MAX_SCALE_RATIO = 2.0  # of the pixel lengths of both dates; beyond it there is a note
LATTICE = 64  # cells along a side of the grid, where the covered area is found by samples
MAX_UPSAMPLING = 2.0  # of pixel lengths by `gsd_m`; interpolation adds no detail
SAME_GSD = 0.01  # relative difference of pixel sizes that is not worth resampling
NOTED_SHARE = 0.0005  # missing share of the ground that shows as 0.1 %

Offset = tuple[int, int]  # column, row


@dataclass(frozen=True, slots=True)
class Placement:
    """Position of a raster on a grid; lengths and shapes are in pixels of the grid."""

    offset: Offset | None  # of the grid's corner in the raster, where both have the same pixels
    error_px: float  # largest distance between the raster's pixels and those of the grid
    covered: BaseGeometry  # area of the grid that the raster covers
    scale: float  # length of the raster's pixels


def locate(raster: GeoBox, grid: GeoBox) -> Placement:
    """Position of `raster` on `grid`, by the transformations with which GDAL warps it."""
    raster = raster.wrapping_onto(grid)

    def to_grid(pixels: Points) -> Points:
        return grid.to_pixels(project(raster.to_ground(pixels), raster.crs, grid.crs))

    def to_raster(pixels: Points) -> Points:
        return raster.to_pixels(project(grid.to_ground(pixels), grid.crs, raster.crs))

    pixels = raster.lattice(5)
    shift = to_grid(pixels) - pixels
    rounded = np.round(shift.mean(axis=0)) if np.isfinite(shift).all() else np.zeros(2)
    error = float(np.abs(shift - rounded).max())
    offset = (-int(rounded[0]), -int(rounded[1])) if error < SAME_GRID_PX else None

    covered = _covered(raster, grid, to_grid, to_raster)
    return Placement(offset, error, covered, _pixel_length(grid, covered, to_raster) if covered.area else 1.0)


def _covered(
    raster: GeoBox,
    grid: GeoBox,
    to_grid: Callable[[Points], Points],
    to_raster: Callable[[Points], Points],
) -> BaseGeometry:
    """Area of `grid` that `raster` covers, in pixels of `grid`.

    It is the raster's outline where the grid's CRS can express that in one piece. Otherwise, as for a raster
    of the world, or one that the grid's CRS cuts at 180 degrees, it is made of cells of a lattice.
    """
    outline = to_grid(raster.outline())
    if (np.abs(to_raster(outline) - raster.outline()) < 1).all():
        polygon = shapely.make_valid(shapely.Polygon(outline))
        if shapely.contains_xy(polygon, *to_grid(raster.centers(8)).T).all():
            return polygon.intersection(shapely.box(0, 0, grid.width, grid.height))

    def is_inside(points: Points) -> NDArray[np.bool_]:
        pixels = to_raster(points)
        inside: NDArray[np.bool_] = np.all((pixels > 0) & (pixels < (raster.width, raster.height)), axis=1)
        return inside

    nodes = is_inside(grid.lattice(LATTICE + 1)).reshape(LATTICE + 1, LATTICE + 1)
    cells = is_inside(grid.centers(LATTICE)).reshape(LATTICE, LATTICE)
    cells |= nodes[1:, 1:] | nodes[1:, :-1] | nodes[:-1, 1:] | nodes[:-1, :-1]
    cell_px = grid.width / LATTICE, grid.height / LATTICE
    found = np.floor(to_grid(raster.centers(LATTICE)) / cell_px)  # smaller than a cell
    found = found[((found >= 0) & (found < LATTICE)).all(axis=1)].astype(int)
    cells[found[:, 1], found[:, 0]] = True
    rows, cols = (index * size for index, size in zip(np.nonzero(cells), cell_px[::-1], strict=True))
    return shapely.union_all(shapely.box(cols, rows, cols + cell_px[0], rows + cell_px[1]))


def _pixel_length(grid: GeoBox, covered: BaseGeometry, to_raster: Callable[[Points], Points]) -> float:
    """Length of the raster's pixels in pixels of the grid: median over the covered area."""
    centers = grid.centers(8)
    middle = np.array(covered.representative_point().coords)
    centers = np.concatenate([centers[shapely.contains_xy(covered, *centers.T)], middle])
    corner, right, below = (to_raster(centers + step) for step in ((0, 0), (1, 0), (0, 1)))
    with np.errstate(invalid="ignore"):
        areas = np.abs(np.linalg.det(np.stack([right - corner, below - corner], axis=1)))
    areas = areas[np.isfinite(areas) & (areas > 0)]
    return float(1 / math.sqrt(np.median(areas))) if len(areas) else 1.0


def warped_share(raster: GeoBox, grid: GeoBox) -> float:
    """Share of `grid` that gets pixels when GDAL warps an image of the grid `raster` onto it."""
    grid = grid.zoom_to(LATTICE, LATTICE)
    raster = raster.wrapping_onto(grid).zoom_to(LATTICE, LATTICE)
    profile = {"driver": "GTiff", "width": LATTICE, "height": LATTICE, "count": 1, "dtype": "uint8"}
    with MemoryFile() as file:
        with file.open(crs=raster.crs, transform=raster.transform, **profile) as plain:
            plain.write(np.ones((1, LATTICE, LATTICE), np.uint8))
        with file.open() as plain, warp_onto(plain, raster, grid, "nearest") as warped:
            return float((warped.read(2) > 0).mean())


def _check_coverage(after: Source, before: Source, placement: Placement, window: Window) -> None:
    """Check that GDAL warps `after` onto the window of `before` where it was located.

    Raises:
        RasterError: it warps less than half of that.
    """
    grid = before.geobox.crop(window)
    announced = placement.covered.area / (window.width * window.height)
    advice = f"warp it with gdalwarp -t_srs {crs_name(grid.crs)} first"
    with wrap_gdal_errors(after.location, "cannot be warped", advice):
        share = warped_share(after.geobox, grid)
    if share < announced / 2:
        raise RasterError(
            f"{after.name}: only {share:.1%} of {before.name} can be read from it, although it covers "
            f"{announced:.1%}; {advice}"
        )


def _check_sliver(before: Source, after: Source, placement: Placement, window: Window) -> None:
    """Refuse an overlap of a few pixels, as of neighboring tiles. Raises: RasterError."""
    narrow = min(MIN_OVERLAP_PX, min(after.geobox.width, after.geobox.height) * placement.scale)
    sides = (window.width, before.geobox.width), (window.height, before.geobox.height)
    if any(overlap < min(narrow, length) for overlap, length in sides):
        raise RasterError(
            f"{before.name} and {after.name} have only {window.width} x {window.height} px in common, too "
            "little to compare; give two images of the same area"
        )


def crop_window(covered: BaseGeometry, grid: GeoBox) -> Window | None:
    """Smallest window of `grid` that holds `covered`; None where that has no area."""
    if covered.area == 0:
        return None
    left, top, right, bottom = covered.bounds
    cols = max(0, math.floor(left + SAME_GRID_PX)), min(grid.width, math.ceil(right - SAME_GRID_PX))
    rows = max(0, math.floor(top + SAME_GRID_PX)), min(grid.height, math.ceil(bottom - SAME_GRID_PX))
    width, height = cols[1] - cols[0], rows[1] - rows[0]
    return Window(cols[0], rows[0], width, height) if width > 0 and height > 0 else None


@dataclass(frozen=True, slots=True)
class Alignment:
    """Common grid of a pair; an offset is the position of its corner in a raster, None if that is warped."""

    geobox: GeoBox
    before_offset: Offset | None
    after_offset: Offset | None
    placement: Placement  # of `after` on the grid of `before`
    overlap_share: float  # of the area of `before`, 0 to 1
    notes: tuple[str, ...]

    def moved_to(self, geobox: GeoBox) -> Alignment:
        """Alignment on another grid. Both rasters are warped unless it shares the pixels of this one, and
        lies within it."""
        offset = locate(self.geobox, geobox).offset
        if offset is None or not self.geobox.contains(Window(*offset, geobox.width, geobox.height)):
            return replace(self, geobox=geobox, before_offset=None, after_offset=None)
        before, after = (
            base and (base[0] + offset[0], base[1] + offset[1])
            for base in (self.before_offset, self.after_offset)
        )
        return replace(self, geobox=geobox, before_offset=before, after_offset=after)


def align(before: Source, after: Source, *, strict: bool, resampling: str, gsd_m: float | None) -> Alignment:
    """Compute the common grid; `gsd_m` requests pixels of that many metres instead of those of `before`.

    Raises:
        RasterError: no overlap; grids that differ under `strict`, or without a CRS to warp by; pixels that
            GDAL does not warp to where they are.
        ConfigError: `gsd_m` is not positive, needs a CRS, makes too many pixels, or is finer than half a
            pixel of `before`.
    """
    placement = locate(after.geobox, before.geobox)
    window = crop_window(placement.covered, before.geobox)
    if window is None:
        raise RasterError(
            f"{before.name} and {after.name} do not overlap: before covers "
            f"{before.geobox.describe_bounds()}, after {after.geobox.describe_bounds()};"
            " give two images of the same area, and check the CRS of each"
        )
    _check_sliver(before, after, placement, window)
    notes: list[str] = []
    if placement.offset is None:
        difference = _difference(before, after, placement)
        if strict:
            raise RasterError(
                f"{after.name}: not on the grid of {before.name} ({difference}); try `align='auto'`"
            )
        _check_coverage(after, before, placement, window)
        notes.append(f"after: warped onto the grid of before ({difference}, {resampling})")
    if not 1 / MAX_SCALE_RATIO <= placement.scale <= MAX_SCALE_RATIO:
        notes.append(
            f"after: pixels {placement.scale:.2g} times as long as those of before; details of one date may "
            "be too small to show in the other"
        )
    share = min(1.0, placement.covered.area / (before.geobox.width * before.geobox.height))
    if share < 1 - NOTED_SHARE:
        notes.append(f"after: covers {share:.1%} of before; only that part is analyzed")

    geobox = before.geobox.crop(window)
    before_offset: Offset | None = (window.col_off, window.row_off)
    after_offset = placement.offset and (
        window.col_off + placement.offset[0],
        window.row_off + placement.offset[1],
    )
    if gsd_m is not None:
        resampled = _with_gsd(geobox, gsd_m)
        if resampled is not geobox:
            notes.append(f"resampled to {gsd_m:g} m per pixel, {resampled.width} x {resampled.height} px")
            geobox, before_offset, after_offset = resampled, None, None
    if (
        geobox.crs is None
    ):  # ground coordinates are pixels of before, as its own transform has no known meaning
        geobox = replace(geobox, transform=Affine.translation(window.col_off, window.row_off))
    return Alignment(geobox, before_offset, after_offset, placement, share, tuple(notes))


def _with_gsd(geobox: GeoBox, gsd_m: float) -> GeoBox:
    """The grid resampled to pixels of `gsd_m` metres, or the same object where it has them already."""
    if gsd_m <= 0 or not math.isfinite(gsd_m):
        raise ConfigError(f"gsd {gsd_m:g} m: give a number above 0")
    size_m = geobox.pixel_size_m()
    if size_m is None:
        raise ConfigError(f"gsd {gsd_m:g} m: needs a CRS that leads to longitude and latitude; {ADD_A_CRS}")
    if max(abs(size / gsd_m - 1) for size in size_m) <= SAME_GSD:
        return geobox
    if max(size_m) > MAX_UPSAMPLING * gsd_m * (1 + SAME_GSD):
        raise ConfigError(
            f"gsd {gsd_m:g} m: is finer than half a pixel of before, which is {max(size_m):.3g} m, so its "
            f"detail would be invented; give {max(size_m) / MAX_UPSAMPLING:.3g} or more, or leave it out"
        )
    resampled = geobox.resample(gsd_m)
    if resampled.width * resampled.height > MAX_PIXELS:
        raise ConfigError(
            f"gsd {gsd_m:g} m: makes {resampled.width} x {resampled.height} px, more than {MAX_PIXELS:,}; "
            "give a larger one"
        )
    return resampled


def _difference(before: Source, after: Source, placement: Placement) -> str:
    """Text on how two grids differ. Raises: RasterError without a CRS, where nothing can be warped."""
    if before.geobox.crs is None:
        raise RasterError(f"{after.name}: not on the grid of {before.name}, no CRS to warp by; {ADD_A_CRS}")
    shift = f"{placement.error_px:.2f} px off" if math.isfinite(placement.error_px) else "far apart"
    names = [crs_name(source.geobox.crs) for source in (after, before)]
    return shift if names[0] == names[1] else f"{names[0]} -> {names[1]}, {shift}"
