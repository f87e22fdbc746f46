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
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.drivers import MAX_PIXELS
from deltavlm.geo.geobox import SAME_GRID_PX, GeoBox, Points, Window, project
from deltavlm.geo.view import Source

__all__ = [
    "ADD_A_CRS",
    "Alignment",
    "Placement",
    "align",
    "check_georeferenced",
    "crop_window",
    "locate",
]

MAX_SCALE_RATIO = 2.0  # of the pixel lengths of both dates; beyond it there is a note
MAX_UPSAMPLING = 2.0  # of pixel lengths by `gsd_m`; interpolation adds no detail
SAME_GSD = 0.01  # relative difference of pixel sizes that is not worth resampling
NOTED_SHARE = 0.0005  # missing share of the ground that shows as 0.1 %
ADD_A_CRS = "assign one (gdal_edit.py -a_srs EPSG:...)"

Offset = tuple[int, int]  # column, row


@dataclass(frozen=True, slots=True)
class Placement:
    """Position of a raster on a grid; lengths and shapes are in pixels of the grid."""

    offset: Offset | None  # of the grid's corner in the raster, where both have the same pixels
    error_px: float  # largest distance between the raster's pixels and those of the grid
    covered: BaseGeometry  # area of the grid that the raster covers
    scale: float  # length of the raster's pixels


def locate(raster: GeoBox, grid: GeoBox) -> Placement:
    """Position of `raster` on `grid`."""

    def to_grid(pixels: Points) -> Points:
        return grid.to_pixels(project(raster.to_ground(pixels), raster.crs, grid.crs))

    def to_raster(pixels: Points) -> Points:
        return raster.to_pixels(project(grid.to_ground(pixels), grid.crs, raster.crs))

    pixels = raster.lattice(5)
    shift = to_grid(pixels) - pixels
    rounded = np.round(shift.mean(axis=0)) if np.isfinite(shift).all() else np.zeros(2)
    error = float(np.abs(shift - rounded).max())
    offset = (-int(rounded[0]), -int(rounded[1])) if error < SAME_GRID_PX else None

    outline = to_grid(raster.outline())
    if (np.abs(to_raster(outline) - raster.outline()) < 1).all():
        frame = shapely.box(0, 0, grid.width, grid.height)
        covered = shapely.make_valid(shapely.Polygon(outline)).intersection(frame)
    else:  # the raster extends beyond what the grid's CRS can express: sample points of the grid instead
        points = grid.lattice(65)
        inside = (to_raster(points) >= 0) & (to_raster(points) <= (raster.width, raster.height))
        covered = shapely.MultiPoint(points[inside.all(axis=1)]).convex_hull
    return Placement(offset, error, covered, _pixel_length(covered, to_raster) if covered.area else 1.0)


def _pixel_length(covered: BaseGeometry, to_raster: Callable[[Points], Points]) -> float:
    """Length of the raster's pixels in pixels of the grid, at the centroid of the covered area."""
    center = covered.centroid
    corner, right, below = to_raster(np.array([[0, 0], [1, 0], [0, 1]]) + np.array([center.x, center.y]))
    return 1 / math.sqrt(abs(np.linalg.det([right - corner, below - corner])))


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


def check_georeferenced(before: Source, after: Source, allow_no_crs: bool) -> None:
    """Refuse rasters without valid georeferencing.

    Raises:
        RasterError: a transform is not invertible; a CRS does not fit the coordinates; a CRS is missing and
            that is not allowed, or only one is missing; sizes differ without a CRS.
    """
    for source in (before, after):
        geobox = source.geobox
        if not geobox.is_invertible():
            raise RasterError(
                f"{source.name}: its transform {tuple(geobox.transform)[:6]} is not invertible; assign the "
                "right one (gdal_edit.py -a_ullr ...)"
            )
        if geobox.is_off_globe():
            raise RasterError(
                f"{source.name}: its CRS {_crs_name(geobox.crs)} looks wrong, as {geobox.describe_bounds()}"
                " is nowhere on earth; assign the right one (gdal_edit.py -a_srs EPSG:...)"
            )
    without_crs = [source for source in (before, after) if source.geobox.crs is None]
    names = " and ".join(dict.fromkeys(source.name for source in without_crs))
    if without_crs and not allow_no_crs:
        raise RasterError(
            f"{names}: no CRS, so the raster is not georeferenced; {ADD_A_CRS},"
            " or give --allow-no-crs for results in pixel coordinates"
        )
    if len(without_crs) == 1:
        raise RasterError(f"{names}: no CRS, but the other date has one; {ADD_A_CRS}")
    sizes = [f"{source.geobox.width} x {source.geobox.height} px" for source in without_crs]
    if without_crs and sizes[0] != sizes[1] and before.geobox.transform == after.geobox.transform:
        raise RasterError(
            f"{before.name} has {sizes[0]} but {after.name} has {sizes[1]}:"
            " without a CRS both must have the same size; resize one"
        )


def align(before: Source, after: Source, *, strict: bool, resampling: str, gsd_m: float | None) -> Alignment:
    """Compute the common grid; `gsd_m` requests pixels of that many metres instead of those of `before`.

    Raises:
        RasterError: no overlap; grids that differ under `strict`, or without a CRS to warp by.
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
    notes: list[str] = []
    if placement.offset is None:
        difference = _difference(before, after, placement)
        if strict:
            raise RasterError(
                f"{after.name}: not on the grid of {before.name} ({difference}); try --align auto"
            )
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
    names = [_crs_name(source.geobox.crs) for source in (after, before)]
    return shift if names[0] == names[1] else f"{names[0]} -> {names[1]}, {shift}"


def _crs_name(crs: CRS) -> str:
    """EPSG code of a CRS, or the name in its WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt().split('"')[1])
