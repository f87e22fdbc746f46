"""Columns of every output layer, and the statuses of chips and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from deltavlm.geo.features import Field, Layer
from deltavlm.tasks.questions import QuestionSpec

__all__ = [
    "ANALYZED_STATUSES",
    "ANSWERS",
    "CHANGES",
    "CHIP_STATUSES",
    "EVIDENCE_COLUMNS",
    "FAILED_STATUSES",
    "GRID",
    "LOCATIONS",
    "PAIRS",
    "PAIR_STATUSES",
    "VERDICTS",
    "ChipStatus",
    "PairStatus",
    "chips_layer",
    "output_layers",
    "with_pair_columns",
]

ChipStatus = Literal["answered", "cascaded", "nodata", "unreadable", "error"]
CHIP_STATUSES: tuple[ChipStatus, ...] = get_args(ChipStatus)
ANALYZED_STATUSES: frozenset[ChipStatus] = frozenset(("answered", "cascaded"))
FAILED_STATUSES: frozenset[ChipStatus] = frozenset(("unreadable", "error"))

PairStatus = Literal["answered", "partly", "failed"]
PAIR_STATUSES: tuple[PairStatus, ...] = get_args(PairStatus)

_DATES = (
    Field("before_date", "str", "Date of the earlier image, as given or from its tags"),
    Field("after_date", "str", "Date of the later image, as given or from its tags"),
)
VERDICTS: Mapping[str, tuple[str, ...]] = {
    "chips": ("accept", "reject"),
    "changes": ("accept", "reject", "building", "road", "other"),
}
"""Verdicts of a review, by layer: the row is right, wrong, or a change of another class, which is named."""

_NOTE = Field("note", "str", "Note of a person", editable=True)
_CHIP_COLUMNS = (
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
        "Mean log-probability of the caption's tokens; closer to 0 is more certain",
        "Score of caption",
    ),
    Field("new_roads", "int", "Number of new roads in this chip"),
    Field("new_buildings", "int", "Number of new buildings in this chip"),
    Field("road_cells", "list", "Cells of the chip's 3x3 grid with changed roads"),
    Field("building_cells", "list", "Cells of the chip's 3x3 grid with changed buildings"),
    Field("conflicts", "list", "Rules of consistency that the answers break; see docs/formats.md"),
)
EVIDENCE_COLUMNS = (
    Field("evidence_changed", "bool", "Evidence: has anything changed?", "Evidence: changed?"),
    Field(
        "evidence_score", "float", "Evidence: probability that something changed, 0 to 1", "Evidence: score"
    ),
    Field("evidence_new_roads", "int", "Evidence: number of new roads", "Evidence: new roads"),
    Field("evidence_new_buildings", "int", "Evidence: number of new buildings", "Evidence: new buildings"),
    Field("evidence_road_cells", "list", "Evidence: cells with changed roads", "Evidence: road cells"),
    Field(
        "evidence_building_cells",
        "list",
        "Evidence: cells with changed buildings",
        "Evidence: building cells",
    ),
)
"""Columns of what another model found, which the model was told."""

_SOURCE_COLUMNS = (
    Field("valid_fraction", "float", "Share of the chip with data on both dates, 0 to 1", "Share with data"),
    Field(
        "ground_share",
        "float",
        "Share of the chip's ground that is its own: what analyzed chips share is divided among them",
        "Own share of ground",
    ),
    Field(
        "aoi_share",
        "float",
        "Share of the chip inside the area of interest, 0 to 1; null without one",
        "Share in area of interest",
    ),
    Field(
        "cloud_share",
        "float",
        "Share of the chip hidden by cloud masks on either date, 0 to 1; null without a mask",
        "Share hidden by clouds",
    ),
    Field(
        "shift_px",
        "float",
        "Shift between the dates in this chip, pixels; null where it cannot be measured",
        "Shift between the dates (px)",
    ),
    Field("gsd_m", "float", "Ground size of a pixel, metres", "Pixel size (m)"),
    Field("model", "str", "Model and its fingerprint"),
    Field("before", "str", "The earlier image", "Image before"),
    Field("after", "str", "The later image", "Image after"),
    *_DATES,
    Field(
        "verdict",
        "str",
        "Verdict of a person on the column changed: accept or reject",
        choices=VERDICTS["chips"],
        editable=True,
    ),
    _NOTE,
)
_PAIR_ID = Field("pair_id", "str", "Name of the pair", "Pair")

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

CHANGES = Layer(
    "changes",
    (
        Field("polygon_id", "int", "Number of the polygon in its pair, from 1", "Polygon"),
        Field("class", "str", "What was built, removed or altered there: building, road or other"),
        Field("kind", "str", "What happened, such as building_built; building_changed if it is not known"),
        Field("area_m2", "float", "Area on the ground, square metres", "Area (m²)"),
        Field(
            "perimeter_m",
            "float",
            "Length of the outline on the ground, holes included, metres",
            "Perimeter (m)",
        ),
        Field("mean_score", "float", "Mean probability of change within, of all classes together, 0 to 1"),
        Field("lon", "float", "Longitude of the centroid, degrees", "Longitude"),
        Field("lat", "float", "Latitude of the centroid, degrees", "Latitude"),
        Field("chip_ids", "list", "Chips that show it", "Chips"),
        Field(
            "caption",
            "str",
            "Caption of the chip with the largest part of it, among captions that tell a change",
        ),
        *_DATES,
        Field(
            "verdict",
            "str",
            "Verdict of a person: accept, reject, or the right class",
            choices=VERDICTS["changes"],
            editable=True,
        ),
        _NOTE,
    ),
)

GRID = Layer(
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

PAIRS = Layer(
    "pairs",
    (
        _PAIR_ID,
        Field(
            "status",
            "str",
            "answered; partly: some chips failed, or the limit cut it off; failed: not opened, nothing asked",
        ),
        Field("reason", "str", "Error message of the pair, or of its first failed chip"),
        Field("chips", "int", "Number of chips"),
        Field("changed", "int", "Number of chips that the model calls changed"),
        Field("failed_chips", "int", "Number of chips that could not be read or answered"),
        Field(
            "shift_px",
            "float",
            "Shift between the dates, pixels; null where it cannot be measured",
            "Shift between the dates (px)",
        ),
        Field("gsd_m", "float", "Ground size of a pixel, metres", "Pixel size (m)"),
        Field("before", "str", "The earlier image"),
        Field("after", "str", "The later image"),
        *_DATES,
        Field("notes", "list", "Notes from opening the pair"),
        Field("inputs", "json", "Provenance of the pixels: files, bands, scaling, alignment"),
    ),
)

ANSWERS = Layer(
    "answers",
    (
        Field(
            "kind",
            "str",
            "window: the chip that was asked about; cell: named in an answer; mask: changed ground",
        ),
        Field("class", "str", "Of a cell: road or building; of a mask: class of change"),
        Field("cell", "str", "Cell of the window's 3x3 grid, as the model sees it: top is its first row"),
        Field("question", "str", "Question"),
        Field("answer", "str", "Answer of the model"),
        Field("status", "str", "answered; unsupported: the model was not taught to answer the question"),
        Field("score", "float", "Probability of yes, or the mean log-probability of the answer's tokens"),
        Field("model", "str", "Model and its fingerprint"),
    ),
)


def chips_layer(questions: Sequence[QuestionSpec], *, evidence: bool = False) -> Layer:
    """Layer `chips` for a question set: fixed columns, those of `evidence` of another model, and a column
    `answer_<name>` for each question, with `status_<name>` behind it if the question is in words of its
    own."""
    columns = [*EVIDENCE_COLUMNS] if evidence else []
    for spec in questions:
        columns.append(Field(f"answer_{spec.name}", "str", f"Answer to: {spec.prompt}"))
        if not spec.is_standard:
            text = f"Of answer_{spec.name}: answered; unsupported: the model was not taught to answer it"
            columns.append(Field(f"status_{spec.name}", "str", text))
    return Layer("chips", (*_CHIP_COLUMNS, *columns, *_SOURCE_COLUMNS))


def with_pair_columns(layer: Layer) -> Layer:
    """`layer` with the columns `pair_id`, `before_date` and `after_date`."""
    names = {field.name for field in layer.fields}
    dates = (date for date in _DATES if date.name not in names)
    return Layer(layer.name, (_PAIR_ID, *layer.fields, *dates))


def output_layers(
    questions: Sequence[QuestionSpec],
    *,
    changes: bool,
    pair_columns: bool,
    pairs: bool,
    evidence: bool = False,
) -> tuple[Layer, ...]:
    """Layers of an output file, `chips` first. `changes` and `pairs` add those layers; `pair_columns` adds
    the columns of a pair to every other layer, `evidence` those of another model to the chips."""
    layers = [chips_layer(questions, evidence=evidence), LOCATIONS, *([CHANGES] if changes else [])]
    if pair_columns:
        layers = [with_pair_columns(layer) for layer in layers]
    return (*layers, *([PAIRS] if pairs else []))
