"""Writer of results: features of chips, locations and pairs, in the CRS of the output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, islice
from typing import TypeVar

from rasterio.crs import CRS
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import OutputError
from deltavlm.geo.features import Feature
from deltavlm.geo.geobox import LONLAT
from deltavlm.geo.grid import Chip
from deltavlm.geo.lonlat import to_lonlat
from deltavlm.geo.sinks import FeatureSink
from deltavlm.messages import redact_address
from deltavlm.model.interface import CHANGED_PIXEL
from deltavlm.pipeline.consistency import find_conflicts, statements_of
from deltavlm.pipeline.pair_record import PairRecord, PairResult
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.schema import CHANGES, PAIRS
from deltavlm.pipeline.totals import TotalsCounter
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells, position
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["OutputCRS", "ResultWriter", "StreamStore", "common_crs", "grid_feature"]

T = TypeVar("T")
Transform = Callable[[BaseGeometry], BaseGeometry]

_BATCH = 1024  # chips in one call of the sink


def common_crs(records: Iterable[PairRecord]) -> CRS | None:
    """CRS of all pairs, or longitude and latitude if they have several; None if none has one."""
    distinct: list[CRS] = []
    for text in dict.fromkeys(record.crs for record in records):
        crs = _crs(text)
        if crs is not None and crs not in distinct:
            distinct.append(crs)
    return distinct[0] if len(distinct) == 1 else LONLAT if distinct else None


@lru_cache(maxsize=64)
def _crs(text: str | None) -> CRS | None:
    return None if text is None else CRS.from_wkt(text)


@dataclass(frozen=True)
class OutputCRS:
    """CRS of an output. Geometries of a pair that cannot be transformed to it are left empty.

    `untransformed`: all geometries are in this CRS already.
    """

    crs: CRS | None
    untransformed: bool = False
    unplaced: set[str] = field(default_factory=set)  # ids of such pairs

    def transform_of(self, pair: Pair, record: PairRecord) -> Transform:
        """Function that transforms geometries of the pair to this CRS."""
        crs = _crs(record.crs)
        if self.untransformed or (crs == self.crs and not record.geobox.leaves_180):
            return lambda geometry: geometry
        try:
            if crs is None or self.crs is None:
                raise OutputError("one of the two has no CRS")
            return to_lonlat(crs)  # an output has the CRS of all its pairs, or longitude and latitude
        except OutputError:
            self.unplaced.add(pair.id)
            return lambda geometry: Polygon()


@dataclass(frozen=True)
class _Placement:
    """Function that adds the columns of a pair to features, and transforms them to the CRS of the output."""

    pair_id: str  # empty for a single pair that is not from a list
    dates: Mapping[str, object]
    transform: Transform

    def __call__(self, features: Iterable[Feature], *, dates: bool = True) -> list[Feature]:
        """Features of the layers of a pair; `dates`: the layer has dates even without a list."""
        columns = {"pair_id": self.pair_id, **self.dates} if self.pair_id else self.dates if dates else {}
        return [Feature(self.transform(each.geometry), {**each.properties, **columns}) for each in features]


@dataclass(frozen=True)
class ResultWriter:
    """Writer of results into the layers of a sink; with the columns of the pair if it is from a list."""

    sink: FeatureSink
    questions: Sequence[QuestionSpec]
    model: str  # name and fingerprint
    crs: OutputCRS
    mask_threshold: float = CHANGED_PIXEL  # for the consistency rules of masks
    totals: TotalsCounter = field(default_factory=TotalsCounter)  # of what was written

    def write_chips(self, results: Iterable[ChipResult], pairs: Mapping[str, PairResult]) -> None:
        """Write rows of the layers `chips` and `locations`; consecutive results of a pair stay together."""
        for pair_id, group in groupby(results, key=lambda result: result.pair):
            pair = pairs[pair_id]
            assert pair.record is not None
            place = self._placement_of(pair.pair, pair.record)
            while batch := list(islice(group, _BATCH)):
                chips = place(self._chip_feature(result, pair.record) for result in batch)
                self.totals.add_chips(chips, self.crs.crs)
                self.sink.write("chips", chips)
                cells = (each for result in batch for each in _location_features(result))
                self.sink.write("locations", place(cells, dates=False))

    def write_pairs(self, pairs: Iterable[PairResult]) -> None:
        """Write rows of the layer `pairs`."""
        self.sink.write(PAIRS.name, [self._pair_feature(pair) for pair in pairs])

    def write_changes(self, pair: Pair, record: PairRecord, features: Iterable[Feature]) -> None:
        """Write rows of the layer `changes`."""
        polygons = self._placement_of(pair, record)(features)
        self.totals.add_polygons(polygons, self.crs.crs)
        self.sink.write(CHANGES.name, polygons)

    def _placement_of(self, pair: Pair, record: PairRecord) -> _Placement:
        transform = self.crs.transform_of(pair, record) if pair.id else lambda geometry: geometry
        return _Placement(pair.id, _dates(pair, record), transform)

    def _chip_feature(self, result: ChipResult, record: PairRecord) -> Feature:
        """Row of a chip; null for what was not asked or cannot be parsed."""
        change, caption = result.of_task("change"), result.of_task("caption")
        counts, cells = _value(result, "count", Counts), _value(result, "location", Cells)
        properties: dict[str, object] = {
            "chip_id": result.chip.chip_id,
            "status": result.status,
            "changed": change.value if change else None,
            "changed_score": change.score if change else None,
            "caption": caption.value if caption else None,
            "caption_score": caption.score if caption else None,
            "new_roads": counts.roads if counts else None,
            "new_buildings": counts.buildings if counts else None,
            "road_cells": list(cells.roads) if cells else None,
            "building_cells": list(cells.buildings) if cells else None,
            "conflicts": find_conflicts(statements_of(result, self.mask_threshold)),
        }
        if result.evidence is not None:
            evidence = result.evidence.as_dict()
            properties |= {f"evidence_{name}": value for name, value in evidence.items()}
        for spec in self.questions:
            answer = result.answers.get(spec.name)
            properties[f"answer_{spec.name}"] = answer.text if answer else None
            if not spec.is_standard:
                properties[f"status_{spec.name}"] = answer.status if answer else None
        properties |= {
            "valid_fraction": result.valid_fraction,
            "ground_share": result.chip.ground_share,
            "aoi_share": result.chip.aoi_share,
            "cloud_share": result.cloud_share,
            "shift_px": result.shift_px,
            "gsd_m": record.gsd_m,
            "model": self.model,
            "before": record.identity.before,
            "after": record.identity.after,
        }
        return Feature(result.chip.footprint, properties)

    def _pair_feature(self, result: PairResult) -> Feature:
        """Row of a pair; its polygon is the area that both images cover, empty if it could not be opened."""
        pair, record = result.pair, result.record
        shape = Polygon() if record is None else self.crs.transform_of(pair, record)(record.footprint)
        properties = {
            "pair_id": pair.id,
            "status": result.status,
            "reason": result.failure,
            "chips": result.chips,
            "changed": result.changed if record else None,
            "failed_chips": result.failed,
            "shift_px": record.shift_px if record else None,
            "gsd_m": record.gsd_m if record else None,
            "before": redact_address(pair.before),
            "after": redact_address(pair.after),
            **_dates(pair, record),
            "notes": record.notes if record else None,
            "inputs": json.loads(record.inputs) if record else None,
        }
        return Feature(shape, properties)


def _dates(pair: Pair, record: PairRecord | None) -> dict[str, object]:
    """Dates of a pair as they were given, else from the tags of its files."""
    before, after = (None, None) if record is None else record.dates
    return {"before_date": pair.before_date or before, "after_date": pair.after_date or after}


def _location_features(result: ChipResult) -> Iterator[Feature]:
    """Polygon of each cell that the answer names; none for cells in the padding of a small raster."""
    cells, caption = _value(result, "location", Cells), result.of_task("caption")
    if cells is None:
        return
    for kind, labels in (("road", cells.roads), ("building", cells.buildings)):
        for label in labels:
            polygon = result.chip.cell(*position(label))
            if not polygon.is_empty:
                properties = {
                    "chip_id": result.chip.chip_id,
                    "class": kind,
                    "cell": label,
                    "caption": caption.value if caption else None,
                }
                yield Feature(polygon, properties)


def grid_feature(chip: Chip) -> Feature:
    """Outline of a chip, for the layer `grid`."""
    window = chip.window
    properties = {
        "chip_id": chip.chip_id,
        "row": chip.row,
        "col": chip.col,
        "x_off": window.col_off,
        "y_off": window.row_off,
        "width": window.width,
        "height": window.height,
    }
    return Feature(chip.footprint, properties)


def _value(result: ChipResult, task: str, kind: type[T]) -> T | None:
    answer = result.of_task(task)
    return answer.value if answer is not None and isinstance(answer.value, kind) else None


@dataclass
class StreamStore:
    """Store that writes results to a sink at once and keeps none: for a stream on standard output."""

    writer: ResultWriter
    pairs: dict[str, PairResult] = field(default_factory=dict)  # pairs with chips still to come

    def completed(self) -> Iterator[ChipResult]:
        return iter(())

    def record_of(self, pair: Pair) -> None:
        return None

    def is_done(self, pair: Pair, chip: Chip) -> bool:
        return False

    def begin_pair(self, pair: Pair, record: PairRecord) -> None:
        self.pairs[pair.id] = PairResult(pair, record)

    def fail_pair(self, pair: Pair, reason: str) -> None:
        """Nothing to write: a stream has the layer `pairs` only if it was chosen, and then at its end."""

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        self.writer.write_chips(results, self.pairs)
        last = results[-1].pair
        self.pairs = {name: result for name, result in self.pairs.items() if name == last}
