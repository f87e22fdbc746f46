"""Totals of chips and polygons that count all ground once, for every place that shows them.

New buildings and roads are sums over chips: each chip counts with the share of its ground that is its own,
and that lies in the area of interest, as if what it counts were spread evenly over it. A chip that is called
unchanged has nothing new, whatever it counts. Changed ground is such a sum of whole chips called changed,
unless the output has polygons of change: then it is their area. The number of polygons is no number of
objects: a road makes several of them, and buildings that stand close make one (benchmarks/results.md).
The share that clouds hide is of all chips, as those that are hidden most are not analyzed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import OutputError
from deltavlm.geo.features import Feature
from deltavlm.geo.lonlat import shapes_to_lonlat
from deltavlm.geo.measure import areas_m2
from deltavlm.messages import format_number
from deltavlm.pipeline.schema import ANALYZED_STATUSES

__all__ = ["Basis", "ChipArrays", "PolygonArrays", "Totals", "TotalsCounter", "shape_areas", "sum_totals"]

Basis = Literal["chips", "polygons", "chips and polygons"]
Numbers = NDArray[np.float64]
Shapes = NDArray[np.object_]  # shapely polygons, or None


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of an output, or of a part of it. Areas are in m², or in square pixels without a CRS."""

    basis: Basis | None = None  # what changed ground is measured by; None: nothing was added yet
    has_crs: bool = True
    analyzed: float = 0.0  # area under analyzed chips
    changed: float = 0.0  # area of polygons, or of changed chips
    new_buildings: float | None = None  # None: not counted
    new_roads: float | None = None
    kinds: Mapping[str, float] = field(default_factory=dict)  # number of polygons by kind of change
    kind_areas: Mapping[str, float] = field(default_factory=dict)  # their area
    clouded: float = 0.0  # area that cloud masks hide and that otherwise has data
    masked: float = 0.0  # area with data where there are cloud masks, hidden or not

    @property
    def analyzed_km2(self) -> float | None:
        """Ground under analyzed chips; None without a CRS."""
        return self._km2(self.analyzed)

    @property
    def changed_km2(self) -> float | None:
        """Changed ground; None without a CRS."""
        return self._km2(self.changed)

    @property
    def changed_share(self) -> float | None:
        """Changed share of the analyzed ground, 0 to 1; None where none was analyzed."""
        return min(1.0, self.changed / self.analyzed) if self.analyzed > 0 else None

    @property
    def cloud_share(self) -> float | None:
        """Share of the ground with data that cloud masks hide, 0 to 1; None without cloud masks."""
        return self.clouded / self.masked if self.masked > 0 else None

    def _km2(self, area: float) -> float | None:
        return area / 1e6 if self.has_crs and math.isfinite(area) else None

    def __str__(self) -> str:
        """`changed ground 1.4 of 26.5 km² (5.4 %) by polygons; 12.8 new buildings, 1 new road by chips`.

        With cloud masks also `; 3 % of the ground hidden by clouds`.
        """
        percent = "" if self.changed_share is None else f"{100 * self.changed_share:.3g} %"
        ground = f"{percent} of the ground changed" if percent else ""
        if self.changed_km2 is not None and self.analyzed_km2 is not None:
            unit, per_km2, digits = ("km²", 1, 2) if self.analyzed_km2 >= 1 else ("m²", 1_000_000, 0)
            changed, analyzed = (
                f"{per_km2 * km2:,.{digits}f}" for km2 in (self.changed_km2, self.analyzed_km2)
            )
            ground = f"changed ground {changed} of {analyzed} {unit}{f' ({percent})' if percent else ''}"
        counts = [
            f"{count} new {noun}{'' if count == '1' else 's'}"
            for number, noun in ((self.new_buildings, "building"), (self.new_roads, "road"))
            if number is not None
            for count in [format_number(number)]
        ]
        basis = "by whole changed chips" if self.basis == "chips" else f"by {self.basis}"
        texts = [f"{ground} {basis}"] if ground else []
        texts += [f"{', '.join(counts)} by chips"] if counts else []
        if self.cloud_share is not None:
            texts.append(f"{100 * self.cloud_share:.2g} % of the ground hidden by clouds")
        return "; ".join(texts)

    @property
    def kinds_text(self) -> str:
        """`21 ground_opened 9,120 m², 10 building_built 1,386 m²`, the largest first; "" without polygons."""
        number_of = {kind: format_number(number) for kind, number in self.kinds.items()}
        largest_first = sorted(self.kinds, key=lambda kind: (-self.kind_areas.get(kind, 0.0), kind))
        return ", ".join(
            f"{number_of[kind]} {kind} {self.format_area(self.kind_areas.get(kind, math.nan))}".rstrip()
            for kind in largest_first
        )

    def format_area(self, area: float) -> str:
        """`1,386 m²`, from 1 km² on `1.39 km²`; pixels without a CRS; empty where it is not known."""
        if not math.isfinite(area):
            return ""
        if not self.has_crs:
            return f"{area:,.0f} px"
        return f"{area / 1e6:,.2f} km²" if area >= 1e6 else f"{area:,.0f} m²"

    def __add__(self, other: Totals) -> Totals:
        """Totals of two parts. Areas in different units have no sum."""
        if self.basis is None or other.basis is None:
            return other if self.basis is None else self
        same_unit = self.has_crs == other.has_crs
        return Totals(
            basis=self.basis if self.basis == other.basis else "chips and polygons",
            has_crs=self.has_crs and other.has_crs,
            analyzed=self.analyzed + other.analyzed if same_unit else math.nan,
            changed=self.changed + other.changed if same_unit else math.nan,
            new_buildings=_plus(self.new_buildings, other.new_buildings),
            new_roads=_plus(self.new_roads, other.new_roads),
            kinds=_plus_each(self.kinds, other.kinds),
            kind_areas=_plus_each(self.kind_areas, other.kind_areas) if same_unit else {},
            clouded=self.clouded + other.clouded if same_unit else math.nan,
            masked=self.masked + other.masked if same_unit else math.nan,
        )

    def with_polygons(self, polygons: Totals | None) -> Totals:
        """These totals of chips with the changed ground of polygons, if there are some."""
        if polygons is None:
            return self
        return replace(
            self,
            basis=polygons.basis,
            changed=polygons.changed,
            kinds=polygons.kinds,
            kind_areas=polygons.kind_areas,
        )

    def as_dict(self) -> dict[str, Any]:
        """Figures as plain values, ready for JSON."""
        return {
            "basis": self.basis,
            "analyzed_km2": self.analyzed_km2,
            "changed_km2": self.changed_km2,
            "changed_share": self.changed_share,
            "new_buildings": self.new_buildings,
            "new_roads": self.new_roads,
            "kinds": {
                kind: int(number) if number.is_integer() else number
                for kind, number in sorted(self.kinds.items())
            },
            "kinds_km2": {kind: self._km2(area) for kind, area in sorted(self.kind_areas.items())},
            "cloud_share": self.cloud_share,
        }


