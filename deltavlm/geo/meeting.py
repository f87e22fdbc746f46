"""Whether two rasters can be compared, and the grid on which they meet: before's, cut to what both cover."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from affine import Affine
from rasterio.crs import CRS

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import (
    PixelGrid,
    Placement,
    covers,
    crop_window,
    ground_size_m,
    is_off_the_globe,
    place,
    resampled,
)
from deltavlm.geo.drivers import MAX_PIXELS
from deltavlm.geo.view import Source

__all__ = ["ADD_A_CRS", "Meeting", "check_placed", "meet"]

FAR_SCALE = 2.0  # a ratio of pixel lengths that is worth a note
SAME_GSD = 0.01  # a relative difference that is not worth a resampling
NOTED_SHARE = 0.0005  # a missing share of the ground that shows as 0.1 %
ADD_A_CRS = "assign one (gdal_edit.py -a_srs EPSG:...)"

Offset = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Meeting:
    """The grid, and where its corner lies in each raster (column, row), or None if that one is warped."""

    grid: PixelGrid
    before_offset: Offset | None
    after_offset: Offset | None
    placement: Placement  # of after on before's own grid
    overlap_share: float  # of before's area
    notes: tuple[str, ...]


def check_placed(before: Source, after: Source, allow_no_crs: bool) -> None:
    """Refuse rasters that nothing places on each other.

    Raises:
        RasterError: a transform or CRS cannot be the right one; or a CRS is missing and not allowed to be; or
            only one is; or sizes differ without one.
    """
    for source in (before, after):
        if not source.grid.is_invertible():
            raise RasterError(
                f"{source.name}: its transform {tuple(source.grid.transform)[:6]} gives pixels no place of "
                "their own; assign the right one (gdal_edit.py -a_ullr ...)"
            )
        if is_off_the_globe(source.grid.to_ground(source.grid.outline()), source.grid.crs):
            raise RasterError(
                f"{source.name}: its CRS {_crs_name(source.grid.crs)} looks wrong, as {covers(source.grid)}"
                " is nowhere on earth; assign the right one (gdal_edit.py -a_srs EPSG:...)"
            )
    unplaced = [source for source in (before, after) if source.grid.crs is None]
    names = " and ".join(dict.fromkeys(source.name for source in unplaced))
    if unplaced and not allow_no_crs:
        raise RasterError(
            f"{names}: no CRS, so nothing places it on a map; {ADD_A_CRS},"
            " or give --allow-no-crs for results in pixel coordinates"
        )
    if len(unplaced) == 1:
        raise RasterError(f"{names}: no CRS, but the other date has one; {ADD_A_CRS}")
    sizes = [f"{source.grid.width} x {source.grid.height} px" for source in unplaced]
    if unplaced and sizes[0] != sizes[1] and before.grid.transform == after.grid.transform:
        raise RasterError(
            f"{before.name} has {sizes[0]} but {after.name} has {sizes[1]}:"
            " without a CRS they must lie pixel on pixel; resize one"
        )


def meet(before: Source, after: Source, *, strict: bool, resampling: str, gsd_m: float | None) -> Meeting:
    """Find the common grid; `gsd_m` asks for pixels of that many metres instead of before's.

    Raises:
        RasterError: no overlap; grids that differ under `strict`, or without a CRS to warp by.
        ConfigError: `gsd_m` cannot be.
    """
    placement = place(after.grid, before.grid)
    window = crop_window(placement.covered, before.grid)
    if window is None:
        boxes = f"before covers {covers(before.grid)}, after {covers(after.grid)}"
        raise RasterError(
            f"{before.name} and {after.name} do not overlap: {boxes};"
            " give two images of one place, and check the CRS of each"
        )
    notes: list[str] = []
    if placement.offset is None:
        words = _difference(before, after, placement)
        if strict:
            raise RasterError(f"{after.name}: not on the grid of {before.name} ({words}); try --align auto")
        notes.append(f"after: warped onto the grid of before ({words}, {resampling})")
    if not 1 / FAR_SCALE <= placement.scale <= FAR_SCALE:
        ratio = f"{placement.scale:.2g} times as long as before's"
        notes.append(f"after: pixels {ratio}; what one date shows may be too small for the other")
    share = min(1.0, placement.covered.area / (before.grid.width * before.grid.height))
    if share < 1 - NOTED_SHARE:
        notes.append(f"after: covers {share:.1%} of before; that part is analysed")

    grid = before.grid.cropped(window)
    before_offset: Offset | None = (window.col_off, window.row_off)
    after_offset = placement.offset and (
        window.col_off + placement.offset[0],
        window.row_off + placement.offset[1],
    )
    if gsd_m is not None:
        finer = _with_gsd(grid, gsd_m)
        if finer is not grid:
            notes.append(f"resampled to {gsd_m:g} m per pixel, {finer.width} x {finer.height} px")
            grid, before_offset, after_offset = finer, None, None
    if grid.crs is None:  # pixels of before are the ground; what its own transform means, nobody says
        grid = replace(grid, transform=Affine.translation(window.col_off, window.row_off))
    return Meeting(grid, before_offset, after_offset, placement, share, tuple(notes))


def _with_gsd(grid: PixelGrid, gsd_m: float) -> PixelGrid:
    """The grid in pixels of `gsd_m` metres, or itself where it has them."""
    size_m = ground_size_m(grid)
    if gsd_m <= 0 or not math.isfinite(gsd_m):
        raise ConfigError(f"gsd {gsd_m:g} m: give a number above 0")
    if size_m is None:
        raise ConfigError(f"gsd {gsd_m:g} m: needs a CRS that leads to longitude and latitude; {ADD_A_CRS}")
    if max(abs(size / gsd_m - 1) for size in size_m) <= SAME_GSD:
        return grid
    finer = resampled(grid, size_m, gsd_m)
    if finer.width * finer.height > MAX_PIXELS:
        raise ConfigError(
            f"gsd {gsd_m:g} m: makes {finer.width} x {finer.height} px, more than {MAX_PIXELS:,}; "
            "give a larger one"
        )
    return finer


def _difference(before: Source, after: Source, placement: Placement) -> str:
    if before.grid.crs is None:
        raise RasterError(f"{after.name}: not on the grid of {before.name}, no CRS to warp by; {ADD_A_CRS}")
    far = f"{placement.error_px:.2f} px off" if math.isfinite(placement.error_px) else "far apart"
    names = [_crs_name(source.grid.crs) for source in (after, before)]
    return far if names[0] == names[1] else f"{names[0]} -> {names[1]}, {far}"


def _crs_name(crs: CRS) -> str:
    """The code of a CRS, or the name in its WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt().split('"')[1])
