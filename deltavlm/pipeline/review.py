"""Review of an output by a person: verdicts and notes on chips and polygons, in columns or a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltavlm.errors import ConfigError, InputError
from deltavlm.files import describe_read_error, parse_json, read_text
from deltavlm.pipeline.consistency import judge_row
from deltavlm.pipeline.outputs_reader import Output, read_output, true_change, verdict_on
from deltavlm.pipeline.schema import VERDICTS

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = ["Opinion", "Review", "check_verdicts", "read_review", "read_reviewed", "with_review"]

COLUMNS = ("layer", "pair_id", "id", "verdict", "note")
KEYS: Mapping[str, str] = {"chips": "chip_id", "changes": "polygon_id"}
"""Column by which a review names the rows of each layer."""
HINT = "give the JSON or CSV that the page of deltavlm report --review downloads"

RowKey = tuple[str, str]  # pair_id, empty for a single pair; and chip_id or polygon_id


@dataclass(frozen=True, slots=True)
class Opinion:
    """One of the VERDICTS on a chip or polygon, and a note; one of the two may be empty."""

    verdict: str | None
    note: str | None


@dataclass(frozen=True)
class Review:
    """Opinions by layer (`chips` or `changes`) and row."""

    path: Path
    output: str | None = None  # name of the output that it is of; None where it does not say
    threshold: float | None = None  # at which its chips were called changed; None: as the output says
    opinions: Mapping[str, Mapping[RowKey, Opinion]] = field(default_factory=dict)


def read_review(path: Path) -> Review:
    """Read a review in JSON (an object with a list `review` of rows) or CSV, with COLUMNS.

    Raises: InputError that names the file and the row.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; {HINT}") from error
    except OSError as error:
        raise InputError(f"{describe_read_error(path, error)}; {HINT}") from error
    output = threshold = None
    if text.lstrip()[:1] in ("{", "["):
        rows, output, threshold = _json_rows(text, path)
    else:
        rows = _csv_rows(text, path)
    opinions: dict[str, dict[RowKey, Opinion]] = {layer: {} for layer in KEYS}
    for number, row in enumerate(rows, start=1):
        layer, key, opinion = _opinion(row, f"{path}, row {number}")
        if key in opinions[layer]:
            raise InputError(f"{path}, row {number}: is the second one about {layer} {key[1]!r}; keep one")
        opinions[layer][key] = opinion
    if not any(opinions.values()):
        raise InputError(f"{path}: holds no verdicts; {HINT}")
    return Review(path, output, threshold, opinions)


def read_reviewed(paths: Sequence[Path], review: Path | None) -> list[Output]:
    """Outputs with their verdicts; `review` is a file of verdicts on a single output, beside those in its
    columns.

    Raises: InputError for a file that is no output, a verdict that is none, or chips that are read twice;
        ConfigError for a review of one of several outputs.
    """
    outputs = [read_output(path) for path in paths]
    _check_chips_once(outputs)
    if review is not None:
        if len(outputs) != 1:
            raise ConfigError(f"{review}: is the review of one output, not of {len(outputs)}; give that one")
        outputs = [with_review(outputs[0], read_review(review))]
    for output in outputs:
        check_verdicts(output)
    return outputs


def _check_chips_once(outputs: Sequence[Output]) -> None:
    """Check that no chips are read twice.

    Raises: InputError for polygons that were drawn again beside their output, or beside others of it.
    """
    chips_files = [(output.chips_path or output.path).resolve() for output in outputs]
    for output, file in zip(outputs, chips_files, strict=True):
        if output.chips_path is not None and chips_files.count(file) > 1:
            raise InputError(
                f"{output.path}: has polygons of {output.chips_path} drawn again, and ground would count "
                "twice with the other outputs of this run; give one of them"
            )


def _json_rows(text: str, path: Path) -> tuple[list[Any], str | None, float | None]:
    """Rows of a review in JSON, the name of its output, and its threshold."""
    try:
        review = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}); {HINT}") from error
    rows = review.get("review") if isinstance(review, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path}: is no review, an object with a list 'review'; {HINT}")
    name, threshold = review.get("output"), review.get("threshold")
    is_number = isinstance(threshold, int | float) and 0 <= threshold <= 1
    if threshold is not None and not is_number:
        raise InputError(f"{path}: its 'threshold' is no number from 0 to 1; {HINT}")
    return rows, name if isinstance(name, str) else None, None if threshold is None else float(threshold)


def _csv_rows(text: str, path: Path) -> list[Any]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows: list[Any] = list(reader)
    except csv.Error as error:
        raise InputError(f"{path}: is not valid CSV ({error}); {HINT}") from error
    if not {*COLUMNS} <= {*(reader.fieldnames or ())}:
        raise InputError(f"{path}: is no review, whose columns are {', '.join(COLUMNS)}; {HINT}")
    return rows


