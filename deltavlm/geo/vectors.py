"""From a mask over a chip to polygons on the ground."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.grid import Chip

__all__ = ["mask_polygons"]


def mask_polygons(labels: NDArray[np.uint8], chip: Chip) -> Iterator[tuple[int, BaseGeometry]]:
    """Each connected part of a class other than 0, as (class, polygon in the chip's ground coordinates).

    labels: (rows, cols), any resolution, over the whole square of the chip; what lies in the padding of a
    small raster is cut off. Pixels that share an edge are connected.
    """
    rows, cols = labels.shape
    window = chip.window
    ground = (
        chip.transform
        * Affine.translation(window.col_off, window.row_off)
        * Affine.scale(chip.size / cols, chip.size / rows)
    )
    footprint = chip.footprint
    for geometry, value in shapes(labels, mask=labels > 0, connectivity=4, transform=ground):
        polygon = shape(geometry).intersection(footprint)
        if polygon.area > 0:
            yield int(value), polygon
