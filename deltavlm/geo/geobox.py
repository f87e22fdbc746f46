"""GeoBox, the pixel grid of a raster (size, transform, CRS), pixel windows, and points between CRSs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyproj
from affine import Affine, TransformNotInvertibleError
from numpy.typing import NDArray
from pyproj import Geod
from pyproj.crs import BoundCRS, ProjectedCRS
from pyproj.crs.coordinate_operation import EquidistantCylindricalConversion
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as warp_points
from shapely.geometry import Polygon

from deltavlm.geo.crs import are_beyond_edge

__all__ = [
    "LONLAT",
    "SAME_GRID_PX",
    "GeoBox",
    "Points",
    "Window",
    "are_off_globe",
    "crs_name",
    "degrees_per_unit",
    "has_transform",
    "lonlat_of",
    "pixel_polygon",
    "project",
]

Points = NDArray[np.float64]  # (N, 2) x, y

LONLAT = CRS.from_epsg(4326)  # points in it are (longitude, latitude)

SAME_GRID_PX = 0.05
"""Grids whose pixels differ by less are one grid: resampling would change no pixel noticeably."""

MAX_LONLAT = (570, 100)
"""Largest absolute longitude and latitude of a valid file in degrees: PROJ takes longitudes of up to 10
radians, and a coarse grid may reach half a pixel beyond a pole."""


class Window(NamedTuple):
    """Rectangle of pixels; `rasterio.windows.Window(*window)` is the same rectangle."""

    col_off: int
    row_off: int
    width: int
    height: int


def pixel_polygon(transform: Affine, left: float, top: float, right: float, bottom: float) -> Polygon:
    """Ground polygon of a pixel rectangle; its corners start at the upper left one, counter-clockwise in
    pixels."""
    corners = ((left, top), (left, bottom), (right, bottom), (right, top))
    return Polygon([transform * corner for corner in corners])


@dataclass(frozen=True, slots=True)
class GeoBox:
    """Pixel grid of a raster: its size, the affine transform from pixels to the ground, and the CRS.

    Pixel coordinates are (column, row) from the upper left corner of the raster; (0.5, 0.5) is the center of
    the first pixel. Without a CRS (None), ground coordinates are what the transform gives.
    """

    width: int
    height: int
    transform: Affine
    crs: CRS | None = None

    @property
    def footprint(self) -> Polygon:
        """Ground polygon of the four corners, in the CRS of the grid."""
        return pixel_polygon(self.transform, 0, 0, self.width, self.height)

    def lattice(self, steps: int) -> Points:
        """Regular lattice of `steps` x `steps` pixel coordinates over the grid, corners included."""
        cols, rows = np.meshgrid(np.linspace(0, self.width, steps), np.linspace(0, self.height, steps))
        return np.stack([cols.ravel(), rows.ravel()], axis=1)

    def centers(self, steps: int) -> Points:
        """Centers of `steps` x `steps` equal cells of the grid, in pixels, row by row."""
        half = 0.5 / steps
        side = np.linspace(half, 1 - half, steps)
        return np.stack([axis.ravel() for axis in np.meshgrid(side, side)], axis=1) * (
            self.width,
            self.height,
        )

    def outline(self, steps: int = 21) -> Points:
        """Edge of the grid in pixels, `steps` points a side, so that it can bend when it is projected."""
        side = np.linspace(0, 1, steps)[:-1]
        zeros, ones = np.zeros_like(side), np.ones_like(side)
        unit = np.concatenate([(side, zeros), (ones, side), (1 - side, ones), (zeros, 1 - side)], axis=1).T
        return unit * (self.width, self.height)

    def contains(self, window: Window) -> bool:
        """True where a window lies within the grid."""
        col, row, width, height = window
        return 0 <= col <= col + width <= self.width and 0 <= row <= row + height <= self.height

    def crop(self, window: Window) -> GeoBox:
        """Grid of a window of this one."""
        transform = self.transform * Affine.translation(window.col_off, window.row_off)
        return GeoBox(window.width, window.height, transform, self.crs)

    def translate(self, cols: float, rows: float) -> GeoBox:
        """Grid of the same size whose corner lies at these pixel coordinates of this one."""
        return replace(self, transform=self.transform * Affine.translation(cols, rows))

    def zoom_to(self, width: int, height: int) -> GeoBox:
        """Grid of `width` x `height` pixels over the same ground."""
        scale = Affine.scale(self.width / width, self.height / height)
        return replace(self, width=width, height=height, transform=self.transform * scale)

    def to_ground(self, pixels: Points) -> Points:
        """Ground coordinates of pixel coordinates."""
        return _apply(self.transform, pixels)

    def to_pixels(self, ground: Points) -> Points:
        """Pixel coordinates of ground points; on a geographic grid a longitude is taken modulo a turn, as
        near to the grid's center as possible."""
        if self.crs is not None and self.crs.is_geographic:
            turn = 360 / degrees_per_unit(self.crs)
            center, _ = self.transform * (self.width / 2, self.height / 2)
            distance = np.where(np.isfinite(ground[:, 0]), center - ground[:, 0], 0)
            turns = np.where(np.abs(distance) > turn / 2 + 1e-6, np.round(distance / turn), 0)
            ground = ground + np.stack([turn * turns, np.zeros_like(turns)], axis=1)
        return _apply(~self.transform, ground)

    def wrapping_onto(self, grid: GeoBox) -> GeoBox:
        """This grid in a CRS from which and to which GDAL transforms points of `grid` rightly.

        GDAL and PROJ count longitudes from -180 to 180, or do not touch them where both CRSs are one. So a
        geographic grid is returned as a plate carrée about its own central meridian, on the same datum, where
        it or `grid` counts otherwise: from 0 to 360, or beyond 180. Other grids are returned as they are.
        """
        is_geographic = self.crs is not None and self.crs.is_geographic
        if not is_geographic or grid.crs is None or not (self.leaves_180 or grid.leaves_180):
            return self
        unit = degrees_per_unit(self.crs)
        meridian = unit * (self.transform * (self.width / 2, self.height / 2))[0]
        crs, radius_m = _plate_carree(self.crs, meridian)
        metres = math.radians(unit) * radius_m
        scale = Affine(metres, 0, -math.radians(meridian) * radius_m, 0, metres, 0)
        return replace(self, transform=scale * self.transform, crs=crs)

    @property
    def leaves_180(self) -> bool:
        """True where a geographic grid has longitudes outside of -180 to 180 degrees."""
        if self.crs is None or not self.crs.is_geographic:
            return False
        longitudes = self.to_ground(self.outline(2))[:, 0] * degrees_per_unit(self.crs)
        return bool((np.abs(longitudes) > 180 + 1e-9).any())

    def is_invertible(self) -> bool:
        """True where pixels are recovered from their ground coordinates; those of a broken header are not."""
        pixels = self.lattice(3)
        try:
            with np.errstate(all="ignore"):
                recovered = _apply(~self.transform, self.to_ground(pixels))
        except (TransformNotInvertibleError, ArithmeticError):
            return False
        return bool((np.abs(recovered - pixels) < SAME_GRID_PX).all())

    def is_off_globe(self) -> bool:
        """True where a grid in degrees has longitudes and latitudes that do not exist: its CRS is wrong."""
        return are_off_globe(self.to_ground(self.outline()), self.crs)

    def pixel_size_m(self) -> tuple[float, float] | None:
        """Width and height of the central pixel in metres, measured along the WGS 84 ellipsoid.

        Degrees are converted, and so are the stretched metres of Web Mercator. None without a CRS, or where
        the center has no longitude and latitude.
        """
        if self.crs is None:
            return None
        x, y = self.width / 2, self.height / 2
        cross = np.array([(x - 0.5, y), (x + 0.5, y), (x, y - 0.5), (x, y + 0.5)])
        lonlat = project(self.to_ground(cross), self.crs, LONLAT)
        if not np.isfinite(lonlat).all():
            return None
        west, east, north, south = lonlat
        _, _, lengths = Geod(ellps="WGS84").inv(
            [west[0], north[0]], [west[1], north[1]], [east[0], south[0]], [east[1], south[1]]
        )
        return float(lengths[0]), float(lengths[1])

    @property
    def gsd_m(self) -> float | None:
        """Ground sample distance in metres: geometric mean of `pixel_size_m`; None where that is None."""
        size_m = self.pixel_size_m()
        return math.sqrt(size_m[0] * size_m[1]) if size_m else None

    def resample(self, gsd_m: float) -> GeoBox:
        """Grid over the same ground with pixels of about `gsd_m` metres both ways.

        Raises:
            ValueError: the size of a pixel in metres is not known.
        """
        size_m = self.pixel_size_m()
        if size_m is None:
            raise ValueError("a grid without pixel sizes in metres cannot be resampled to some")
        return self.zoom_to(
            max(1, round(self.width * size_m[0] / gsd_m)), max(1, round(self.height * size_m[1] / gsd_m))
        )

    def describe_bounds(self) -> str:
        """Bounding box for a message: "lon/lat (3, 45) to (4, 46)", beyond 180 where it crosses that;
        "x/y (...)" without longitudes."""
        points = self.to_ground(self.outline())
        lonlat = project(points, self.crs, LONLAT)
        axes = "x/y"
        if self.crs is not None and np.isfinite(lonlat).all():
            axes, points = "lon/lat", lonlat
            if not self.crs.is_geographic:  # count on from point to point
                steps = np.diff(lonlat[:, 0])
                points[1:, 0] = lonlat[0, 0] + np.cumsum(steps - 360 * np.round(steps / 360))
        (left, bottom), (right, top) = (edge(points, axis=0) for edge in (np.min, np.max))
        return f"{axes} ({left:.4f}, {bottom:.4f}) to ({right:.4f}, {top:.4f})"


