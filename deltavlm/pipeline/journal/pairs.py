"""Pairs in a journal: what an interrupted run knows of them, and whether they are still the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deltavlm.errors import OutputError
from deltavlm.geo.cloud_mask import parse_cloud_mask
from deltavlm.geo.identity import address_digest
from deltavlm.geo.read_options import ReadOptions
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.header import differing_keys
from deltavlm.pipeline.pair_record import PairIdentity, PairRecord
from deltavlm.pipeline.pairs import Pair

__all__ = ["ChipKey", "PairFailure", "PairState", "address_of", "refuse_another"]

ChipKey = tuple[int, int]  # row and column in the chip grid


@dataclass
class PairState:
    """State of a pair that could be opened."""

    record: PairRecord
    address: str  # digest of the pair's locations
    offsets: dict[ChipKey, int] = field(default_factory=dict)  # of the chip's last line in the file
    failed: set[ChipKey] = field(default_factory=set)
    unanswered: set[ChipKey] = field(default_factory=set)  # failed, or without data


@dataclass(frozen=True, slots=True)
class PairFailure:
    """Pair that could not be opened."""

    reason: str
    identity: PairIdentity
    address: str  # digest of the pair's locations


def address_of(pair: Pair, read: ReadOptions, key: bytes) -> str:
    """Digest of the locations of a pair and its cloud masks."""
    texts = [pair.before, pair.after]
    for text in (
        pair.before_cloud_mask or read.before_cloud_mask,
        pair.after_cloud_mask or read.after_cloud_mask,
    ):
        mask = None if text is None else parse_cloud_mask(text)
        texts += ["", ""] if mask is None else [mask.location or "", repr(replace(mask, location=None))]
    return address_digest(key, *texts)


def refuse_another(
    path: Path, job: AnalyzeJob, pair: Pair, earlier: tuple[PairRecord, str], now: tuple[PairRecord, str]
) -> None:
    """Raises: OutputError where the record and address of a pair differ from those in the journal."""
    values = [
        {**asdict(record), "notes": None, "dates": None, "inputs": _inputs_of(record)}
        for record, _ in (earlier, now)
    ]
    is_copied = job.one_pair_per_output and job.output.retry_failed  # a truncated file, again
    if is_copied or earlier[0].identity.has_files_of(now[0].identity):
        for each in values:
            each["identity"]["files"] = None
    for each, (_, address) in zip(values, (earlier, now), strict=True):
        each["identity"] |= {"address": address, "aoi_file": None}  # the area itself is compared
    differs = sorted(differing_keys(values[0], values[1]))
    if differs:
        keys = ", ".join(differs[:3])
        what = f"holds a part of pair {pair.id!r} with another {keys}" if pair.id else ""
        raise OutputError(
            f"{path}: {what or f'is of a run with other settings ({keys})'}; `resume=False` starts over, or "
            "choose another output"
        )


def _inputs_of(record: PairRecord) -> dict[str, Any]:
    """Provenance of a pair's pixels, which depend on its measured shift only where that is corrected."""
    inputs: dict[str, Any] = json.loads(record.inputs)
    return inputs if inputs["registration"]["corrected"] else {**inputs, "registration": None}
