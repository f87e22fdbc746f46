"""How the grid of one raster lies on another: offset, coverage, and the size of a pixel on the ground.

Grids are compared by where their pixels fall, never by `==`: rounding in a file is not a shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from affine import Affine, TransformNotInvertibleError
from numpy.typing import NDArray
from pyproj import Geod
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform as warp_points
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.grid import Window

__all__ = [
    "LONLAT",
    "PixelGrid",
    "Placement",
    "covers",
    "ground_size_m",
    "is_off_the_globe",
    "lonlat",
    "place",
    "resampled",
]

Points = NDArray[np.float64]  # (N, 2) x, y

SAME_GRID_PX = 0.05
"""Grids whose pixels differ by less are one grid: no pixel would be interpolated to any use."""

LONLAT = CRS.from_epsg(4326)
FARTHEST = (720, 100)  # two turns; a pole in grads, or half a coarse pixel beyond one in degrees


@dataclass(frozen=True, slots=True)
class PixelGrid:
    """Where the pixels of a raster lie on the ground."""

    crs: CRS | None
    transform: Affine
    width: int
    height: int

    def lattice(self, steps: int) -> Points:
        """`steps` x `steps` points over the grid in pixels, corners included."""
        across, down = np.meshgrid(np.linspace(0, self.width, steps), np.linspace(0, self.height, steps))
        return np.stack([across.ravel(), down.ravel()], axis=1)

    def outline(self, steps: int = 21) -> Points:
        """The edge in pixels, `steps` points a side, so that it can bend when it is projected."""
        side = np.linspace(0, 1, steps)[:-1]
        zero, one = np.zeros_like(side), np.ones_like(side)
        around = np.concatenate([(side, zero), (one, side), (1 - side, one), (zero, 1 - side)], axis=1).T
        return around * (self.width, self.height)

    def cropped(self, window: Window) -> PixelGrid:
        corner = self.transform * Affine.translation(window.col_off, window.row_off)
        return PixelGrid(self.crs, corner, window.width, window.height)

    def to_ground(self, pixels: Points) -> Points:
        return _transformed(self.transform, pixels)

    def to_pixels(self, ground: Points) -> Points:
        """Where ground points lie; on a grid in degrees, each at that of its longitudes which is nearest."""
        if self.crs is not None and self.crs.is_geographic:
            middle, _ = self.transform * (self.width / 2, self.height / 2)
            away = np.where(np.isfinite(ground[:, 0]), middle - ground[:, 0], 0)
            turns = np.where(np.abs(away) > 180 + 1e-6, np.round(away / 360), 0)
            ground = ground + np.stack([360 * turns, np.zeros_like(turns)], axis=1)
        return _transformed(~self.transform, ground)

    def is_invertible(self) -> bool:
        """Whether pixels can be found again from where they lie: those of a broken header cannot."""
        pixels = self.lattice(3)
        try:
            with np.errstate(all="ignore"):
                again = _transformed(~self.transform, self.to_ground(pixels))
        except (TransformNotInvertibleError, ArithmeticError):
            return False
        return bool((np.abs(again - pixels) < SAME_GRID_PX).all())


def _transformed(transform: Affine, points: Points) -> Points:
    x, y = points.T
    a, b, c, d, e, f = transform[:6]
    with np.errstate(invalid="ignore"):  # 0 times infinity, where a point could not be projected
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def project(points: Points, source: CRS | None, target: CRS | None) -> Points:
    """Ground points in another CRS; infinite where they cannot be expressed in it."""
    if source == target or source is None or target is None:
        return points
    try:
        x, y = warp_points(source, target, points[:, 0].tolist(), points[:, 1].tolist())
    except (CPLE_BaseError, CRSError):
        return np.full_like(points, np.inf)
    return np.stack([np.array(x), np.array(y)], axis=1)


@dataclass(frozen=True, slots=True)
class Placement:
    """How a raster lies on a grid; lengths and shapes are in pixels of the grid."""

    offset: tuple[int, int] | None  # of the grid's corner in the raster (column, row), if they share pixels
    error_px: float  # how far the raster's pixels are from those of the grid
    covered: BaseGeometry  # what the raster covers of the grid
    scale: float  # length of the raster's pixels


def place(raster: PixelGrid, grid: PixelGrid) -> Placement:
    """Lay `raster` on `grid`."""

    def there(pixels: Points) -> Points:
        return grid.to_pixels(project(raster.to_ground(pixels), raster.crs, grid.crs))

    def back(pixels: Points) -> Points:
        return raster.to_pixels(project(grid.to_ground(pixels), grid.crs, raster.crs))

    own = raster.lattice(5)
    shift = there(own) - own
    whole = np.round(shift.mean(axis=0)) if np.isfinite(shift).all() else np.zeros(2)
    error = float(np.abs(shift - whole).max())
    offset = (-int(whole[0]), -int(whole[1])) if error < SAME_GRID_PX else None

    outline = there(raster.outline())
    if (np.abs(back(outline) - raster.outline()) < 1).all():
        frame = shapely.box(0, 0, grid.width, grid.height)
        covered = shapely.make_valid(shapely.Polygon(outline)).intersection(frame)
    else:  # the raster reaches beyond what the grid's CRS can express: look from the grid instead
        points = grid.lattice(65)
        inside = (back(points) >= 0) & (back(points) <= (raster.width, raster.height))
        covered = shapely.MultiPoint(points[inside.all(axis=1)]).convex_hull
    return Placement(offset, error, covered, _pixel_length(covered, back) if covered.area else 1.0)


def _pixel_length(covered: BaseGeometry, back: Callable[[Points], Points]) -> float:
    """Length of the raster's pixels in pixels of the grid, in the middle of what it covers."""
    middle = covered.centroid
    corner, right, below = back(np.array([[0, 0], [1, 0], [0, 1]]) + np.array([middle.x, middle.y]))
    return 1 / math.sqrt(abs(np.linalg.det([right - corner, below - corner])))