def _apply(transform: Affine, points: Points) -> Points:
    x, y = points.T
    a, b, c, d, e, f = transform[:6]
    with np.errstate(invalid="ignore"):  # 0 times infinity, where a point could not be projected
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def project(points: Points, source: CRS | None, target: CRS | None) -> Points:
    """Points in another CRS; infinite where they cannot be expressed in it, unchanged where either CRS is
    None."""
    if source == target or source is None or target is None:
        return points
    try:
        x, y = warp_points(source, target, points[:, 0].tolist(), points[:, 1].tolist())
    except (CPLE_BaseError, CRSError):
        return np.full_like(points, np.inf)
    projected = np.stack([np.array(x), np.array(y)], axis=1)
    if source.is_projected:
        projected[are_beyond_edge(points, source.to_wkt())] = np.inf
    return projected


def lonlat_of(points: Points, crs: CRS | None) -> list[tuple[float, float] | None]:
    """Longitude from -180 to 180 and latitude of points on the ground; None where they have none."""
    lonlat = project(points, crs, LONLAT)
    if crs is None or not len(points):
        return [None] * len(points)
    with np.errstate(invalid="ignore"):
        turned = np.where(np.abs(lonlat[:, 0]) > 180, (lonlat[:, 0] + 180) % 360 - 180, lonlat[:, 0])
    pairs = zip(turned.tolist(), lonlat[:, 1].tolist(), strict=True)
    return [(lon, lat) if math.isfinite(lon + lat) else None for lon, lat in pairs]


