"""Reader of output files in any format: the rows of their layers and the provenance of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.crs import CRS

from deltavlm.errors import InputError
from deltavlm.files import parse_json
from deltavlm.geo.grid import chip_offsets, ground_shares
from deltavlm.geo.output_files import SUFFIXES
from deltavlm.geo.vector_reader import VectorLayer, list_layers, read_layer
from deltavlm.pipeline.answers import check_threshold
from deltavlm.pipeline.consistency import judge_row
from deltavlm.pipeline.outputs import polygons_path
from deltavlm.pipeline.schema import ANALYZED_STATUSES, CHANGES, CHIP_STATUSES, PAIRS, chips_layer

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = [
    "POLYGONIZED",
    "Output",
    "Row",
    "at_threshold",
    "check_same_run",
    "output_paths_in",
    "read_output",
    "true_change",
    "verdict_on",
]

Row = dict[str, Any]
"""Values of a feature by column; `geometry` is a shapely geometry or None."""

REQUIRED = ("chip_id", "status", "changed", "changed_score")
"""Columns of `chips` in every output; the other columns may be missing."""

EXTRA_LAYERS = (CHANGES.name, PAIRS.name)
"""Layers besides `chips` that are read."""

POLYGONIZED = "polygonized"
"""Member of the provenance of polygons that were drawn again: the path of their output, relative to their
folder, or null for those of a raster alone; and the threshold that was applied to its scores."""

RUN_MEMBERS = ("model", "inputs", "options")
"""Members of a provenance that are the same in all files of a run."""

MAX_GRID = 10_000_000
"""Chips of the grids whose shares of ground are computed, for outputs of earlier versions."""

LIST_COLUMNS = frozenset(
    field.name
    for layer in (chips_layer((), evidence=True), CHANGES, PAIRS)
    for field in layer.fields
    if field.type in ("list", "json")
)
"""Columns of lists and JSON objects, which some formats store as text."""

HINT = "give an output of deltavlm analyze, with its layer chips"

_TEXT, _SWITCH, _OBJECT = (str,), (bool,), dict[str, Any]()
_NUMBER, _COUNT = (int, float), (int,)
_MAYBE_NUMBER, _MAYBE_COUNT, _MAYBE_TEXT = (int, float, NoneType), (int, NoneType), (str, NoneType)

PROVENANCE: Mapping[str, Any] = {  # types of the members of a provenance, if present
    **{"tool": _TEXT, "pairs": _TEXT, "versions": _OBJECT},
    "model": {
        **{"name": _TEXT, "fingerprint": _TEXT, "device": _TEXT, "dtype": _MAYBE_TEXT},
        **{"chip_px": _COUNT, "training_gsd_m": _MAYBE_NUMBER},
        "evidence": {"name": _TEXT, "chip_px": _COUNT, "training_gsd_m": _MAYBE_NUMBER},
    },
    "options": {
        **{"chip_px": _COUNT, "overlap_px": _MAYBE_COUNT, "limit": _MAYBE_COUNT, "batch_size": _MAYBE_COUNT},
        **{"max_nodata": _NUMBER, "threshold": _MAYBE_NUMBER, "cascade": _SWITCH, "masks": _SWITCH},
    },
    "reading": {"scale": _TEXT},
    "inputs": {
        **{"before": {"path": _TEXT}, "after": {"path": _TEXT}, "scale": _TEXT},
        "grid": {"width": _COUNT, "height": _COUNT, "crs": _MAYBE_TEXT, "transform": [_NUMBER]},
        "alignment": {"overlap_share": _MAYBE_NUMBER, "resampling": _TEXT},
    },
    "questions": [{"name": _TEXT, "task": _TEXT, "prompt": _TEXT}],
    POLYGONIZED: {"output": _MAYBE_TEXT, "threshold": _MAYBE_NUMBER},
}


@dataclass(frozen=True)
class Output:
    """Layers of one output file and its provenance."""

    path: Path
    provenance: Mapping[str, Any]  # {} if the file has none, or one that deltavlm did not write
    layers: Mapping[str, GeoDataFrame]  # by name: `chips`, and those of EXTRA_LAYERS that were read
    threshold: float | None = None  # that was applied to the stored scores
    chips_path: Path | None = None  # file of the chips, where `path` has polygons that were drawn again
    polygons_path: Path | None = None  # file of the polygons beside `path`

    @property
    def has_polygons(self) -> bool:
        """True if there are polygons of change that say what happened; there may be none of them."""
        frame = self.layers.get(CHANGES.name)
        return frame is not None and ("kind" in frame or not len(frame))

    @property
    def folder(self) -> Path:
        """Folder in which images that have been moved are looked for: that of the chips."""
        return (self.chips_path or self.path).absolute().parent

    @property
    def other_files(self) -> tuple[Path, ...]:
        """Files besides `path` that layers were read from."""
        return tuple(path for path in (self.chips_path, self.polygons_path) if path is not None)

    @property
    def crs(self) -> CRS | None:
        """CRS of the geometries; None if they are in pixels."""
        crs = self.layers["chips"].crs
        return None if crs is None else CRS.from_wkt(crs.to_wkt())

    def rows(self, layer: str) -> list[Row]:
        """Rows of a layer as plain Python values: NaN becomes None, text of a list or JSON column is parsed.

        A layer that the file does not have gives no rows.
        """
        frame = self.layers.get(layer)
        if frame is None:
            return []
        columns = {name: self.values(layer, name) for name in frame.columns}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def values(self, layer: str, column: str) -> list[Any]:
        """Values of one column of a layer, as `rows` gives them."""
        return [_plain(column, value) for value in self.layers[layer][column].tolist()]


def output_paths_in(paths: Sequence[Path]) -> list[Path]:
    """Outputs by name: a folder stands for the outputs in it, without files of polygons beside them.

    Raises: InputError for a folder without outputs, or an output that is given twice.
    """
    expanded: list[Path] = []
    for path in paths:
        if not path.is_dir():
            expanded.append(path)
            continue
        outputs = sorted(
            file
            for file in path.iterdir()
            if file.is_file()
            and file.suffix.lower() in SUFFIXES
            and not file.name.startswith(".")
            and not file.stem.endswith(".changes")
        )
        if not outputs:
            raise InputError(f"{path}: holds no outputs ({' '.join(SUFFIXES)}); {HINT}")
        expanded += outputs
    files = [path.resolve() for path in expanded]
    for index, path in enumerate(expanded):
        if files[index] in files[:index]:
            raise InputError(f"{path}: is given twice, and its ground would count twice; name it once")
    return expanded


def read_output(
    path: Path, extra_layers: Collection[str] = EXTRA_LAYERS, *, threshold: float | None = None
) -> Output:
    """Read the layer `chips` of an output of any format and version, and those of `extra_layers` that it has.

    The format is recognized by content, not by suffix. A GeoPackage has more layers than `chips`; polygons of
    other formats are read from their own file beside it. The columns `conflicts` and `ground_share` are made
    where they are missing, as in outputs of earlier versions. A file of `deltavlm polygonize` stands for its
    output with these polygons in place of its own, at the threshold that they were drawn at.

    Args:
        threshold: `changed` and `conflicts` become those of the stored scores at this threshold.

    Raises:
        InputError: the file is missing, empty, damaged, of another format, or has no chips; or it has
            polygons whose output is missing or of another run.
        ConfigError: a threshold that is not from 0 to 1.
    """
    check_threshold(threshold)
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes); {HINT}")
    if path.suffix.lower() == ".gpkg":
        has_polygons_only = list_layers(path, HINT) == (CHANGES.name,)
        layer = read_layer(path, CHANGES.name if has_polygons_only else "chips", HINT)
    else:
        layer = read_layer(path, None, HINT)
        has_polygons_only = "polygon_id" in layer.frame or POLYGONIZED in (layer.provenance or {})
    if not has_polygons_only:
        return _with_chips(path, layer, extra_layers, threshold)
    record, source = _drawn_from(path, layer)
    chips = read_layer(source, "chips" if source.suffix.lower() == ".gpkg" else None, HINT)
    output = _with_chips(source, chips, extra_layers, None)
    check_same_run(output.provenance, layer.provenance or {}, f"{path}: is not of the run of {source}")
    layers = dict(output.layers)
    if CHANGES.name in extra_layers:
        is_moved = chips.frame.crs is not None and layer.frame.crs not in (None, chips.frame.crs)
        layers[CHANGES.name] = layer.frame.to_crs(chips.frame.crs) if is_moved else layer.frame
    provenance = {**output.provenance, "changes": (layer.provenance or {}).get("changes")}
    output = Output(path, provenance, layers, chips_path=source)
    return at_threshold(output, record.get("threshold") if threshold is None else threshold)


def _drawn_from(path: Path, polygons: VectorLayer) -> tuple[Mapping[str, Any], Path]:
    """Record of polygons that were drawn again, and the file of their chips. Raises: InputError."""
    provenance = polygons.provenance if _is_provenance(polygons.provenance) else None
    record = (provenance or {}).get(POLYGONIZED)
    if record is None:
        raise InputError(f"{path}: has polygons of change and no chips; {HINT}")
    if not record.get("output"):
        raise InputError(
            f"{path}: has polygons of a raster alone, without chips; draw them with deltavlm polygonize OUT, "
            "where OUT is the output of the run"
        )
    source = path.parent / record["output"]
    if not source.is_file():
        raise InputError(f"{path}: its chips are in {source}, and there is no such file; put it back there")
    return record, source


def check_same_run(first: Mapping[str, Any], second: Mapping[str, Any], problem: str) -> None:
    """Check that two files are of one run, by their provenance.

    Raises: InputError, which begins with `problem`.
    """
    for name in RUN_MEMBERS:
        if first.get(name) != second.get(name):
            raise InputError(f"{problem}, as their {name} differ; give those of one run")


def _with_chips(
    path: Path, chips: VectorLayer, extra_layers: Collection[str], threshold: float | None
) -> Output:
    """Output whose chips have been read."""
    provenance = chips.provenance if _is_provenance(chips.provenance) else {}
    missing = [name for name in REQUIRED if name not in chips.frame]
    if missing and len(chips.frame):
        raise InputError(f"{path}: has no column {missing[0]!r}, so it does not hold chips; {HINT}")
    if missing and chips.provenance is None:  # GeoJSON without a feature has no columns
        raise InputError(f"{path}: holds no features and was not written by deltavlm; {HINT}")
    if not missing:
        _check_values(path, chips.frame)
    provenance = dict(provenance or {})
    layers = {"chips": chips.frame}
    layers |= {name: read_layer(path, name, HINT).frame for name in list_layers(path) if name in extra_layers}
    found: Path | None = None
    if CHANGES.name in extra_layers and CHANGES.name not in layers:
        beside = _polygons_beside(path, provenance)
        if beside is not None:
            layers[CHANGES.name], provenance["changes"] = beside
            found = polygons_path(path)
    if not missing and ("ground_share" not in chips.frame or chips.frame["ground_share"].isna().all()):
        layers["chips"] = _with_ground_shares(chips.frame, provenance.get("options", {}))
    output = Output(path, provenance, layers, polygons_path=found)
    if missing:
        return output
    if threshold is None and "conflicts" not in chips.frame:
        return replace(output, layers={**layers, "chips": _judged(output, None)})
    return at_threshold(output, threshold)


def _check_values(path: Path, frame: GeoDataFrame) -> None:
    """Raises: InputError for values in the columns of REQUIRED that deltavlm does not write."""
    valid: Mapping[str, Callable[[Any], bool]] = {
        "chip_id": lambda value: isinstance(value, str),
        "status": lambda value: value in CHIP_STATUSES,
        "changed": lambda value: value is None or value in (True, False),
        "changed_score": lambda value: value is None or (isinstance(value, int | float) and 0 <= value <= 1),
    }
    for name, is_valid in valid.items():
        for value in frame[name].tolist():
            if not is_valid(_plain(name, value)):
                shown = str(value)[:40]
                raise InputError(f"{path}: has {shown!r} in its column {name!r}, so it is no output; {HINT}")
    kinds = frame.geometry.geom_type.dropna()
    others = kinds[~kinds.isin(("Polygon", "MultiPolygon", "GeometryCollection"))]
    if len(others):
        kind = others.iloc[0]
        raise InputError(f"{path}: has a {kind} where chips have polygons, so it is no output; {HINT}")


def at_threshold(output: Output, threshold: float | None) -> Output:
    """The output as a run with this threshold would have it, by the stored scores; None: as it is.

    Polygons of chips that it calls unchanged are left out, if the run drew those of changed chips only.
    Verdicts on chips become those on the new calls: the truth that they tell stays.
    """
    if threshold is None:
        return output
    layers = {**output.layers, "chips": _judged(output, threshold)}
    output = replace(output, layers=layers, threshold=threshold)
    if CHANGES.name in layers and _draws_changed_chips(output.provenance):
        output = replace(output, layers={**layers, CHANGES.name: _drawn_polygons(output)})
    return output


def _judged(output: Output, threshold: float | None) -> GeoDataFrame:
    """Chips with the columns `changed` and `conflicts` made of their other columns."""
    import pandas as pd

    frame = output.layers["chips"].copy(deep=False)
    has_masks = "changes" in output.provenance and "conflicts" in frame
    rows = output.rows("chips")
    judged = [judge_row(row, threshold=threshold, has_masks=has_masks) for row in rows]
    columns: dict[str, list[Any]] = {
        name: [each[index] for each in judged] for index, name in enumerate(("changed", "conflicts"))
    }
    if "verdict" in frame and threshold is not None:
        columns["truth"] = [true_change(row) for row in rows]
        columns["verdict"] = [
            verdict_on(changed, row) for changed, row in zip(columns["changed"], rows, strict=True)
        ]
    for name, values in columns.items():
        frame[name] = pd.Series(values, index=frame.index, dtype="object")
    return frame


def true_change(row: Mapping[str, Any]) -> bool | None:
    """Has a chip changed, as its verdict tells, which is on what its row calls it? None without a verdict.

    The column `truth`, of chips that were called otherwise when they were reviewed, goes first.
    """
    if "truth" in row:
        truth: bool | None = row["truth"]
        return truth
    verdict, changed = row.get("verdict"), row.get("changed")
    return None if not verdict or changed is None else bool(changed) == (verdict != "reject")


def verdict_on(changed: bool | None, row: Mapping[str, Any]) -> str | None:
    """Verdict on another call than the one in the row of a reviewed chip; None without a call."""
    if changed == row.get("changed"):
        verdict: str | None = row.get("verdict")
        return verdict
    truth = true_change(row)
    return None if changed is None or truth is None else "accept" if changed == truth else "reject"


def _draws_changed_chips(provenance: Mapping[str, Any]) -> bool:
    """True if the polygons of an output are those of chips called changed."""
    changes = provenance.get("changes")
    return isinstance(changes, dict) and changes.get("chips") == "changed"


def _drawn_polygons(output: Output) -> GeoDataFrame:
    """Polygons whose chip, of those that show them the one with the largest part, is not called unchanged."""
    chips = {(_text(row.get("pair_id")), row["chip_id"]): row for row in output.rows("chips")}
    drawn = []
    for row in output.rows(CHANGES.name):
        shown_by = (chips.get((_text(row.get("pair_id")), name)) for name in row.get("chip_ids") or ())
        parts = [
            (-round(chip["geometry"].intersection(row["geometry"]).area, 6), chip["changed"] is False)
            for chip in shown_by
            if chip is not None and chip["geometry"] is not None and row["geometry"] is not None
        ]
        drawn.append(not parts or not min(parts)[1])
    return output.layers[CHANGES.name].loc[np.array(drawn, bool)]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _polygons_beside(
    path: Path, provenance: Mapping[str, Any]
) -> tuple[GeoDataFrame, Mapping[str, Any] | None] | None:
    """Layer `changes` from the file of polygons beside an output, and how they were drawn; None without one.

    They are of the run itself, or drawn again at its threshold.
    """
    beside = polygons_path(path)
    if "changes" not in provenance or not beside.is_file():
        return None
    layer = read_layer(beside, None, HINT)
    record = dict(layer.provenance) if _is_provenance(layer.provenance) and layer.provenance else {}
    changes, drawn = record.pop("changes", None), record.pop(POLYGONIZED, {})
    is_of_run = record == {name: value for name, value in provenance.items() if name != "changes"}
    is_redrawn = drawn.get("threshold") is None and POLYGONIZED in (layer.provenance or {})
    if not is_of_run or not (is_redrawn or changes == provenance["changes"]):
        return None
    return layer.frame, changes


def _with_ground_shares(frame: GeoDataFrame, options: Mapping[str, Any]) -> GeoDataFrame:
    """Chips with the column `ground_share`, from their names and size; null where these do not tell."""
    import pandas as pd

    chip_px = options.get("chip_px")
    offsets = [chip_offsets(name) for name in frame["chip_id"]]
    analyzed = frame["status"].isin(ANALYZED_STATUSES).to_numpy()
    shares = np.full(len(frame), np.nan)
    pairs = frame["pair_id"] if "pair_id" in frame else pd.Series(None, index=frame.index, dtype="object")
    if isinstance(chip_px, int) and chip_px > 0 and None not in offsets:
        for indices in pairs.reset_index(drop=True).groupby(pairs.tolist(), dropna=False).indices.values():
            placed = np.array([offsets[index] for index in indices])
            (row_offs, rows), (col_offs, cols) = (np.unique(axis, return_inverse=True) for axis in placed.T)
            if len(row_offs) * len(col_offs) > MAX_GRID:
                continue
            present, answered = (np.zeros((len(row_offs), len(col_offs)), bool) for _ in range(2))
            present[rows, cols] = True
            answered[rows[analyzed[indices]], cols[analyzed[indices]]] = True
            size = chip_px, chip_px
            shares[indices] = ground_shares(row_offs, col_offs, size, present, answered)[rows, cols]
    frame = frame.copy(deep=False)
    frame["ground_share"] = shares
    return frame


def _plain(column: str, value: Any) -> Any:
    if column == "geometry":
        return None if value is None or value.is_empty else value
    if column in LIST_COLUMNS and isinstance(value, str):
        try:
            return parse_json(value)
        except ValueError:
            return value
    if hasattr(value, "tolist"):
        return value.tolist()  # a list of Parquet
    return None if value != value else value  # NaN


def _is_provenance(value: object) -> bool:
    """Check that a provenance has the members and types that deltavlm writes."""
    return _fits(value, PROVENANCE)


def _fits(value: object, kind: Any) -> bool:
    """True for a value of one of several types, a list of values that fit, or an object whose members do."""
    if isinstance(kind, Mapping):
        return isinstance(value, dict) and all(
            _fits(value[key], inner) for key, inner in kind.items() if key in value
        )
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(each, kind[0]) for each in value)
    return type(value) in kind and (not isinstance(value, float) or math.isfinite(value))
