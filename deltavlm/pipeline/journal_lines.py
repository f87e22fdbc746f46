"""Checks of the lines of a journal: values of other types or ranges than a run writes are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from deltavlm.pipeline.journal_file import BLOB_KEYS, check_address
from deltavlm.pipeline.schema import CHIP_STATUSES

__all__ = ["check_chip_line"]


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
    "end": lambda value: _is_count(value) and value > 0,
}