def _opinion(row: Any, source: str) -> tuple[str, RowKey, Opinion]:
    """Layer, key and opinion of a row. Raises: InputError."""
    if not isinstance(row, dict):
        raise InputError(f"{source}: is no object; {HINT}")
    texts = {name: _text(row.get(name), f"{source}, {name}") for name in COLUMNS}
    layer, verdict = texts["layer"], texts["verdict"].strip().lower()
    if layer not in KEYS:
        raise InputError(f"{source}: its layer is {layer[:40]!r}, not one of {', '.join(KEYS)}")
    if not texts["id"]:
        raise InputError(f"{source}: names no {KEYS[layer]} in its column 'id'")
    if verdict and verdict not in VERDICTS[layer]:
        raise InputError(f"{source}: {_wrong_verdict(layer, verdict)}")
    return layer, (texts["pair_id"], texts["id"]), Opinion(verdict or None, texts["note"].strip() or None)


def _wrong_verdict(layer: str, verdict: str) -> str:
    return f"its verdict is {verdict[:40]!r}, not one of {', '.join(VERDICTS[layer])}"


def _text(value: Any, source: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{source}: is no text")
    return str(value)


def with_review(output: Output, review: Review) -> Output:
    """The output with the opinions of a review in its columns `verdict` and `note`.

    Rows that the review does not name keep what they have. Opinions on chips that were called otherwise when
    they were reviewed, at another threshold, become verdicts on what the output calls them.

    Raises: InputError for a review of an output of another name, or for a chip or polygon that the output
        does not have.
    """
    if review.output is not None and review.output != output.path.name:
        raise InputError(
            f"{review.path}: is the review of {review.output}, not of {output.path.name}; give that one, or "
            "correct its 'output'"
        )
    layers = dict(output.layers)
    for layer, opinions in review.opinions.items():
        if not opinions:
            continue
        if layer not in layers or KEYS[layer] not in layers[layer]:
            raise InputError(f"{review.path}: has opinions on {layer}, which {output.path} does not have")
        layers[layer] = _with_opinions(layers[layer], KEYS[layer], opinions, f"{review.path}: {output.path}")
    reviewed = replace(output, layers=layers)
    if not review.opinions.get("chips"):
        return reviewed
    return replace(reviewed, layers={**layers, "chips": _with_truths(output, reviewed, review)})


def _with_truths(output: Output, reviewed: Output, review: Review) -> GeoDataFrame:
    """Chips of the reviewed output with the column `truth`, and verdicts on what the output calls them."""
    import pandas as pd

    truths, verdicts = [], []
    for row, earlier in zip(reviewed.rows("chips"), output.rows("chips"), strict=True):
        reviewed_row = earlier
        if (_key(row.get("pair_id")), _key(row["chip_id"])) in review.opinions["chips"]:
            changed, _ = judge_row(earlier, threshold=review.threshold)
            reviewed_row = {"verdict": row["verdict"], "changed": changed}
        truths.append(true_change(reviewed_row))
        verdicts.append(verdict_on(row["changed"], reviewed_row))
    frame = reviewed.layers["chips"].copy(deep=False)
    for name, values in (("truth", truths), ("verdict", verdicts)):
        frame[name] = pd.Series(values, index=frame.index, dtype="object")
    return frame


def _with_opinions(
    frame: GeoDataFrame, key: str, opinions: Mapping[RowKey, Opinion], source: str
) -> GeoDataFrame:
    """Rows of a layer with opinions by their keys. Raises: InputError, which begins with `source`."""
    import pandas as pd

    pair_ids: Iterable[Any] = frame["pair_id"] if "pair_id" in frame else [None] * len(frame)
    keys = [(_key(pair), _key(name)) for pair, name in zip(pair_ids, frame[key], strict=True)]
    unknown = next((each for each in opinions if each not in {*keys}), None)
    if unknown is not None:
        pair = f" in pair {unknown[0]!r}" if unknown[0] else ""
        raise InputError(f"{source} has no {key} {unknown[1]!r}{pair}; is the review of another output?")
    frame = frame.copy(deep=False)
    for name in ("verdict", "note"):
        earlier = frame[name].tolist() if name in frame else [None] * len(frame)
        values = [
            getattr(opinions[each], name) if each in opinions else old
            for each, old in zip(keys, earlier, strict=True)
        ]
        frame[name] = pd.Series(values, index=frame.index, dtype="object")
    return frame


def check_verdicts(output: Output) -> None:
    """Raise InputError for a verdict in the columns of an output that is none of VERDICTS."""
    for layer, key in KEYS.items():
        frame = output.layers.get(layer)
        if frame is None or "verdict" not in frame or key not in frame:
            continue
        for name, value in zip(frame[key], output.values(layer, "verdict"), strict=True):
            if value and value not in VERDICTS[layer]:
                row = f"{output.path}, {key} {_key(name)}"
                raise InputError(f"{row}: {_wrong_verdict(layer, str(value))}; correct it there")


def _key(value: Any) -> str:
    """Text of an id; whole numbers without decimals, as a column with nulls makes floats of them."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) else str(value)
