"""LEVIR-CC's captions: LevirCCcaptions.json, five sentences a pair and whether it has changed.

`{"images": [{"filename", "split" or "filepath", "changeflag", "sentences": [{"raw"}, ...]}, ...]}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltavlm.data.examples import Problem, read_json
from deltavlm.errors import InputError

__all__ = ["PairCaptions", "read_captions"]


@dataclass(frozen=True, slots=True)
class PairCaptions:
    """What people said of a pair."""

    captions: tuple[str, ...]
    changed: bool


def read_captions(path: Path) -> tuple[dict[tuple[str, str], PairCaptions], list[Problem]]:
    """By split and file name. A record that does not follow the schema is a problem, and the rest goes on.

    Raises: InputError when the file cannot be read or holds no record.
    """
    content = read_json(path)
    records = content.get("images") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise InputError(f"{path} is not LevirCCcaptions.json: expected an object with a list of images")
    told: dict[tuple[str, str], PairCaptions] = {}
    problems = []
    for number, record in enumerate(records, start=1):
        try:
            key, value = _told(record)
            if key in told:
                raise ValueError(f"{'/'.join(key)} has captions already")
            told[key] = value
        except ValueError as error:
            problems.append(Problem("record", f"{path.name}, image {number}", str(error)))
    if not told:
        raise InputError(f"{path} holds no captions{f': {problems[0].message}' if problems else ''}")
    return told, problems


def _told(record: Any) -> tuple[tuple[str, str], PairCaptions]:
    """Raises: ValueError saying what is wrong with the record."""
    if not isinstance(record, dict):
        raise ValueError("expected an object with keys")
    name, flag = record.get("filename"), record.get("changeflag")
    split = record.get("split", record.get("filepath"))
    if not isinstance(name, str) or not isinstance(split, str):
        raise ValueError("filename and split are not text")
    if flag not in (0, 1) or isinstance(flag, float):
        raise ValueError(f"changeflag of {name} is {flag!r}, not 0 or 1")
    sentences = record.get("sentences")
    captions = []
    for sentence in sentences if isinstance(sentences, list) else ():
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError(f"a sentence of {name} has no raw text")
        captions.append(" ".join(raw.split()))
    if not captions:
        raise ValueError(f"{name} has no sentences")
    return (split, name), PairCaptions(tuple(captions), bool(flag))
