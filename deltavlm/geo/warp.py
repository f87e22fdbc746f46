"""Warps of a raster onto a grid by GDAL: its method, and how nodata, masks and alpha get through them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT

from deltavlm.geo.geobox import GeoBox
from deltavlm.geo.nodata import alpha_band

__all__ = ["ANY_PLANE", "NOT_WARPED", "needs_alpha", "warp_method", "warp_onto", "without_alpha"]

ANY_PLANE = CRS.from_epsg(3857)
"""CRS of both grids in a warp between grids that have none, as GDAL asks for one."""
_SOURCE_NAME = re.compile(r"(<(?:SourceFilename|SourceDataset)\b[^>]*>)([^<?]+)(</)")
"""Name of a file in a VRT; after a "?", as in the query of a URL, no driver can be given."""
NOT_WARPED = "cannot be warped", "check its CRS, or warp it with gdalwarp first"  # of `wrap_gdal_errors`


def warp_onto(
    dataset: DatasetReader,
    placed: GeoBox,
    target: GeoBox,
    resampling: str,
    nodata: float | None = None,
    opaque: float | None = None,
) -> WarpedVRT:
    """Warp a raster, whose pixels lie at `placed`, onto the grid `target`. Outside of it there is nodata, or
    alpha 0 in an additional band.

    nodata: the value without data in all bands that are read of the warp.
    opaque: largest value of its alpha band, where that is not the largest of the data type.

    Raises:
        RasterioError, CPLE_BaseError: GDAL cannot warp it.
    """
    options = {} if opaque is None else {"SRC_ALPHA_MAX": f"{opaque:g}"}
    return WarpedVRT(
        dataset,
        src_crs=placed.crs,
        src_transform=placed.transform,
        crs=target.crs,
        transform=target.transform,
        width=target.width,
        height=target.height,
        resampling=warp_method(dataset, resampling),
        src_nodata=nodata,
        nodata=nodata,
        add_alpha=needs_alpha(dataset, nodata),
        UNIFIED_SRC_NODATA="NO",  # each band by itself; `Source.has_data` decides about all
        **options,
    )


def needs_alpha(dataset: DatasetReader, nodata: float | None) -> bool:
    """True where a warp must add an alpha band: to keep masks, and to mark the outside of the raster."""
    return nodata is None and alpha_band(dataset) is None


def warp_method(dataset: DatasetReader, resampling: str) -> Resampling:
    """Method to warp a raster with: nearest where its values are indices of colors, which have no mean."""
    return Resampling.nearest if ColorInterp.palette in dataset.colorinterp else Resampling[resampling]


@contextmanager
def without_alpha(dataset: DatasetReader) -> Iterator[DatasetReader]:
    """The same raster through a VRT without the alpha label: GDAL always warps by a labelled alpha band.

    The file is opened again by the driver that opened it.
    """
    with MemoryFile(ext=".vrt") as virtual:
        rasterio.shutil.copy(dataset, virtual.name, driver="VRT")
        unlabelled = bytes(virtual.read()).replace(b"<ColorInterp>Alpha</ColorInterp>", b"").decode()
    driver = getattr(dataset, "src_dataset", dataset).driver
    if driver != "VRT":  # whose sources were checked one by one
        unlabelled = _SOURCE_NAME.sub(rf"\1vrt://\2?if={driver}\3", unlabelled)
    with rasterio.open(unlabelled, driver="VRT") as reopened:
        yield reopened
