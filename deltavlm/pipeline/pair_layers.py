"""What a result over many pairs looks like: which pair each row is of, and a layer of the pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from rasterio.crs import CRS
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import OutputError
from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.geo.geobox import LONLAT
from deltavlm.geo.geojson import to_lonlat
from deltavlm.geo.location import redact_credentials
from deltavlm.geo.sinks import FeatureSink
from deltavlm.model.interface import ModelFacts
from deltavlm.pipeline.layers import LOCATIONS, ChipResult, Origin, chips_layer, write_results
from deltavlm.pipeline.many import Outcome, PairRecord
from deltavlm.pipeline.pairs import Pair
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "PAIRS",
    "Ground",
    "OfPair",
    "PairStream",
    "common_crs",
    "many_layers",
    "pair_feature",
    "with_pair",
    "write_chips",
]

_ID = Field("pair_id", "str", "Name of the pair", "Pair")
_DATES = (
    Field("before_date", "str", "When the earlier image was taken, as the list of pairs says"),
    Field("after_date", "str", "When the later image was taken, as the list of pairs says"),
)

PAIRS = Layer(
    "pairs",
    (
        _ID,
        Field(
            "status",
            "str",
            "answered; partly: some chips failed, or --limit cut it off; failed: not opened, nothing asked",
        ),
        Field("reason", "str", "Why it failed, or its first chip did"),
        Field("chips", "int", "Number of chips that were looked at"),
        Field("changed", "int", "Number of chips that the model calls changed"),
        Field("failed_chips", "int", "Number of chips that could not be read or answered"),
        Field("gsd_m", "float", "Ground size of a pixel, metres", "Pixel size (m)"),
        Field("before", "str", "The earlier image"),
        Field("after", "str", "The later image"),
        *_DATES,
        Field("notes", "list", "What was found of the pair when it was opened"),
        Field("inputs", "json", "Where the pixels came from and what was done to them"),
    ),
)

Place = Callable[[BaseGeometry], BaseGeometry]


def with_pair(layer: Layer) -> Layer:
    """The layer with the columns that say which pair a row is of."""
    there = {field.name for field in layer.fields}
    return Layer(layer.name, (_ID, *layer.fields, *(date for date in _DATES if date.name not in there)))


def many_layers(specs: Sequence[QuestionSpec], more: Sequence[Layer] = ()) -> tuple[Layer, ...]:
    """The layers of an output of many pairs; `more` that a pair has."""
    return *(with_pair(one) for one in (chips_layer(specs), LOCATIONS, *more)), PAIRS


def common_crs(records: Iterable[PairRecord]) -> CRS | None:
    """That of all pairs, or longitude and latitude where they have several; None if none has one."""
    found: list[CRS] = []
    for text in dict.fromkeys(record.crs for record in records):
        crs = _crs(text)
        if crs is not None and crs not in found:
            found.append(crs)
    return found[0] if len(found) == 1 else LONLAT if found else None


@lru_cache(maxsize=64)
def _crs(text: str | None) -> CRS | None:
    return None if text is None else CRS.from_wkt(text)


@dataclass(frozen=True)
class Ground:
    """The CRS of an output; polygons of a pair that nothing leads there are left empty."""

    crs: CRS | None
    placeless: set[str] = field(default_factory=set)  # ids of such pairs

    def place(self, pair: Pair, record: PairRecord) -> Place:
        """What takes the polygons of a pair there."""
        crs = _crs(record.crs)
        if crs == self.crs:
            return lambda geometry: geometry
        try:
            if crs is None or self.crs is None:
                raise OutputError("one has a CRS and the other has not")
            return to_lonlat(crs)  # an output has the CRS of its pairs, or this one
        except OutputError:
            self.placeless.add(pair.id)
            return lambda geometry: Polygon()


@dataclass(frozen=True)
class OfPair:
    """A sink that writes which pair each row is of, and puts its polygon where the output has its place."""

    sink: FeatureSink
    pair: Pair
    place: Place = field(default=lambda geometry: geometry)

    def write(self, layer: str, features: Iterable[Feature]) -> None:
        pair = self.pair
        known = {"pair_id": pair.id, "before_date": pair.before_date, "after_date": pair.after_date}
        self.sink.write(
            layer, [Feature(self.place(one.geometry), {**one.properties, **known}) for one in features]
        )


def write_chips(
    sink: FeatureSink,
    results: Iterable[ChipResult],
    outcomes: dict[str, Outcome],
    specs: Sequence[QuestionSpec],
    model: ModelFacts,
    ground: Ground,
    at_once: int = 1024,
) -> None:
    """The rows of chips, in the layers `chips` and `locations`; those of a pair stand together."""
    for one, of_pair in groupby(results, key=lambda result: result.pair):
        outcome = outcomes[one]
        assert outcome.record is not None
        written = OfPair(sink, outcome.pair, ground.place(outcome.pair, outcome.record))
        for part in _parts(of_pair, at_once):
            write_results(written, part, specs, origin_of(outcome.record, model))


def _parts(results: Iterator[ChipResult], size: int) -> Iterator[list[ChipResult]]:
    part: list[ChipResult] = []
    for result in results:
        part.append(result)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def origin_of(record: PairRecord, model: ModelFacts) -> Origin:
    """Where the answers about a pair come from."""
    return Origin(record.mark.before, record.mark.after, model.label, record.gsd_m)


def pair_feature(outcome: Outcome, ground: Ground) -> Feature:
    """The row of a pair; its polygon is what both images cover, and empty if it could not be opened."""
    pair, record = outcome.pair, outcome.record
    shape = Polygon() if record is None else ground.place(pair, record)(record.footprint)
    properties = {
        "pair_id": pair.id,
        "status": outcome.status,
        "reason": outcome.why,
        "chips": outcome.chips,
        "changed": outcome.changed if record else None,
        "failed_chips": outcome.failed,
        "gsd_m": record.gsd_m if record else None,
        "before": redact_credentials(pair.before),
        "after": redact_credentials(pair.after),
        "before_date": pair.before_date,
        "after_date": pair.after_date,
        "notes": record.notes if record else None,
        "inputs": json.loads(record.inputs) if record else None,
    }
    return Feature(shape, properties)


@dataclass
class PairStream:
    """Results that are written at once and not remembered; the book of a run on stdout."""

    sink: FeatureSink
    specs: Sequence[QuestionSpec]
    model: ModelFacts
    ground: Ground
    open: dict[str, Outcome] = field(default_factory=dict)  # pairs whose chips may still come

    def settled(self, pair: Pair) -> None:
        return None

    def knows(self, pair: Pair, chip: object) -> bool:
        return False

    def earlier(self) -> Iterator[ChipResult]:
        return iter(())

    def opened(self, pair: Pair, record: PairRecord) -> None:
        self.open[pair.id] = Outcome(pair, record)

    def refused(self, pair: Pair, reason: str) -> None:
        """A stream holds no pairs, but with --layer pairs, and then at its end."""

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        write_chips(self.sink, results, self.open, self.specs, self.model, self.ground)
        last = results[-1].pair
        self.open = {one: outcome for one, outcome in self.open.items() if one == last}