def sum_totals(parts: Iterable[Totals]) -> Totals:
    """Totals of all parts."""
    return reduce(add, parts, Totals())


def _plus(first: float | None, second: float | None) -> float | None:
    return second if first is None else first if second is None else first + second


def _plus_each(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in {**first, **second}}


@dataclass(frozen=True, slots=True)
class ChipArrays:
    """Chips of one output, as arrays (chips,)."""

    analyzed: NDArray[np.bool_]
    changed: NDArray[np.bool_]
    new_buildings: Numbers  # 0 where the chip is called unchanged; NaN: not counted
    new_roads: Numbers
    shares: Numbers  # `ground_share`, the part of the chip that counts
    valid: Numbers  # `valid_fraction`, the part of the chip that was seen
    clouds: Numbers  # `cloud_share`, the part that cloud masks alone hide; NaN without a mask
    areas: Numbers  # of the whole chips; NaN for a chip without a polygon
    has_crs: bool = True

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], areas: Numbers, has_crs: bool) -> ChipArrays:
        """Arrays of rows of the layer `chips`; a share that a row does not have is 1."""
        ground, valid = (_numbers(rows, name) for name in ("ground_share", "valid_fraction"))
        buildings, roads = (_numbers(rows, name) for name in ("new_buildings", "new_roads"))
        changed, unchanged = (  # a null is neither
            np.array([row.get("changed") in (answer,) for row in rows], bool) for answer in (True, False)
        )
        return cls(
            analyzed=np.array([row.get("status") in ANALYZED_STATUSES for row in rows], bool),
            changed=changed,
            new_buildings=np.where(unchanged, buildings * 0, buildings),
            new_roads=np.where(unchanged, roads * 0, roads),
            shares=np.nan_to_num(ground, nan=1.0),
            valid=np.nan_to_num(valid, nan=1.0),
            clouds=_numbers(rows, "cloud_share"),
            areas=areas,
            has_crs=has_crs,
        )

    def totals(self, rows: NDArray[np.intp] | slice = slice(None), parts: Numbers | float = 1.0) -> Totals:
        """Totals of some rows, of each of which the share `parts` counts; ground without data does not."""
        shares = self.shares[rows] * parts
        weights = np.where(self.analyzed[rows], shares, 0.0)
        ground = weights * self.valid[rows] * self.areas[rows]
        hidden = shares * self.clouds[rows] * self.areas[rows]
        seen = shares * self.valid[rows] * self.areas[rows]
        return Totals(
            basis="chips",
            has_crs=self.has_crs,
            analyzed=float(np.nansum(ground)),
            changed=float(np.nansum(ground[self.changed[rows]])),
            new_buildings=_weighted_sum(self.new_buildings[rows], weights),
            new_roads=_weighted_sum(self.new_roads[rows], weights),
            clouded=float(np.nansum(hidden)),
            masked=float(np.nansum(hidden + seen)),
        )


