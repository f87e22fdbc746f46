"""Georeferencing of a raster: what places its pixels, and errors that name what is missing.

A raster is placed by a CRS and a transform, or by ground control points with a CRS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyproj

from deltavlm.errors import RasterError
from deltavlm.geo.geobox import GeoBox, crs_name, has_transform, lonlat_of
from deltavlm.geo.location import is_remote
from deltavlm.geo.source import Source
from deltavlm.messages import pluralize

__all__ = ["ADD_A_CRS", "check_georeferenced", "datum_note", "place_warnings"]

FAR_DEGREES = 6  # from the area of use of a CRS; images are often in the next UTM zone
SAME_ELLIPSOID_M = 1.0  # difference of radii; datums of one ellipsoid are metres apart, others hundreds

ADD_A_CRS = "assign one (gdal_translate -a_srs EPSG:... writes a copy with it)"
ADD_A_TRANSFORM = "assign one (gdal_translate -a_ullr LEFT TOP RIGHT BOTTOM writes a copy with it)"
ADD_BOTH = "assign both (gdal_translate -a_srs EPSG:... -a_ullr LEFT TOP RIGHT BOTTOM writes a copy)"
WORLD_FILES = {
    *(".tfw", ".tifw", ".tffw", ".tiffw", ".jgw", ".jpgw", ".jpegw", ".pgw", ".pngw", ".j2w", ".jp2w"),
    *(".wld", ".wpw", ".webpw", ".tab"),
}


def check_georeferenced(before: Source, after: Source, allow_no_crs: bool) -> None:
    """Refuse rasters without valid georeferencing.

    Raises:
        RasterError: a transform is not invertible; a CRS does not fit the coordinates; a CRS or a transform
            is missing and that is not allowed, or only one date has both; sizes differ without them.
    """
    for source in (before, after):
        geobox = source.geobox
        if not geobox.is_invertible():
            raise RasterError(
                f"{source.name}: its transform {tuple(geobox.transform)[:6]} is not invertible; assign the "
                "right one (gdal_translate -a_ullr ...)"
            )
        if geobox.is_off_globe():
            raise RasterError(
                f"{source.name}: its CRS {crs_name(geobox.crs)} looks wrong, as {geobox.describe_bounds()}"
                " is nowhere on earth; assign the right one (gdal_translate -a_srs EPSG:...)"
            )
    unplaced = [source for source in (before, after) if source.geobox.crs is None]
    if not unplaced:
        return
    problem, advice = _missing(unplaced[0])
    alike = [source for source in unplaced if _missing(source)[0] == problem]
    name = " and ".join(dict.fromkeys(source.name for source in alike))
    if len(unplaced) == 1:
        raise RasterError(f"{name}: {problem}, but the other date is placed; {advice}")
    if not allow_no_crs:
        raise RasterError(
            f"{name}: {problem}; {advice}, or give `allow_no_crs=True` for results in pixel coordinates"
        )
    sizes = [f"{source.geobox.width} x {source.geobox.height} px" for source in unplaced]
    if sizes[0] != sizes[1] and before.geobox.transform == after.geobox.transform:
        raise RasterError(
            f"{before.name} has {sizes[0]} but {after.name} has {sizes[1]}:"
            " without a CRS both must have the same size; resize one"
        )


def _missing(source: Source) -> tuple[str, str]:
    """What an image lacks to be placed, and what to do about it."""
    dataset = source.dataset
    points, _ = dataset.gcps
    if not has_transform(dataset) and dataset.tags(ns="RPC"):
        return (
            "placed only by rational polynomial coefficients (RPCs), which need the height of the ground",
            "orthorectify it first (gdalwarp -rpc -to RPC_DEM=ELEVATION.tif -t_srs EPSG:...)",
        )
    if points and not dataset.crs:
        return (
            f"no CRS of its {pluralize(len(points), 'ground control point')}",
            "warp it by naming theirs (gdalwarp -s_srs EPSG:...)",
        )
    unread = _unread_sidecar(source)
    if dataset.crs:
        problem = f"no transform beside its CRS ({crs_name(dataset.crs)}), so its pixels have no place"
        return problem, unread or ADD_A_TRANSFORM
    if has_transform(dataset):
        return "no CRS, so the raster is not georeferenced", unread or ADD_A_CRS
    return "no CRS and no transform, so the raster is not georeferenced", unread or ADD_BOTH


def _unread_sidecar(source: Source) -> str:
    """Advice about a file next to the image that is not read and may have what is missing; "" without one."""
    if is_remote(source.location):
        return (
            "files next to a remote image (world file, .aux.xml) are not read: download it with them, or"
            " assign what is missing (gdal_translate)"
        )
    path = Path(source.location)
    try:
        beside = sorted(each for each in path.parent.iterdir() if each.stem.lower() == path.stem.lower())
    except OSError:
        return ""
    for name, suffix in ((each.name, each.suffix) for each in beside):
        if suffix.lower() in WORLD_FILES and not has_transform(source.dataset):
            if suffix not in (suffix.lower(), suffix.upper()):
                return f"{name} is not read under this name; rename it to {path.stem}{suffix.lower()}"
            return f"GDAL does not read {name} with such an image; gdal_translate -a_ullr assigns its numbers"
        if suffix.lower() == ".prj" and not source.dataset.crs:
            return (
                f"{name} is not read with it; assign it (gdal_translate -a_srs {name} writes a copy with it)"
            )
    return ""


def place_warnings(source: Source) -> Iterator[str]:
    """Warnings where the CRS and transform of an image are valid, but are hardly those of its ground."""
    geobox = source.geobox
    if geobox.crs is None:
        return
    if geobox.crs.is_projected and _counts_pixels(geobox):
        yield (
            f"its transform counts pixels from 0, 0 of its CRS ({crs_name(geobox.crs)}), where it hardly "
            "lies; assign the right one (gdal_translate -a_ullr LEFT TOP RIGHT BOTTOM)"
        )
        return
    code = geobox.crs.to_epsg()
    area = pyproj.CRS.from_epsg(code).area_of_use if code else None
    (center,) = lonlat_of(geobox.to_ground(np.array([[geobox.width / 2, geobox.height / 2]])), geobox.crs)
    if area is None or center is None:
        return
    lon, lat = center
    east = (lon - area.west) % 360  # of the western edge
    width = (area.east - area.west) % 360 or 360
    beyond = max(0.0, min(east - width, 360 - east), area.south - lat, lat - area.north)
    if beyond > FAR_DEGREES:
        yield (
            f"it lies at lon/lat ({lon:.2f}, {lat:.2f}), {beyond:.0f} degrees from where its CRS "
            f"({crs_name(geobox.crs)}) is used ({area.name}); is that its CRS?"
        )


def _counts_pixels(geobox: GeoBox) -> bool:
    """True for ground coordinates that are pixels, from the upper or the lower left corner."""
    a, b, c, d, e, f = geobox.transform[:6]
    is_unit = (abs(a), b, d, abs(e)) == (1, 0, 0, 1)
    return is_unit and abs(c) <= 1 and min(abs(f), abs(f - geobox.height)) <= 1


def datum_note(before: Source, after: Source) -> tuple[str, bool] | None:
    """Note on dates in different datums, and whether it is a warning; None where the difference is less than
    a pixel."""
    grid, crs = before.geobox, after.geobox.crs
    if grid.crs is None or crs is None or grid.crs == crs:
        return None
    first, second = (pyproj.CRS.from_wkt(each.to_wkt()) for each in (grid.crs, crs))
    datums = [each.geodetic_crs and each.geodetic_crs.datum for each in (first, second)]
    if None in datums or datums[0] == datums[1]:
        return None
    try:
        transformer = pyproj.Transformer.from_crs(first, second, always_xy=True)
        transformer.transform(*(grid.transform * (grid.width / 2, grid.height / 2)))
        operation = transformer.get_last_used_operation()
    except pyproj.exceptions.ProjError:
        return None
    names = f"the dates have different datums ({datums[0].name}, {datums[1].name})"  # type: ignore[union-attr]
    radii = [each.ellipsoid.semi_major_metre if each.ellipsoid else 0.0 for each in (first, second)]
    if "Ballpark" in operation.description:
        if abs(radii[0] - radii[1]) <= SAME_ELLIPSOID_M:
            return None
        return (
            f"{names}, and the shift between them is not known here, so they may be hundreds of metres "
            "apart; install the grids of PROJ (projsync), or warp one of them",
            True,
        )
    accuracy_m, gsd_m = operation.accuracy, grid.gsd_m
    if gsd_m is None or accuracy_m <= gsd_m:
        return None
    return (
        f"{names}, and the shift between them is known to {accuracy_m:g} m, {accuracy_m / gsd_m:.0f} px",
        False,
    )
