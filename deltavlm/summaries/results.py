"""Outputs of `analyze`, read again: the chips of one or several, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from deltavlm.errors import InputError
from deltavlm.geo.geojson import to_lonlat
from deltavlm.geo.vector_files import read_layer

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["LOOKED_AT", "Results", "area_m2", "in_lonlat", "read_results"]

LOOKED_AT = ("answered", "cascaded")
NEEDED = ("chip_id", "status", "changed", "changed_score")
OTHERS = ("caption", "new_roads", "new_buildings", "gsd_m", "pair_id", "before_date", "after_date")
GEOD = pyproj.Geod(ellps="WGS84")

Shapes = NDArray[np.object_]  # of polygons, or None


@dataclass(frozen=True)
class Results:
    """The chips of some outputs in one table, in the CRS of the first."""

    paths: tuple[Path, ...]
    chips: GeoDataFrame  # the columns of NEEDED and OTHERS, those that an output has not are null
    runs: tuple[Mapping[str, Any], ...]  # the provenance of each output; empty where it was lost

    @property
    def has_places(self) -> bool:
        """Whether coordinates are on the ground, and not pixels of an image."""
        return self.chips.crs is not None

    @cached_property
    def lonlat(self) -> Shapes:
        """The polygons in longitude and latitude; None for a chip without one, or without a CRS."""
        if not self.has_places:
            return np.full(len(self.chips), None, dtype=object)
        return in_lonlat(self.chips.geometry.to_numpy(), self.chips.crs)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """(chips, 2): longitude and latitude of the middle of each chip; NaN without a place."""
        whole = [None if one is None else max(shapely.get_parts(one), key=_area) for one in self.lonlat]
        points = shapely.centroid(np.array(whole, dtype=object))
        return np.stack([shapely.get_x(points), shapely.get_y(points)], axis=1)

    @cached_property
    def areas_m2(self) -> NDArray[np.float64]:
        """Of each chip, on the ellipsoid; NaN without a place."""
        return np.array([np.nan if one is None else area_m2(one) for one in self.lonlat])


def read_results(paths: Sequence[Path]) -> Results:
    """The chips of outputs in any format that `analyze` writes.

    Raises:
        InputError: a file that is missing or no output, or some with and some without a CRS.
    """
    import pandas as pd

    read = [_read(path) for path in paths]
    first = read[0][0]
    parts = []
    for path, (chips, _) in zip(paths, read, strict=True):
        if (chips.crs is None) != (first.crs is None):
            without = path if chips.crs is None else paths[0]
            raise InputError(f"{without}: has no CRS and others have one; summarize it alone")
        parts.append(chips if chips.crs == first.crs else chips.to_crs(first.crs))
    filled = [part for part in parts if len(part)] or parts[:1]
    chips = filled[0] if len(filled) == 1 else pd.concat(filled, ignore_index=True)
    return Results(tuple(paths), chips, tuple(run for _, run in read))


def _read(path: Path) -> tuple[GeoDataFrame, Mapping[str, Any]]:
    layer = "chips" if path.suffix.lower() == ".gpkg" else None
    found = read_layer(path, layer)
    frame = found.frame
    missing = [name for name in NEEDED if name not in frame]
    if missing:
        raise InputError(
            f"{path}: has no column {missing[0]!r}, so it does not hold chips; give an output of "
            "deltavlm analyze, with its layer chips"
        )
    for name in OTHERS:
        if name not in frame:
            frame[name] = None
    return frame[[*NEEDED, *OTHERS, "geometry"]].reset_index(drop=True), found.provenance or {}


def in_lonlat(shapes: Shapes, crs: Any) -> Shapes:
    """Polygons in longitude and latitude, cut where they cross the 180th meridian."""
    told = CRS.from_wkt(pyproj.CRS(crs).to_wkt())
    move = to_lonlat(told)
    transformer = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    moved = shapely.transform(shapes, lambda xy: np.stack(transformer.transform(xy[:, 0], xy[:, 1]), axis=1))
    bounds = shapely.bounds(moved)
    with np.errstate(invalid="ignore"):
        odd = np.flatnonzero(~((bounds[:, 2] - bounds[:, 0]) < 180))
    for index in odd:
        one = shapes[index]
        moved[index] = None if one is None or one.is_empty or move(one).is_empty else move(one)
    whole: Shapes = moved
    return whole


def area_m2(shape: shapely.Geometry) -> float:
    """Of polygons in longitude and latitude, on the ellipsoid."""
    area, _ = GEOD.geometry_area_perimeter(shapely.orient_polygons(shape))
    return float(area)


def _area(shape: shapely.Geometry) -> float:
    return float(shape.area)
