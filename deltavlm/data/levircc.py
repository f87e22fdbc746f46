"""LEVIR-CC: facts about the set, and a reader of its caption file.

- Content: image pairs of one place at two dates, with five captions each and a flag for change.
- Size: 10,077 pairs: train 6,815, val 1,333, test 1,929; 50,385 captions.
- Images: 256 x 256 px at 0.5 m, RGB.
- Classes: none; the captions speak above all of buildings and roads.
- License: academic use.
- Source: https://github.com/Chen-Yang-Liu/LEVIR-CC-Dataset
- Paper: not stated here.

LevirCCcaptions.json is
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
    """Captions of a pair, and the annotators' flag for change."""

    captions: tuple[str, ...]
    changed: bool


def read_captions(path: Path) -> tuple[dict[tuple[str, str], PairCaptions], list[Problem]]:
    """Read captions by (split, file name). A record that does not follow the schema becomes a problem.

    Raises: InputError when the file cannot be read or holds no usable record.
    """
    content = read_json(path)
    records = content.get("images") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise InputError(f"{path} is not LevirCCcaptions.json: expected an object with a list of images")
    captions: dict[tuple[str, str], PairCaptions] = {}
    problems = []
    for number, record in enumerate(records, start=1):
        try:
            key, value = _parse_record(record)
            if key in captions:
                raise ValueError(f"{'/'.join(key)} has captions already")
            captions[key] = value
        except ValueError as error:
            problems.append(Problem("record", f"{path.name}, image {number}", str(error)))
    if not captions:
        raise InputError(f"{path} holds no captions{f': {problems[0].message}' if problems else ''}")
    return captions, problems


def _parse_record(record: Any) -> tuple[tuple[str, str], PairCaptions]:
    """((split, file name), captions). Raises: ValueError saying what is wrong with the record."""
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
