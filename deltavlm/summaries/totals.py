"""What chips come to, area by area: how many, how many changed, how sure, what was not looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.summaries.areas import OUTSIDE, Areas
from deltavlm.summaries.results import ANSWERED, Results, area_m2, union_m2

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

UNSURE = (0.35, 0.65)  # a score between these leans to neither side

AREAS = Layer(
    "areas",
    (
        Field("name", "str", "Name of the area", "Area"),
        Field("chips", "int", "Chips whose middle lies in the area"),
        Field("looked_at", "int", "Chips that the model was asked about"),
        Field("nodata", "int", "Chips that were not asked about: too little data", "Without data"),
        Field("failed", "int", "Chips that could not be read or answered"),
        Field("changed", "int", "Chips that the model calls changed"),
        Field("changed_share", "float", "Share of the ground looked at that lies in changed chips, 0 to 1"),
        Field("changed_km2", "float", "Ground in changed chips, km²", "Changed (km²)"),
        Field("new_buildings", "int", "Sum of the chips' counts; an estimate"),
        Field("new_roads", "int", "Sum of the chips' counts; an estimate"),
        Field("mean_score", "float", "Mean score of change of the chips looked at"),
        Field("unsure", "int", f"Chips with a score from {UNSURE[0]} to {UNSURE[1]}"),
        Field("unsure_share", "float", "Their share of the chips looked at, 0 to 1"),
        Field("area_km2", "float", "The area itself, km²", "Area (km²)"),
        Field("looked_at_km2", "float", "Ground under the chips looked at, km²", "Looked at (km²)"),
        Field(
            "looked_at_share", "float", "Its share of the area, 0 to 1; null where the area has no outline"
        ),
        Field("overlap", "float", "In how many chips of a pair a piece of ground lies, on average"),
        Field("top_chip", "str", "Chip with the highest score of change"),
        Field("top_score", "float", "Its score"),
        Field("top_caption", "str", "Its caption"),
    ),
)


@dataclass(frozen=True, slots=True)
class TopChip:
    """A chip with a high score of change."""

    chip_id: str
    score: float
    caption: str
    lon: float | None
    lat: float | None


@dataclass(frozen=True, slots=True)
class AreaSummary:
    """What the chips of an area come to; km² are null without a CRS, sums where nothing was counted."""

    name: str
    shape: BaseGeometry | None  # longitude and latitude
    chips: int
    looked_at: int
    nodata: int
    failed: int
    changed: int
    unread: int  # looked at, with neither yes nor no
    unsure: int
    changed_share: float | None
    changed_km2: float | None
    new_buildings: int | None
    new_roads: int | None
    mean_score: float | None
    area_km2: float | None
    looked_at_km2: float | None
    overlap: float | None
    top: tuple[TopChip, ...]

    @property
    def unsure_share(self) -> float | None:
        return self.unsure / self.looked_at if self.looked_at else None

    @property
    def looked_at_share(self) -> float | None:
        if not self.area_km2 or self.looked_at_km2 is None:
            return None
        return min(1.0, self.looked_at_km2 / self.area_km2)


def summarize_areas(results: Results, areas: Areas) -> list[AreaSummary]:
    """A total for each area, the most changed chips first; the last is of chips in no area, if any."""
    order = np.argsort(areas.area_of_chip, kind="stable")
    starts = np.searchsorted(areas.area_of_chip[order], np.arange(-1, len(areas.names) + 1))
    found = [
        summarize_chips(results, order[starts[index + 1] : starts[index + 2]], name, shape)
        for index, (name, shape) in enumerate(zip(areas.names, areas.shapes, strict=True))
    ]
    found.sort(key=lambda one: (-one.changed, -one.looked_at, one.name))
    outside = order[: starts[1]]
    return [*found, summarize_chips(results, outside, OUTSIDE)] if len(outside) else found


def summarize_chips(
    results: Results,
    rows: NDArray[np.intp] | None = None,
    name: str = "all",
    shape: BaseGeometry | None = None,
    most: int = 1,
) -> AreaSummary:
    """What these rows of the chips come to, or all of them, with `most` chips of the highest scores."""
    rows = np.arange(len(results.chips)) if rows is None else rows
    chips = results.chips.iloc[rows]
    status = chips["status"]
    seen = status.isin(ANSWERED).to_numpy()
    changed = seen & chips["changed"].eq(True).to_numpy()
    scores = chips["changed_score"].to_numpy(dtype=float, na_value=np.nan)[seen]
    known = scores[np.isfinite(scores)]
    ground_m2 = results.areas_m2[rows]
    looked_m2 = union_m2(results.lonlat[rows][seen])
    once_m2 = _once_each_pair_m2(results, rows[seen], looked_m2)
    weights = np.where(np.isfinite(ground_m2), ground_m2, 1.0) if results.has_crs else np.ones(len(rows))
    return AreaSummary(
        name=name,
        shape=shape,
        chips=len(rows),
        looked_at=int(seen.sum()),
        nodata=int(status.eq("nodata").sum()),
        failed=int(status.isin(("unreadable", "error")).sum()),
        changed=int(changed.sum()),
        unread=int(chips["changed"].isna().to_numpy()[seen].sum()),
        unsure=int(((known >= UNSURE[0]) & (known <= UNSURE[1])).sum()),
        changed_share=float(weights[changed].sum() / weights[seen].sum()) if seen.any() else None,
        changed_km2=union_m2(results.lonlat[rows][changed]) / 1e6 if results.has_crs else None,
        new_buildings=_summed(chips, "new_buildings", seen),
        new_roads=_summed(chips, "new_roads", seen),
        mean_score=float(known.mean()) if len(known) else None,
        area_km2=area_m2(shape) / 1e6 if shape is not None else None,
        looked_at_km2=looked_m2 / 1e6 if results.has_crs else None,
        overlap=float(np.nansum(ground_m2[seen]) / once_m2) if once_m2 else None,
        top=tuple(_top(results, rows, seen, most)),
    )


def _once_each_pair_m2(results: Results, rows: NDArray[np.intp], all_m2: float) -> float:
    """Ground under chips, counted once for each pair that shows it."""
    codes, names = results.chips["pair_id"].iloc[rows].factorize(use_na_sentinel=False)
    if len(names) < 2:
        return all_m2
    return sum(union_m2(results.lonlat[rows[codes == code]]) for code in range(len(names)))


def _summed(chips: DataFrame, name: str, seen: NDArray[np.bool_]) -> int | None:
    counts = chips[name].to_numpy(dtype=float, na_value=np.nan)[seen]
    return int(np.nansum(counts)) if np.isfinite(counts).any() else None


def _top(results: Results, rows: NDArray[np.intp], seen: NDArray[np.bool_], most: int) -> Iterator[TopChip]:
    """Those with the highest scores, of chips that the model calls changed."""
    chips = results.chips.iloc[rows]
    scores = chips["changed_score"].to_numpy(dtype=float, na_value=np.nan)
    scores = np.where(seen & chips["changed"].eq(True).to_numpy(), scores, np.nan)
    order = np.argsort(-scores, kind="stable")[: min(most, int(np.isfinite(scores).sum()))]
    for index in order:
        row = chips.iloc[index]
        lon, lat = results.centres[rows[index]]
        name = f"{row['pair_id']} {row['chip_id']}" if isinstance(row["pair_id"], str) else row["chip_id"]
        caption = row["caption"] if isinstance(row["caption"], str) else ""
        place = (float(lon), float(lat)) if np.isfinite(lon) else (None, None)
        yield TopChip(str(name), float(scores[index]), caption, *place)


def as_row(one: AreaSummary) -> dict[str, object]:
    """A row of the layer `areas`."""
    told: dict[str, object] = {field.name: getattr(one, field.name, None) for field in AREAS.fields}
    top = one.top[0] if one.top else None
    return told | {
        "top_chip": top.chip_id if top else None,
        "top_score": top.score if top else None,
        "top_caption": top.caption if top else None,
    }


def as_feature(one: AreaSummary) -> Feature:
    """The feature of a total, in longitude and latitude; without an outline its polygon is empty."""
    return Feature(one.shape if one.shape is not None else shapely.Polygon(), as_row(one))
