"""Ground control points (GCPs) that alone place a raster: their CRS, their error, and the warp by them."""

from __future__ import annotations

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import GCPTransformer
from rasterio.vrt import WarpedVRT

from deltavlm.errors import RasterError
from deltavlm.geo.drivers import check_size
from deltavlm.geo.geobox import has_transform
from deltavlm.geo.warp import needs_alpha, warp_method
from deltavlm.messages import pluralize

__all__ = ["control_point_crs", "control_point_texts", "warp_by_control_points"]

MAX_ERROR_PX = 2.0  # root mean square; more is a wrong point, or relief


def control_point_crs(dataset: DatasetReader) -> CRS | None:
    """CRS of the ground control points that place a raster; None where it has none, or a CRS and a transform
    of its own."""
    points, crs = dataset.gcps
    if not points or (dataset.crs and has_transform(dataset)):
        return None
    return crs or dataset.crs or None


def control_point_texts(dataset: DatasetReader) -> tuple[str, str | None]:
    """Note for the user, and a warning where the points are off."""
    points = pluralize(len(dataset.gcps[0]), "ground control point")
    error_px = _error_px(dataset)
    warning = (
        f"its {points} are {error_px:.1f} px (root mean square) off the polynomial that places it; check "
        "them, or warp it with gdalwarp -tps first"
    )
    return f"georeferenced by its {points}", warning if error_px > MAX_ERROR_PX else None


def _error_px(dataset: DatasetReader) -> float:
    """Root mean square distance in pixels of the ground control points from the polynomial through them; 0
    where it cannot be computed, as across 180 degrees."""
    points, _ = dataset.gcps
    if np.ptp([point.x for point in points]) > 180 and dataset.gcps[1] and dataset.gcps[1].is_geographic:
        return 0.0
    try:
        with GCPTransformer(points) as transformer:
            xs, ys = zip(*((point.x, point.y) for point in points), strict=True)
            rows, cols = transformer.rowcol(xs, ys, op=float)
    except (CPLE_BaseError, RasterioError, ValueError):  # which the warp tells
        return 0.0
    offsets = [(row - p.row, col - p.col) for row, col, p in zip(rows, cols, points, strict=True)]
    return float(np.sqrt(np.mean(np.square(offsets).sum(axis=1))))


def warp_by_control_points(
    dataset: DatasetReader, crs: CRS, name: str, resampling: str, nodata: float | None
) -> WarpedVRT:
    """The raster warped into the CRS of its ground control points. Raises: RasterError."""
    try:
        warped = WarpedVRT(
            dataset,
            src_crs=crs,
            crs=crs,
            resampling=warp_method(dataset, resampling),
            src_nodata=nodata,
            nodata=nodata,
            add_alpha=needs_alpha(dataset, nodata),
            UNIFIED_SRC_NODATA="NO",  # each band by itself, as in `warp_onto`
        )
    except (CPLE_BaseError, RasterioError) as error:
        raise RasterError(
            f"{name}: not placed by its {pluralize(len(dataset.gcps[0]), 'ground control point')} ({error}); "
            "give at least three that are not on one line"
        ) from error
    check_size(warped, name)
    return warped
