"""What a result looks like: the layers `chips` and `locations`, and a chip's answers as their features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from deltavlm.geo.features import Feature, Field, Layer
from deltavlm.geo.grid import Chip
from deltavlm.geo.pair import PairReader
from deltavlm.geo.sinks import FeatureSink
from deltavlm.model.interface import ModelFacts
from deltavlm.pipeline.answers import Answer
from deltavlm.pipeline.sidecar import Ticket
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import Cells, position
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "LOCATIONS",
    "OUTLINES",
    "ChipResult",
    "Origin",
    "Status",
    "Stream",
    "chip_feature",
    "chips_layer",
    "location_features",
    "outline_feature",
    "write_results",
]

T = TypeVar("T")
Status = Literal["answered", "cascaded", "nodata", "unreadable", "error"]

_FIRST = (
    Field("chip_id", "str", "Name of the chip: r<row>_c<column>, px from the upper left corner", "Chip"),
    Field(
        "status",
        "str",
        "answered; cascaded: only asked whether it changed; nodata: not asked; unreadable: no pixels; "
        "error: no reply",
    ),
    Field("changed", "bool", "Has anything changed?", "Changed?"),
    Field("changed_score", "float", "Probability that something changed, 0 to 1", "Score of change"),
    Field("caption", "str", "What changed, in one sentence"),
    Field(
        "caption_score",
        "float",
        "Mean log-probability of the caption's tokens; nearer 0 is surer",
        "Score of caption",
    ),
    Field("new_roads", "int", "Number of new roads in this chip"),
    Field("new_buildings", "int", "Number of new buildings in this chip"),
    Field("road_cells", "list", "Cells of the chip's 3x3 grid with changed roads"),
    Field("building_cells", "list", "Cells of the chip's 3x3 grid with changed buildings"),
)
_LAST = (
    Field("valid_fraction", "float", "Share of the chip with data on both dates, 0 to 1", "Share with data"),
    Field("gsd_m", "float", "Ground size of a pixel, metres", "Pixel size (m)"),
    Field("model", "str", "Model and its fingerprint"),
    Field("before", "str", "The earlier image", "Image before"),
    Field("after", "str", "The later image", "Image after"),
)

LOCATIONS = Layer(
    "locations",
    (
        Field("chip_id", "str", "Name of the chip", "Chip"),
        Field("class", "str", "road or building"),
        Field(
            "cell", "str", "Cell of the chip's 3x3 grid, as the model sees it: top is the chip's first row"
        ),
        Field("caption", "str", "The chip's caption"),
    ),
)

OUTLINES = Layer(
    "grid",
    (
        Field("chip_id", "str", "Name of the chip", "Chip"),
        Field("row", "int", "Row of the chip in the grid, from 0"),
        Field("col", "int", "Column of the chip in the grid, from 0"),
        Field("x_off", "int", "Left edge, px from the upper left corner of the grid"),
        Field("y_off", "int", "Upper edge, px from the upper left corner of the grid"),
        Field("width", "int", "Width, px"),
        Field("height", "int", "Height, px"),
    ),
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where answers come from; the same for every chip of a run."""

    before: str
    after: str
    model: str
    gsd_m: float | None

    @classmethod
    def of(cls, reader: PairReader, model: ModelFacts) -> Origin:
        """The origin of what `model` says about the pair that `reader` reads."""
        before, after = (view.source.name for view in reader.views)
        return cls(before, after, model.label, reader.gsd_m)


@dataclass(frozen=True, slots=True)
class ChipResult:
    """One chip and what was said about it; without answers unless it was asked."""

    chip: Chip
    status: Status
    valid_fraction: float | None
    answers: Mapping[str, Answer] = field(default_factory=dict)  # by the question's name
    reason: str = ""  # why there are no answers
    pair: str = ""  # of a run over many pairs, the id of the chip's
    picture: str = ""  # `repeats.picture_of` what was asked about
    mask: Ticket | None = None  # `masks.packed_masks`, where that was wished
    holes: Ticket | None = None  # `masks.packed_holes` of a chip with a mask, where there are any

    def of_task(self, task: str) -> Answer | None:
        """The answer to the question of this task, if it was asked."""
        return next((answer for answer in self.answers.values() if answer.task == task), None)


def chips_layer(specs: Sequence[QuestionSpec]) -> Layer:
    """The layer `chips` for a question set: fixed columns, and the raw text of each answer."""
    raw = [Field(f"answer_{spec.name}", "str", f"Answer to: {spec.prompt}") for spec in specs]
    return Layer("chips", (*_FIRST, *raw, *_LAST))


def chip_feature(result: ChipResult, specs: Sequence[QuestionSpec], origin: Origin) -> Feature:
    """The row of a chip; what was not asked or cannot be read is null."""
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
    }
    for spec in specs:
        answer = result.answers.get(spec.name)
        properties[f"answer_{spec.name}"] = answer.text if answer else None
    properties |= {
        "valid_fraction": result.valid_fraction,
        "gsd_m": origin.gsd_m,
        "model": origin.model,
        "before": origin.before,
        "after": origin.after,
    }
    return Feature(result.chip.footprint, properties)


def location_features(result: ChipResult) -> Iterator[Feature]:
    """One polygon for each cell that the answer names; cells in the padding of a small raster have none."""
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


def write_results(
    sink: FeatureSink, results: Sequence[ChipResult], specs: Sequence[QuestionSpec], origin: Origin
) -> None:
    """The rows of some chips, in both layers."""
    sink.write("chips", [chip_feature(result, specs, origin) for result in results])
    sink.write("locations", [feature for result in results for feature in location_features(result)])


@dataclass(frozen=True, slots=True)
class Stream:
    """Results that are written at once and not remembered; the book of a run on stdout."""

    sink: FeatureSink
    specs: Sequence[QuestionSpec]
    origin: Origin

    def earlier(self) -> Iterator[ChipResult]:
        return iter(())

    def known(self, chip: Chip) -> bool:
        return False

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        write_results(self.sink, results, self.specs, self.origin)


def outline_feature(chip: Chip) -> Feature:
    """The outline of a chip, for the layer `grid`."""
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
