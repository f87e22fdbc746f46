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

__all__ = ["ANSWERED", "Results", "area_m2", "read_results", "shapes_to_lonlat", "union", "union_m2"]

ANSWERED = ("answered", "cascaded")
NEEDED = ("chip_id", "status", "changed", "changed_score")
OTHERS = (
    *("caption", "new_roads", "new_buildings", "gsd_m", "before", "after"),
    *("pair_id", "before_date", "after_date"),
)
OTHER = "give an output of deltavlm analyze, with its layer chips"
NUMBERS = ("changed_score", "new_roads", "new_buildings", "gsd_m")
SHAPE: Mapping[str, Any] = {  # of a provenance: what must be an object where it is there
    **{"model": {}, "options": {}, "versions": {}, "reading": {}},
    "inputs": {"before": {}, "after": {}, "grid": {}, "alignment": {}},
}
EQUAL_AREA = pyproj.Transformer.from_crs(4326, 6933, always_xy=True)

Shapes = NDArray[np.object_]  # of polygons, or None


@dataclass(frozen=True)
class Results:
    """The chips of some outputs in one table, in the CRS of the first."""

    paths: tuple[Path, ...]
    chips: GeoDataFrame  # the columns of NEEDED and OTHERS, those that an output has not are null
    runs: tuple[Mapping[str, Any], ...]  # the provenance of each output; empty where it was lost
    lost_pairs: tuple[str, ...] | None = ()  # that could not be opened; None where an output does not say

    @property
    def has_crs(self) -> bool:
        """Whether coordinates are on the ground, and not pixels of an image."""
        return self.chips.crs is not None

    @cached_property
    def lonlat(self) -> Shapes:
        """The polygons in longitude and latitude; None for a chip without one, or without a CRS."""
        if not self.has_crs:
            return np.full(len(self.chips), None, dtype=object)
        return shapes_to_lonlat(self.chips.geometry.to_numpy(), self.chips.crs)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """(chips, 2): longitude and latitude of the middle of each chip; NaN without a place."""
        whole = self.lonlat.copy()
        for index in np.flatnonzero(shapely.get_num_geometries(whole) > 1):  # in two parts, far apart
            whole[index] = max(shapely.get_parts(whole[index]), key=_area)
        points = shapely.centroid(whole)
        return np.stack([shapely.get_x(points), shapely.get_y(points)], axis=1)

    @cached_property
    def areas_m2(self) -> NDArray[np.float64]:
        """Of each chip, on the ellipsoid; NaN without a place."""
        return areas_m2(self.lonlat)


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
    runs = tuple(run for _, run in read)
    return Results(tuple(paths), chips, runs, _lost_pairs(paths, runs))


def _lost_pairs(paths: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """The pairs that could not be opened, from the layer `pairs`, which a GeoPackage alone has."""
    lost: list[str] = []
    for path, run in zip(paths, runs, strict=True):
        if "pairs" not in run:
            continue
        try:
            pairs = read_layer(path, "pairs").frame if path.suffix.lower() == ".gpkg" else None
        except InputError:
            pairs = None
        if pairs is None or not {"pair_id", "status"} <= {*pairs.columns}:
            return None
        lost += [str(name) for name in pairs.loc[pairs["status"].eq("failed"), "pair_id"]]
    return tuple(lost)


def _read(path: Path) -> tuple[GeoDataFrame, Mapping[str, Any]]:
    import pandas as pd

    layer = "chips" if path.suffix.lower() == ".gpkg" else None
    found = read_layer(path, layer, OTHER)
    frame = found.frame
    missing = [name for name in NEEDED if name not in frame]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]!r}, so it does not hold chips; {OTHER}")
    for name in OTHERS:
        if name not in frame:
            frame[name] = None
    for name in NUMBERS:
        try:
            frame[name] = pd.to_numeric(frame[name])
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: column {name!r} has no numbers ({error}); write it anew") from error
    return frame[[*NEEDED, *OTHERS, "geometry"]].reset_index(drop=True), _sound(found.provenance)


def _sound(run: object) -> Mapping[str, Any]:
    """The provenance if it is built as ours is; else nothing, as if it were lost."""
    if not isinstance(run, dict) or not _fits(run, SHAPE):
        return {}
    questions = run.get("questions", [])
    return run if isinstance(questions, list) and all(isinstance(one, dict) for one in questions) else {}


def _fits(value: object, shape: Mapping[str, Any]) -> bool:
    return isinstance(value, dict) and all(
        _fits(value[key], inner) for key, inner in shape.items() if key in value
    )


def shapes_to_lonlat(shapes: Shapes, crs: Any) -> Shapes:
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


def areas_m2(shapes: Shapes) -> NDArray[np.float64]:
    """Of polygons in longitude and latitude, on the ellipsoid; NaN for None."""

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(EQUAL_AREA.transform(points[:, 0], points[:, 1]), axis=1)

    found: NDArray[np.float64] = shapely.area(shapely.transform(shapes, move))
    found[shapely.is_missing(shapes)] = np.nan
    return found


def area_m2(shape: shapely.Geometry) -> float:
    """Of one polygon, or of several as one."""
    return float(areas_m2(np.array([shape], dtype=object))[0])


def union_m2(shapes: Shapes) -> float:
    """Ground under polygons, where they overlap counted once; None is left out."""
    known = shapes[~shapely.is_missing(shapes)]
    if not len(known):
        return 0.0
    if shapely.coverage_is_valid(known):
        return float(areas_m2(known).sum())
    return area_m2(shapely.union_all(known))


def union(shapes: Shapes) -> shapely.Geometry:
    """Polygons as one; None is left out."""
    known = shapes[~shapely.is_missing(shapes)]
    side_by_side = shapely.coverage_is_valid(known)  # as chips mostly are, for which there is a faster way
    return shapely.coverage_union_all(known) if side_by_side else shapely.union_all(known)


def _area(shape: shapely.Geometry) -> float:
    return float(shape.area)