def crop_window(covered: BaseGeometry, grid: PixelGrid) -> Window | None:
    """The pixels of `grid` around `covered`, or None when that is no area."""
    if covered.area == 0:
        return None
    left, top, right, bottom = covered.bounds
    cols = max(0, math.floor(left + SAME_GRID_PX)), min(grid.width, math.ceil(right - SAME_GRID_PX))
    rows = max(0, math.floor(top + SAME_GRID_PX)), min(grid.height, math.ceil(bottom - SAME_GRID_PX))
    width, height = cols[1] - cols[0], rows[1] - rows[0]
    return Window(cols[0], rows[0], width, height) if width > 0 and height > 0 else None


def ground_size_m(grid: PixelGrid) -> tuple[float, float] | None:
    """Width and height of the central pixel on the ground in metres, measured along the ellipsoid.

    So degrees are metres, and Web Mercator's stretched metres true ones. None where the ground is unknown.
    """
    if grid.crs is None:
        return None
    x, y = grid.width / 2, grid.height / 2
    cross = np.array([(x - 0.5, y), (x + 0.5, y), (x, y - 0.5), (x, y + 0.5)])
    lonlat = project(grid.to_ground(cross), grid.crs, LONLAT)
    if not np.isfinite(lonlat).all():
        return None
    west, east, north, south = lonlat
    _, _, lengths = Geod(ellps="WGS84").inv(
        [west[0], north[0]], [west[1], north[1]], [east[0], south[0]], [east[1], south[1]]
    )
    return float(lengths[0]), float(lengths[1])


def resampled(grid: PixelGrid, size_m: tuple[float, float], gsd_m: float) -> PixelGrid:
    """The same ground in pixels of about `gsd_m` metres both ways; `size_m` is what they measure now."""
    width = max(1, round(grid.width * size_m[0] / gsd_m))
    height = max(1, round(grid.height * size_m[1] / gsd_m))
    scale = Affine.scale(grid.width / width, grid.height / height)
    return replace(grid, transform=grid.transform * scale, width=width, height=height)


def lonlat(crs: CRS | None, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]] | None:
    """Ground points as (longitude, latitude), or None where a CRS does not lead there from all of them."""
    points = np.array([xs, ys], dtype=float).T
    projected = np.full_like(points, np.inf) if crs is None else project(points, crs, LONLAT)
    return [(x, y) for x, y in projected.tolist()] if np.isfinite(projected).all() else None


def covers(grid: PixelGrid) -> str:
    """The box around the grid for a message: "lon/lat (3, 45) to (4, 46)", or x/y of what leads nowhere."""
    points = grid.to_ground(grid.outline())
    known = lonlat(grid.crs, *points.T.tolist())
    (left, bottom), (right, top) = (edge(known or points, axis=0) for edge in (np.min, np.max))
    return f"{'lon/lat' if known else 'x/y'} ({left:.4f}, {bottom:.4f}) to ({right:.4f}, {top:.4f})"


def is_off_the_globe(points: Points, crs: CRS | None) -> bool:
    """Whether points are no longitudes and latitudes although their CRS says so: it must be the wrong one."""
    return crs is not None and bool(crs.is_geographic) and bool((np.abs(points) > FARTHEST).any())