def has_transform(dataset: DatasetReader | WarpedVRT) -> bool:
    """False where rasterio gives the identity, as it does for a file without a transform."""
    return not dataset.transform.almost_equals(Affine.identity(), precision=1e-9)


def are_off_globe(points: Points, crs: CRS | None) -> bool:
    """True where points in a geographic CRS are no longitudes and latitudes: the CRS must be wrong."""
    if crs is None or not crs.is_geographic:
        return False
    return bool((np.abs(points * degrees_per_unit(crs)) > MAX_LONLAT).any())


def crs_name(crs: CRS) -> str:
    """EPSG code of a CRS, or the name in its WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt().split('"')[1])


def degrees_per_unit(crs: CRS) -> float:
    """Degrees in the angular unit of a geographic CRS, which is 0.9 in grads."""
    _, radians = crs.units_factor
    degrees = math.degrees(radians)
    return 1.0 if math.isclose(degrees, 1, rel_tol=1e-9) else degrees


def _plate_carree(crs: CRS, meridian: float) -> tuple[CRS, float]:
    """Plate carrée on the datum of a geographic CRS about a meridian in degrees, and its radius in metres.

    Both axes are linear in degrees.
    """
    whole = pyproj.CRS.from_wkt(crs.to_wkt())
    horizontal = whole.sub_crs_list[0] if whole.is_compound else whole
    geographic = horizontal.source_crs if horizontal.is_bound else horizontal
    assert geographic is not None
    conversion = EquidistantCylindricalConversion(longitude_natural_origin=meridian)
    plane: pyproj.CRS = ProjectedCRS(conversion, geodetic_crs=geographic.to_2d())
    if horizontal.is_bound:
        plane = BoundCRS(plane, horizontal.target_crs, horizontal.coordinate_operation)
    assert geographic.ellipsoid is not None
    return CRS.from_wkt(plane.to_wkt()), geographic.ellipsoid.semi_major_metre
