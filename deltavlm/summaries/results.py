"""Chips and polygons of one or several outputs in two tables, placed in longitude and latitude."""

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

from deltavlm.errors import InputError, OutputError
from deltavlm.geo.lonlat import shapes_to_lonlat
from deltavlm.geo.measure import areas_m2
from deltavlm.pipeline.answers import check_threshold
from deltavlm.pipeline.outputs_reader import Output, at_threshold, true_change
from deltavlm.pipeline.review import read_reviewed
from deltavlm.pipeline.schema import ANALYZED_STATUSES, FAILED_STATUSES
from deltavlm.pipeline.totals import ChipArrays, PolygonArrays

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["UNSURE", "Results", "read_results", "union"]

COLUMNS = (
    *("chip_id", "status", "changed", "changed_score", "caption", "new_roads", "new_buildings", "gsd_m"),
    *("before", "after", "pair_id", "before_date", "after_date", "conflicts", "shift_px"),
    *("ground_share", "aoi_share", "valid_fraction", "cloud_share", "truth"),
)
NUMBER_COLUMNS = (
    *("changed_score", "new_roads", "new_buildings", "shift_px", "gsd_m", "ground_share", "aoi_share"),
    *("valid_fraction", "cloud_share"),
)
POLYGON_COLUMNS = ("class", "kind", "area_m2", "pair_id", "verdict")

UNSURE = (0.35, 0.65)
"""Range of scores, ends included, that lean neither to change nor to no change."""

Shapes = NDArray[np.object_]  # of shapely polygons, or None


@dataclass(frozen=True)
class Results:
    """Chips and polygons of some outputs, in their CRS, or in longitude and latitude if they have several."""

    paths: tuple[Path, ...]
    chips: GeoDataFrame  # COLUMNS and `geometry`; a column that an output does not have is null
    polygons: GeoDataFrame  # POLYGON_COLUMNS and `geometry`
    from_polygons: NDArray[np.bool_]  # (chips,): True for chips of an output that has polygons
    runs: tuple[Mapping[str, Any], ...]  # provenance of each output; {} if it was lost
    other_files: tuple[Path, ...] = ()  # that layers of the outputs were read from
    lost_pairs: tuple[str, ...] | None = ()  # pairs that could not be opened; None if an output has no record
    threshold: float | None = None  # that was applied to the stored scores

    @property
    def has_crs(self) -> bool:
        """False if coordinates are pixels of an image."""
        return self.chips.crs is not None

    @cached_property
    def lonlat(self) -> Shapes:
        """(chips,): polygons in longitude and latitude; None for a chip without a polygon or a place."""
        return _lonlat(self.chips)

    @cached_property
    def polygons_lonlat(self) -> Shapes:
        """(polygons,): the same of the polygons."""
        return _lonlat(self.polygons)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """(chips, 2): longitude and latitude of the centroid of each chip; NaN without a polygon."""
        shapes = self.lonlat.copy()
        for index in np.flatnonzero(shapely.get_num_geometries(shapes) > 1):  # cut at the 180th meridian
            shapes[index] = max(shapely.get_parts(shapes[index]), key=shapely.area)
        points = shapely.centroid(shapes)
        return np.stack([shapely.get_x(points), shapely.get_y(points)], axis=1)

    @cached_property
    def chip_arrays(self) -> ChipArrays:
        """Columns of the chips that totals are made of."""
        return ChipArrays.of_rows(_rows(self.chips), *_areas(self.chips, self.lonlat))

    @cached_property
    def polygon_arrays(self) -> PolygonArrays:
        """Columns of the polygons that totals are made of."""
        return PolygonArrays.of_rows(_rows(self.polygons), *_areas(self.polygons, self.polygons_lonlat))

    def numbers(self, column: str) -> NDArray[np.float64]:
        """(chips,): column of numbers; NaN for null."""
        numbers: NDArray[np.float64] = self.chips[column].to_numpy(dtype=float, na_value=np.nan)
        return numbers

    @cached_property
    def flags(self) -> dict[str, NDArray[np.bool_]]:
        """(chips,) arrays by name: what the chips of an area are counted by."""
        status, changed = self.chips["status"], self.chips["changed"]
        analyzed, scores = status.isin(ANALYZED_STATUSES).to_numpy(), self.scores
        return {
            "looked_at": analyzed,
            "nodata": status.eq("nodata").to_numpy(),
            "failed": status.isin(FAILED_STATUSES).to_numpy(),
            "changed": analyzed & changed.eq(True).to_numpy(),
            "unparsed": analyzed & changed.isna().to_numpy(),
            "unsure": analyzed & (scores >= UNSURE[0]) & (scores <= UNSURE[1]),
            "conflicting": self.chips["conflicts"].map(bool).to_numpy(dtype=bool),
        }

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """(chips,): score of change; NaN without one."""
        return self.numbers("changed_score")

    @cached_property
    def own_shares(self) -> NDArray[np.float64]:
        """(chips,): share of the ground that is the chip's own; NaN where it is not known."""
        return self.numbers("ground_share")

    @cached_property
    def areas_m2(self) -> NDArray[np.float64]:
        """(chips,): area of each chip on the ellipsoid; NaN without a polygon."""
        return areas_m2(self.lonlat)


