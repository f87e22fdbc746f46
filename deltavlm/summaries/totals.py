"""Totals by area: chips, changed ground, new buildings and roads, mean score, most changed chips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.geo.measure import areas_m2
from deltavlm.pipeline.totals import Basis, Totals
from deltavlm.summaries.areas import OUTSIDE, Areas, Indices
from deltavlm.summaries.results import UNSURE, Results

__all__ = [
    "AREAS",
    "AreaSummary",
    "TopChip",
    "as_feature",
    "as_row",
    "summarize_areas",
    "summarize_chips",
]

AREAS = Layer(
    "areas",
    (
        Field("name", "str", "Name of the area", "Area"),
        Field("chips", "int", "Chips whose centre lies in the area"),
        Field("looked_at", "int", "Chips that the model analyzed", "Analyzed"),
        Field("nodata", "int", "Chips with too little data to analyze", "Without data"),
        Field("failed", "int", "Chips that could not be read or answered"),
        Field("changed", "int", "Chips that the model calls changed"),
        Field("conflicting", "int", "Chips whose answers contradict each other", "With conflicts"),
        Field("changed_share", "float", "Changed share of the analyzed ground, 0 to 1"),
        Field(
            "changed_km2", "float", "Changed ground, km²: of polygons, or of changed chips", "Changed (km²)"
        ),
        Field("basis", "str", "What changed ground is measured by: polygons, or chips", "Measured by"),
        Field("new_buildings", "float", "Sum of the chips' counts, by their own ground; an estimate"),
        Field("new_roads", "float", "Sum of the chips' counts, by their own ground; an estimate"),
        Field("mean_score", "float", "Mean score of change of the analyzed chips, weighted by ground"),
        Field("unsure", "int", f"Chips with a score from {UNSURE[0]} to {UNSURE[1]}"),
        Field("unsure_share", "float", "Their share of the analyzed chips, 0 to 1"),
        Field("area_km2", "float", "Size of the area, km²", "Area (km²)"),
        Field(
            "looked_at_km2",
            "float",
            "Ground under the analyzed chips, all of it counted once, km²",
            "Analyzed (km²)",
        ),
        Field(
            "looked_at_share", "float", "Its share of the area, 0 to 1; null where the area has no outline"
        ),
        Field(
            "cloud_share",
            "float",
            "Share of the ground with data that cloud masks hide, 0 to 1; null without a mask",
            "Share hidden by clouds",
        ),
        Field("overlap", "float", "Mean number of chips of a pair that cover a point of the ground"),
        Field(
            "top_chip", "str", "Changed chip with the highest score; one without conflicts, if there is one"
        ),
        Field("top_score", "float", "Its score"),
        Field("top_caption", "str", "Its caption"),
    ),
)


@dataclass(frozen=True, slots=True)
class TopChip:
    """A chip with a high score of change; `lon` and `lat` are its centre."""

    chip_id: str
    score: float
    caption: str
    lon: float | None
    lat: float | None


@dataclass(frozen=True, slots=True)
class AreaSummary:
    """Totals of an area: chips whose centre lies in it, and the ground in it."""

    name: str
    shape: BaseGeometry | None  # longitude and latitude
    chips: int
    looked_at: int  # analyzed: answered about by the model
    nodata: int
    failed: int
    changed: int
    conflicting: int  # chips that break at least one consistency rule
    conflicts: Mapping[str, int]  # chips by consistency rule that they break
    unparsed: int  # analyzed, with an answer that is neither yes nor no
    unsure: int
    totals: Totals
    mean_score: float | None
    area_km2: float | None
    overlap: float | None
    top_chips: tuple[TopChip, ...]

    @property
    def changed_share(self) -> float | None:
        return self.totals.changed_share

    @property
    def changed_km2(self) -> float | None:
        return self.totals.changed_km2

    @property
    def new_buildings(self) -> float | None:
        return self.totals.new_buildings

    @property
    def new_roads(self) -> float | None:
        return self.totals.new_roads

    @property
    def basis(self) -> Basis | None:
        return self.totals.basis

    @property
    def looked_at_km2(self) -> float | None:
        return self.totals.analyzed_km2

    @property
    def cloud_share(self) -> float | None:
        return self.totals.cloud_share

    @property
    def unsure_share(self) -> float | None:
        return self.unsure / self.looked_at if self.looked_at else None

    @property
    def looked_at_share(self) -> float | None:
        if not self.area_km2 or self.looked_at_km2 is None:
            return None
        return min(1.0, self.looked_at_km2 / self.area_km2)


@dataclass(frozen=True, slots=True)
class AreaRows:
    """Rows of the chips whose centre lies in an area; rows and shares of chips and polygons in it."""

    centred: Indices
    chips: tuple[Indices, NDArray[np.float64]]
    polygons: tuple[Indices, NDArray[np.float64]]


def summarize_areas(results: Results, areas: Areas) -> list[AreaSummary]:
    """Totals of each area, the one with the most changed chips first; last, what is in no area, if any."""
    order = np.argsort(areas.area_of_chip, kind="stable")
    starts = np.searchsorted(areas.area_of_chip[order], np.arange(-1, len(areas.names) + 1))
    *summaries, outside = [
        _summarize(
            results,
            AreaRows(
                order[starts[area + 1] : starts[area + 2]],
                areas.chip_parts.of(area),
                areas.polygon_parts.of(area),
            ),
            *((areas.names[area], areas.shapes[area]) if area >= 0 else (OUTSIDE, None)),
        )
        for area in (*range(len(areas.names)), -1)
    ]
    summaries.sort(key=lambda area: (-area.changed, -area.looked_at, area.name))
    return [*summaries, outside] if outside.chips or outside.totals.analyzed else summaries


def summarize_chips(results: Results, top_count: int = 1) -> AreaSummary:
    """Totals of all chips and polygons, with the `top_count` most changed chips."""
    chips, polygons = (np.arange(len(frame)) for frame in (results.chips, results.polygons))
    rows = AreaRows(chips, (chips, np.ones(len(chips))), (polygons, np.ones(len(polygons))))
    return _summarize(results, rows, "all", None, top_count)


def _summarize(
    results: Results, area_rows: AreaRows, name: str, shape: BaseGeometry | None, top_count: int = 1
) -> AreaSummary:
    rows, parts = area_rows.chips
    analyzed, centred = results.flags["looked_at"][rows], area_rows.centred
    counts = {name: int(flags[area_rows.centred].sum()) for name, flags in results.flags.items()}
    conflicting = area_rows.centred[results.flags["conflicting"][area_rows.centred]]
    conflicts = Counter(name for row in conflicting for name in results.chips["conflicts"].iat[row])
    return AreaSummary(
        name=name,
        shape=shape,
        chips=len(area_rows.centred),
        **counts,
        conflicts=conflicts,
        totals=_totals(results, area_rows),
        mean_score=_mean_score(results, rows, parts),
        area_km2=float(areas_m2(np.array([shape], dtype=object))[0]) / 1e6 if shape is not None else None,
        overlap=_overlap(results, rows[analyzed], parts[analyzed]),
        top_chips=tuple(_top_chips(results, centred[results.flags["changed"][centred]], top_count)),
    )


def _totals(results: Results, area_rows: AreaRows) -> Totals:
    """Totals of an area; outputs with and without polygons are counted apart."""
    (rows, parts), has_polygons = area_rows.chips, results.from_polygons[area_rows.chips[0]]
    by_chips = results.chip_arrays.totals(rows[~has_polygons], parts[~has_polygons])
    if not has_polygons.any():
        return by_chips
    with_polygons = results.chip_arrays.totals(rows[has_polygons], parts[has_polygons])
    with_polygons = with_polygons.with_polygons(results.polygon_arrays.totals(*area_rows.polygons))
    return with_polygons if has_polygons.all() else by_chips + with_polygons


def _mean_score(results: Results, rows: Indices, parts: NDArray[np.float64]) -> float | None:
    arrays = results.chip_arrays
    scores = results.scores[rows]
    weights = np.where(arrays.analyzed[rows] & np.isfinite(scores), arrays.shares[rows] * parts, 0.0)
    return float(np.average(np.nan_to_num(scores), weights=weights)) if weights.any() else None


def _overlap(results: Results, rows: Indices, parts: NDArray[np.float64]) -> float | None:
    """Mean number of chips on a point of the ground; None without a CRS, or where nothing was analyzed."""
    shares = results.own_shares[rows]
    ground = results.areas_m2[rows] * np.nan_to_num(results.numbers("aoi_share")[rows], nan=1.0) * parts
    known = np.isfinite(shares * ground)
    own = float((shares * ground)[known].sum())
    return float(ground[known].sum()) / own if own else None


def _top_chips(results: Results, changed_rows: NDArray[np.intp], count: int) -> Iterator[TopChip]:
    """Changed chips with the highest scores, those without conflicts first; chips without a score are left
    out."""
    has_conflicts, scores = results.flags["conflicting"][changed_rows], results.scores[changed_rows]
    order = np.lexsort((-scores, has_conflicts))
    for index in order[np.isfinite(scores[order])][:count]:
        row = results.chips.iloc[changed_rows[index]]
        lon, lat = results.centres[changed_rows[index]]
        chip_id = f"{row['pair_id']} {row['chip_id']}" if isinstance(row["pair_id"], str) else row["chip_id"]
        caption = row["caption"] if isinstance(row["caption"], str) else ""
        centre = (float(lon), float(lat)) if np.isfinite(lon) else (None, None)
        yield TopChip(str(chip_id), float(scores[index]), caption, *centre)


def as_row(area: AreaSummary) -> dict[str, object]:
    """Values of an area by column of the layer `areas`."""
    values: dict[str, object] = {field.name: getattr(area, field.name, None) for field in AREAS.fields}
    top = area.top_chips[0] if area.top_chips else None
    return values | {
        "top_chip": top.chip_id if top else None,
        "top_score": top.score if top else None,
        "top_caption": top.caption if top else None,
    }


def as_feature(area: AreaSummary) -> Feature:
    """Feature of the layer `areas`, in longitude and latitude; an empty polygon without an outline."""
    return Feature(area.shape if area.shape is not None else shapely.Polygon(), as_row(area))
