"""Totals of chips by area: counts, changed area, mean score, coverage, most changed chips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.pipeline.schema import ANALYZED_STATUSES, FAILED_STATUSES
from deltavlm.summaries.areas import OUTSIDE, Areas
from deltavlm.summaries.results import Results, area_m2, union_m2

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "AREAS",
    "UNSURE",
    "AreaSummary",
    "TopChip",
    "as_feature",
    "as_row",
    "summarize_areas",
    "summarize_chips",
]

UNSURE = (0.35, 0.65)
"""Range of scores, ends included, that lean neither to change nor to no change."""

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
        Field("changed_share", "float", "Share of the analyzed ground that lies in changed chips, 0 to 1"),
        Field("changed_km2", "float", "Ground in changed chips, km²", "Changed (km²)"),
        Field("new_buildings", "int", "Sum of the chips' counts; an estimate"),
        Field("new_roads", "int", "Sum of the chips' counts; an estimate"),
        Field("mean_score", "float", "Mean score of change of the analyzed chips"),
        Field("unsure", "int", f"Chips with a score from {UNSURE[0]} to {UNSURE[1]}"),
        Field("unsure_share", "float", "Their share of the analyzed chips, 0 to 1"),
        Field("area_km2", "float", "Size of the area, km²", "Area (km²)"),
        Field("looked_at_km2", "float", "Ground under the analyzed chips, km²", "Analyzed (km²)"),
        Field(
            "looked_at_share", "float", "Its share of the area, 0 to 1; null where the area has no outline"
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
    """Totals of the chips of an area; km² are None without a CRS, sums where nothing was counted."""

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
    changed_share: float | None
    changed_km2: float | None
    new_buildings: int | None
    new_roads: int | None
    mean_score: float | None
    area_km2: float | None
    looked_at_km2: float | None
    overlap: float | None
    top_chips: tuple[TopChip, ...]

    @property
    def unsure_share(self) -> float | None:
        return self.unsure / self.looked_at if self.looked_at else None

    @property
    def looked_at_share(self) -> float | None:
        if not self.area_km2 or self.looked_at_km2 is None:
            return None
        return min(1.0, self.looked_at_km2 / self.area_km2)


def summarize_areas(results: Results, areas: Areas) -> list[AreaSummary]:
    """Totals of each area, the one with the most changed chips first; last, chips in no area, if any."""
    order = np.argsort(areas.area_of_chip, kind="stable")
    starts = np.searchsorted(areas.area_of_chip[order], np.arange(-1, len(areas.names) + 1))
    summaries = [
        summarize_chips(results, order[starts[index + 1] : starts[index + 2]], name, shape)
        for index, (name, shape) in enumerate(zip(areas.names, areas.shapes, strict=True))
    ]
    summaries.sort(key=lambda area: (-area.changed, -area.looked_at, area.name))
    outside = order[: starts[1]]
    return [*summaries, summarize_chips(results, outside, OUTSIDE)] if len(outside) else summaries


def summarize_chips(
    results: Results,
    rows: NDArray[np.intp] | None = None,
    name: str = "all",
    shape: BaseGeometry | None = None,
    top_count: int = 1,
) -> AreaSummary:
    """Totals of some rows of the chips, or of all, with the `top_count` most changed chips."""
    rows = np.arange(len(results.chips)) if rows is None else rows
    chips = results.chips.iloc[rows]
    status = chips["status"]
    analyzed = status.isin(ANALYZED_STATUSES).to_numpy()
    changed = analyzed & chips["changed"].eq(True).to_numpy()
    scores = chips["changed_score"].to_numpy(dtype=float, na_value=np.nan)[analyzed]
    scores = scores[np.isfinite(scores)]
    conflicts = [names or () for names in chips["conflicts"].tolist()]
    chip_m2 = results.areas_m2[rows]
    analyzed_m2 = union_m2(results.lonlat[rows][analyzed])
    pairs_m2 = _union_of_each_pair_m2(results, rows[analyzed], analyzed_m2)
    weights = np.where(np.isfinite(chip_m2), chip_m2, 1.0) if results.has_crs else np.ones(len(rows))
    return AreaSummary(
        name=name,
        shape=shape,
        chips=len(rows),
        looked_at=int(analyzed.sum()),
        nodata=int(status.eq("nodata").sum()),
        failed=int(status.isin(FAILED_STATUSES).sum()),
        changed=int(changed.sum()),
        conflicting=sum(map(bool, conflicts)),
        conflicts=Counter(name for names in conflicts for name in names),
        unparsed=int(chips["changed"].isna().to_numpy()[analyzed].sum()),
        unsure=int(((scores >= UNSURE[0]) & (scores <= UNSURE[1])).sum()),
        changed_share=float(weights[changed].sum() / weights[analyzed].sum()) if analyzed.any() else None,
        changed_km2=union_m2(results.lonlat[rows][changed]) / 1e6 if results.has_crs else None,
        new_buildings=_sum(chips, "new_buildings", analyzed),
        new_roads=_sum(chips, "new_roads", analyzed),
        mean_score=float(scores.mean()) if len(scores) else None,
        area_km2=area_m2(shape) / 1e6 if shape is not None else None,
        looked_at_km2=analyzed_m2 / 1e6 if results.has_crs else None,
        overlap=float(np.nansum(chip_m2[analyzed]) / pairs_m2) if pairs_m2 else None,
        top_chips=tuple(_top_chips(results, rows[changed], top_count)),
    )


def _union_of_each_pair_m2(results: Results, rows: NDArray[np.intp], union_of_all_m2: float) -> float:
    """Ground under chips, counted once for each pair that covers it."""
    codes, names = results.chips["pair_id"].iloc[rows].factorize(use_na_sentinel=False)
    if len(names) < 2:
        return union_of_all_m2
    return sum(union_m2(results.lonlat[rows[codes == code]]) for code in range(len(names)))


def _sum(chips: DataFrame, column: str, analyzed: NDArray[np.bool_]) -> int | None:
    counts = chips[column].to_numpy(dtype=float, na_value=np.nan)[analyzed]
    return int(np.nansum(counts)) if np.isfinite(counts).any() else None


def _top_chips(results: Results, changed_rows: NDArray[np.intp], count: int) -> Iterator[TopChip]:
    """Changed chips with the highest scores, those without conflicts first; chips without a score are left
    out."""
    has_conflicts = results.chips["conflicts"].iloc[changed_rows].astype(bool).to_numpy()
    scores = results.chips["changed_score"].iloc[changed_rows].to_numpy(dtype=float, na_value=np.nan)
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
