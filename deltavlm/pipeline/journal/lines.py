"""Lines of chips in a journal: results as plain values, and back, with checks of types and ranges."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from deltavlm.geo.grid import ChipGrid
from deltavlm.model.interface import Reply
from deltavlm.pipeline.answers import read_answer
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.blobs import BLOB_KEYS, Blob, check_address
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.schema import CHIP_STATUSES
from deltavlm.tasks.evidence import Evidence

__all__ = ["check_chip_line", "line_of", "result_of"]


def line_of(result: ChipResult) -> dict[str, Any]:
    """Result as plain values, ready for JSON."""
    line: dict[str, Any] = {"pair": result.pair}
    if result.digest:
        line["digest"] = result.digest
    for name, blob in (("mask", result.mask), ("valid", result.valid)):
        if blob is not None and blob.address is not None:
            line[name] = blob.address
    if result.cloud_share is not None:
        line["cloud_share"] = result.cloud_share
    if result.shift_px is not None:
        line["shift_px"] = result.shift_px
    if result.mask_score is not None:
        line["mask_score"] = result.mask_score
    if result.evidence is not None:
        line["evidence"] = result.evidence.as_dict()
    return line | {
        "chip_id": result.chip.chip_id,
        "row": result.chip.row,
        "col": result.chip.col,
        "status": result.status,
        "valid_fraction": result.valid_fraction,
        "reason": result.reason,
        "answers": {name: [answer.text, answer.score] for name, answer in result.answers.items()},
    }


def result_of(line: Mapping[str, Any], grid: ChipGrid, job: AnalyzeJob) -> ChipResult:
    """Inverse of `line_of`, with the threshold of this job."""
    by_name, threshold = {spec.name: spec for spec in job.questions}, job.options.threshold
    mask, valid = (
        Blob(address=(line[name][0], line[name][1], line[name][2])) if name in line else None
        for name in ("mask", "valid")
    )
    return ChipResult(
        chip=grid[line["row"], line["col"]],
        status=line["status"],
        valid_fraction=line["valid_fraction"],
        answers={
            name: read_answer(by_name[name], Reply(text, float("nan") if score is None else score), threshold)
            for name, (text, score) in line["answers"].items()
        },
        reason=line["reason"],
        pair=line["pair"],
        digest=line.get("digest", ""),
        mask=mask,
        valid=valid,
        cloud_share=line.get("cloud_share"),
        shift_px=line.get("shift_px"),
        mask_score=line.get("mask_score"),
        evidence=Evidence.from_dict(line["evidence"]) if "evidence" in line else None,
    )


def check_chip_line(line: Mapping[str, Any], questions: Collection[str]) -> None:
    """Check the values of a chip's line, whose answers are to these questions. Raises: ValueError."""
    for key, is_valid in {**_REQUIRED, **_OPTIONAL}.items():
        if (key in line or key in _REQUIRED) and not is_valid(line.get(key)):
            raise ValueError(f"{key!r} is {json.dumps(line.get(key))[:40]}")
    if not line["answers"].keys() <= {*questions}:
        raise ValueError("answers to other questions")
    for key in BLOB_KEYS:
        if key in line:
            check_address(line[key], key)
    if "evidence" in line:
        Evidence.from_dict(line["evidence"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_share(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value <= 1)


def _is_answer(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return value[1] is None or _is_number(value[1])


_REQUIRED: dict[str, Callable[[Any], bool]] = {
    "pair": _is_text,
    "chip_id": _is_text,
    "row": _is_count,
    "col": _is_count,
    "status": lambda value: isinstance(value, str) and value in CHIP_STATUSES,
    "valid_fraction": _is_share,
    "reason": _is_text,
    "answers": lambda value: isinstance(value, dict) and all(map(_is_answer, value.values())),
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "digest": _is_text,
    "mask_score": _is_share,
    "cloud_share": _is_share,
    "shift_px": lambda value: _is_number(value) and value >= 0,
    "evidence": lambda value: isinstance(value, dict),
    "end": lambda value: _is_count(value) and value > 0,
}
