"""Chips of one or several outputs in one table, with their areas in longitude and latitude."""

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

from deltavlm.errors import InputError
from deltavlm.geo.lonlat import shapes_to_lonlat
from deltavlm.pipeline.outputs_reader import Output, read_output

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["Results", "area_m2", "read_results", "union", "union_m2"]

COLUMNS = (
    *("chip_id", "status", "changed", "changed_score", "caption", "new_roads", "new_buildings", "gsd_m"),
    *("before", "after", "pair_id", "before_date", "after_date", "conflicts", "shift_px"),
)
NUMBER_COLUMNS = ("changed_score", "new_roads", "new_buildings", "shift_px", "gsd_m")
EQUAL_AREA = pyproj.Transformer.from_crs(4326, 6933, always_xy=True)

Shapes = NDArray[np.object_]  # of shapely polygons, or None


@dataclass(frozen=True)
class Results:
    """Chips of some outputs in one table, in the CRS of the first output."""

    paths: tuple[Path, ...]
    chips: GeoDataFrame  # COLUMNS and `geometry`; a column that an output does not have is null
    runs: tuple[Mapping[str, Any], ...]  # provenance of each output; {} if it was lost
    lost_pairs: tuple[str, ...] | None = ()  # pairs that could not be opened; None if an output has no record
    threshold: float | None = None  # that was applied to the stored scores

    @property
    def has_crs(self) -> bool:
        """False if coordinates are pixels of an image."""
        return self.chips.crs is not None

    @cached_property
    def lonlat(self) -> Shapes:
        """(chips,): polygons in longitude and latitude; None for a chip without a polygon or a CRS."""
        if not self.has_crs:
            return np.full(len(self.chips), None, dtype=object)
        return shapes_to_lonlat(self.chips.geometry.to_numpy(), self.chips.crs)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """(chips, 2): longitude and latitude of the centroid of each chip; NaN without a polygon."""
        shapes = self.lonlat.copy()
        for index in np.flatnonzero(shapely.get_num_geometries(shapes) > 1):  # cut at the 180th meridian
            shapes[index] = max(shapely.get_parts(shapes[index]), key=shapely.area)
        points = shapely.centroid(shapes)
        return np.stack([shapely.get_x(points), shapely.get_y(points)], axis=1)

    @cached_property
    def areas_m2(self) -> NDArray[np.float64]:
        """(chips,): area of each chip on the ellipsoid; NaN without a polygon."""
        return areas_m2(self.lonlat)


def read_results(paths: Sequence[Path], *, threshold: float | None = None) -> Results:
    """Read the chips of outputs in any format.

    threshold: chips have changed whose stored score reaches it; None: as the outputs say.

    Raises:
        InputError: a file is missing or not an output, a column of numbers has text, or some outputs have a
            CRS and others do not.
        ConfigError: a threshold that is not from 0 to 1.
    """
    import pandas as pd

    outputs = [read_output(path, ["pairs"], threshold=threshold) for path in paths]
    frames = [_chips_table(output) for output in outputs]
    crs = frames[0].crs
    for path, frame in zip(paths, frames, strict=True):
        if (frame.crs is None) != (crs is None):
            without_crs = path if frame.crs is None else paths[0]
            raise InputError(f"{without_crs}: has no CRS and others have one; summarize it alone")
    frames = [frame if frame.crs == crs else frame.to_crs(crs) for frame in frames]
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    chips = filled[0] if len(filled) == 1 else pd.concat(filled, ignore_index=True)
    runs = tuple(output.provenance for output in outputs)
    return Results(tuple(paths), chips, runs, _lost_pairs(outputs), threshold)


def _chips_table(output: Output) -> GeoDataFrame:
    import pandas as pd

    frame = output.layers["chips"].copy(deep=False)
    if "conflicts" in frame:
        frame["conflicts"] = pd.Series(output.values("chips", "conflicts"), index=frame.index, dtype="object")
    for name in COLUMNS:
        if name not in frame:
            frame[name] = None
    for name in NUMBER_COLUMNS:
        try:
            frame[name] = pd.to_numeric(frame[name])
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{output.path}: column {name!r} has values that are no numbers ({error}); run deltavlm "
                "analyze again"
            ) from error
    return frame[[*COLUMNS, "geometry"]].reset_index(drop=True)


def _lost_pairs(outputs: Sequence[Output]) -> tuple[str, ...] | None:
    """Ids of the pairs that could not be opened, from the layer `pairs`; GeoPackages alone have it."""
    lost: list[str] = []
    for output in outputs:
        if "pairs" not in output.provenance:
            continue
        pairs = output.layers.get("pairs")
        if pairs is None or not {"pair_id", "status"} <= {*pairs.columns}:
            return None
        lost += [str(name) for name in pairs.loc[pairs["status"].eq("failed"), "pair_id"]]
    return tuple(lost)


def areas_m2(shapes: Shapes) -> NDArray[np.float64]:
    """(shapes,): areas of polygons in longitude and latitude on the ellipsoid; NaN for None."""

    def project(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(EQUAL_AREA.transform(points[:, 0], points[:, 1]), axis=1)

    areas: NDArray[np.float64] = shapely.area(shapely.transform(shapes, project))
    areas[shapely.is_missing(shapes)] = np.nan
    return areas


def area_m2(shape: shapely.Geometry) -> float:
    """Area of one geometry in longitude and latitude on the ellipsoid."""
    return float(areas_m2(np.array([shape], dtype=object))[0])


def union_m2(shapes: Shapes) -> float:
    """Area covered by polygons, overlaps counted once; None is ignored."""
    polygons = shapes[~shapely.is_missing(shapes)]
    if not len(polygons):
        return 0.0
    if shapely.coverage_is_valid(polygons):
        return float(areas_m2(polygons).sum())
    return area_m2(shapely.union_all(polygons))


def union(shapes: Shapes) -> shapely.Geometry:
    """Union of polygons; None is ignored. Chips without overlap take the faster coverage union."""
    polygons = shapes[~shapely.is_missing(shapes)]
    if shapely.coverage_is_valid(polygons):
        return shapely.coverage_union_all(polygons)
    return shapely.union_all(polygons)