def read_results(
    paths: Sequence[Path], *, threshold: float | None = None, review: Path | None = None
) -> Results:
    """Read the chips of outputs in any format.

    threshold: chips have changed whose stored score reaches it; None: as the outputs say.
    review: file of verdicts on a single output, beside those in its columns.

    Raises:
        InputError: a file is missing or not an output, a column of numbers has text, a verdict is none, or
            some outputs have a CRS and others do not.
        ConfigError: a threshold that is not from 0 to 1; a review of one of several outputs.
    """
    check_threshold(threshold)
    outputs = [at_threshold(output, threshold) for output in read_reviewed(paths, review)]
    frames = [_chips_table(output) for output in outputs]
    polygons = [_polygons_table(output) for output in outputs if output.has_polygons]
    if len(outputs) > 1:  # pairs are told apart by their output where it holds a single one
        for table, output in (
            *zip(frames, outputs, strict=True),
            *zip(polygons, (each for each in outputs if each.has_polygons), strict=True),
        ):
            table["pair_id"] = table["pair_id"].astype("object").fillna(output.path.stem)
    crs = frames[0].crs
    for path, frame in zip(paths, frames, strict=True):
        if (frame.crs is None) != (crs is None):
            without_crs = path if frame.crs is None else paths[0]
            raise InputError(f"{without_crs}: has no CRS and others have one; summarize it alone")
    if any(frame.crs != crs for frame in frames):
        crs = pyproj.CRS.from_epsg(4326)
    return Results(
        paths=tuple(paths),
        chips=_joined(frames, crs),
        polygons=_joined([*polygons, frames[0][:0].reindex(columns=[*POLYGON_COLUMNS, "geometry"])], crs),
        from_polygons=np.repeat([output.has_polygons for output in outputs], [len(each) for each in frames]),
        runs=tuple(output.provenance for output in outputs),
        other_files=tuple(file for output in outputs for file in output.other_files),
        lost_pairs=_lost_pairs(outputs),
        threshold=next((each.threshold for each in outputs if each.threshold is not None), None),
    )


def _joined(frames: Sequence[GeoDataFrame], crs: Any) -> GeoDataFrame:
    """Rows of all tables, in one CRS."""
    import pandas as pd

    frames = [frame if frame.crs == crs else frame.set_geometry(_lonlat(frame), crs=crs) for frame in frames]
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    return filled[0] if len(filled) == 1 else pd.concat(filled, ignore_index=True)


def _lonlat(frame: GeoDataFrame) -> Shapes:
    if frame.crs is None:
        return np.full(len(frame), None, dtype=object)
    try:
        return shapes_to_lonlat(frame.geometry.to_numpy(), frame.crs)
    except OutputError:  # no transformation from this CRS, as of a building site
        return np.full(len(frame), None, dtype=object)


def _areas(frame: GeoDataFrame, lonlat: Shapes) -> tuple[NDArray[np.float64], bool]:
    """Areas in m², and True; without a CRS areas in square pixels, and False."""
    if frame.crs is None:
        return shapely.area(frame.geometry.to_numpy()), False
    return areas_m2(lonlat), True


def _rows(frame: GeoDataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = frame.drop(columns="geometry").to_dict("records")
    return rows


def _polygons_table(output: Output) -> GeoDataFrame:
    frame = output.layers["changes"].copy(deep=False)
    for name in POLYGON_COLUMNS:
        if name not in frame:
            frame[name] = None
    return frame[[*POLYGON_COLUMNS, "geometry"]].reset_index(drop=True)


def _chips_table(output: Output) -> GeoDataFrame:
    import pandas as pd

    frame = output.layers["chips"].copy(deep=False)
    truths = list(map(true_change, output.rows("chips")))
    frame["truth"] = pd.Series(truths, index=frame.index, dtype="object")
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


def union(shapes: Shapes) -> shapely.Geometry:
    """Union of polygons; None is ignored. Chips without overlap take the faster coverage union."""
    polygons = shapes[~shapely.is_missing(shapes)]
    if shapely.coverage_is_valid(polygons):
        return shapely.coverage_union_all(polygons)
    return shapely.union_all(polygons)
