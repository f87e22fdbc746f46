"""Opening of the cloud mask of an image on the grid of the analysis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from deltavlm.errors import ConfigError, RasterError
from deltavlm.geo.alignment import Offset, locate
from deltavlm.geo.cloud_mask import CloudMask, CloudView, kind_in
from deltavlm.geo.gdal import wrap_gdal_errors
from deltavlm.geo.geobox import GeoBox, Window
from deltavlm.geo.nodata import alpha_band
from deltavlm.geo.source import Source, SourceOptions, open_source
from deltavlm.geo.warp import ANY_PLANE, NOT_WARPED, warp_onto, without_alpha

__all__ = ["open_cloud_mask"]


@contextmanager
def open_cloud_mask(
    mask: CloudMask,
    image: Source,
    grid: GeoBox,
    offset: Offset | None,
    *,
    shift: tuple[float, float] | None = None,
    allow_vrt: bool = False,
) -> Iterator[CloudView]:
    """Open the cloud mask of an image on the grid of the analysis.

    offset: (column, row) of the grid's corner in the image, where both have the same pixels. Without a CRS a
        mask has the pixels of its image.
    shift: as in `open_view`; a mask is misregistered as its image is.

    Raises:
        RasterError: it cannot be opened, does not overlap the grid, or cannot be placed on it.
        ConfigError: it has no such band, or no such classes.
    """
    location = image.location if mask.location is None else mask.location
    options = SourceOptions(bands=(1,), read_pixels=False, allow_vrt=allow_vrt, resampling="nearest")
    with ExitStack() as stack:
        source = stack.enter_context(open_source(location, options))
        band = _find_band(source, mask)
        description = source.dataset.descriptions[band - 1] or ""
        kind = mask.kind if mask.kind or mask.hidden else kind_in(description)
        values = mask.values_of(kind)
        _check_placed(source, image, grid)
        if grid.crs is None:
            assert offset is not None  # without a CRS nothing is warped
            corner: Offset | None = offset
            share = 1.0
            grid = replace(grid, crs=ANY_PLANE)
            placed = grid.translate(-offset[0], -offset[1])
        else:
            placement = locate(source.geobox, grid)
            corner = placement.offset
            share = min(1.0, placement.covered.area / (grid.width * grid.height))
            placed = source.geobox.wrapping_onto(grid)
        if not share:
            raise RasterError(
                f"{source.name}: the cloud mask does not overlap the pair; give that of its image"
            )
        view = CloudView(
            location=source.location,
            files=source.files,
            dataset=source.dataset,
            band=band,
            kind=kind,
            values=values,
            offset=corner or (0, 0),
            coverage=None,
            covered_share=share,
        )
        contains = corner and source.geobox.contains(Window(*corner, grid.width, grid.height))
        if contains and shift is None:
            yield view
            return
        with wrap_gdal_errors(location, *NOT_WARPED):
            dataset = source.dataset
            if alpha_band(dataset):  # which would hide values of the mask
                dataset = stack.enter_context(without_alpha(dataset))
            warped = warp_onto(dataset, placed, grid.translate(*(shift or (0, 0))), "nearest")
            stack.enter_context(warped)
        yield replace(view, dataset=warped, offset=(0, 0), coverage=warped.count)


def _find_band(source: Source, mask: CloudMask) -> int:
    """Number of the band of a mask. Raises: ConfigError."""
    dataset = source.dataset
    descriptions = [description or "" for description in dataset.descriptions]
    if isinstance(mask.band, int):
        if not 1 <= mask.band <= dataset.count:
            raise ConfigError(f"{source.name}: has no band {mask.band}; there are 1 to {dataset.count}")
        return mask.band
    if mask.band is None and dataset.count == 1:
        return 1
    searched = (mask.band or mask.kind or "").lower()
    bands = [
        band
        for band, description in enumerate(descriptions, 1)
        if description.lower() == searched
        or (mask.band is None and searched and searched in description.lower())
    ]
    if len(bands) == 1:
        return bands[0]
    names = ", ".join(f"{band} ({name})" if name else str(band) for band, name in enumerate(descriptions, 1))
    if mask.band is None:
        raise ConfigError(f"{source.name}: has {dataset.count} bands; which is the mask? FILE:1 is the first")
    raise ConfigError(f"{source.name}: has no single band named {mask.band!r}; there are {names}")


def _check_placed(source: Source, image: Source, grid: GeoBox) -> None:
    """Check that a mask can be placed on the grid.

    Raises:
        RasterError: only one of the two has a CRS, or sizes differ without one.
    """
    if (source.geobox.crs is None) != (grid.crs is None):
        raise RasterError(
            f"{source.name}: the cloud mask has {'no' if grid.crs else 'a'} CRS, and the pair has "
            f"{'one' if grid.crs else 'none'}; assign one (gdal_edit.py -a_srs EPSG:...)"
        )
    sizes = [f"{each.geobox.width} x {each.geobox.height} px" for each in (source, image)]
    if grid.crs is None and sizes[0] != sizes[1]:
        raise RasterError(
            f"{source.name}: the cloud mask has {sizes[0]}, and {image.name} {sizes[1]}: without a CRS both "
            "must have the same size"
        )