@dataclass(frozen=True, slots=True)
class PolygonArrays:
    """Polygons of change of one output, as arrays (polygons,)."""

    kinds: NDArray[np.str_]
    areas: Numbers  # NaN: not known
    has_crs: bool = True

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], areas: Numbers, has_crs: bool) -> PolygonArrays:
        """Arrays of rows of the layer `changes`; `areas` are used where `area_m2` is null."""
        recorded = _numbers(rows, "area_m2")
        kinds = np.array([str(row.get("kind") or "other") for row in rows], np.str_)
        return cls(kinds, np.where(np.isfinite(recorded), recorded, areas), has_crs)

    def totals(self, rows: NDArray[np.intp] | slice = slice(None), parts: Numbers | float = 1.0) -> Totals:
        """Totals of some rows, of each of which the share `parts` counts; nothing is analyzed."""
        names, indices = np.unique(self.kinds[rows], return_inverse=True)
        weights = np.broadcast_to(np.asarray(parts, float), indices.shape)
        areas = np.nan_to_num(self.areas[rows] * weights)
        numbers, kind_areas = (
            dict(zip(names.tolist(), np.bincount(indices, values, len(names)).tolist(), strict=True))
            for values in (weights, areas)
        )
        return Totals(
            basis="polygons",
            has_crs=self.has_crs,
            changed=float(areas.sum()),
            kinds=numbers,
            kind_areas=kind_areas,
        )


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> Numbers:
    values = (row.get(name) for row in rows)
    return np.array([float(each) if isinstance(each, int | float) else np.nan for each in values], float)


def _weighted_sum(counts: Numbers, weights: Numbers) -> float | None:
    is_counted = np.isfinite(counts) & (weights > 0)
    return float((counts * weights)[is_counted].sum()) if is_counted.any() else None


def shape_areas(shapes: Sequence[BaseGeometry | None] | Shapes, crs: CRS | pyproj.CRS | None) -> Numbers:
    """(shapes,): areas in m² on the ellipsoid, or in square pixels without a CRS; NaN where there is none."""
    array = np.empty(len(shapes), dtype=object)
    array[:] = shapes
    array[shapely.is_missing(array) | shapely.is_empty(array)] = None
    if crs is None:
        areas: Numbers = shapely.area(array)
        return areas
    try:
        return areas_m2(shapes_to_lonlat(array, pyproj.CRS.from_wkt(crs.to_wkt())))
    except OutputError:  # no transformation from this CRS
        return np.full(len(array), np.nan)


@dataclass
class TotalsCounter:
    """Running totals of an output that is being written."""

    chips: Totals = field(default_factory=Totals)
    polygons: Totals | None = None

    def add_chips(self, features: Sequence[Feature], crs: CRS | None) -> None:
        """Add rows of the layer `chips` as they are written, with polygons in `crs`."""
        rows, areas = [each.properties for each in features], _areas(features, crs)
        self.chips += ChipArrays.of_rows(rows, areas, crs is not None).totals()

    def add_polygons(self, features: Sequence[Feature], crs: CRS | None) -> None:
        """Add rows of the layer `changes`, once for each pair: an output without rows has polygons too."""
        rows, areas = [each.properties for each in features], _areas(features, crs)
        totals = PolygonArrays.of_rows(rows, areas, crs is not None).totals()
        self.polygons = totals if self.polygons is None else self.polygons + totals

    @property
    def totals(self) -> Totals:
        """Totals of all that was added."""
        return self.chips.with_polygons(self.polygons)


def _areas(features: Sequence[Feature], crs: CRS | None) -> Numbers:
    return shape_areas([each.geometry for each in features], crs)
