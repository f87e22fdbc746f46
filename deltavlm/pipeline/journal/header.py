"""Header of a journal, its first line: format, settings of the run, and a random key for digests."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltavlm.errors import OutputError
from deltavlm.files import parse_json

__all__ = ["MAGIC", "VERSION", "check_header", "differing_keys", "header_line", "key_of"]

VERSION = 3
MAGIC = b'{"deltavlm_journal"'  # first bytes of a journal
KEY = "key"  # of the header: the key of digests, in hexadecimal digits
_KEY_BYTES = 16


def header_line(settings: Mapping[str, Any]) -> bytes:
    """First line of a new journal, with a random key."""
    return json.dumps({**_as_read(settings), KEY: secrets.token_hex(_KEY_BYTES)}).encode() + b"\n"


def _as_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Header without its key, as it is read back."""
    values: dict[str, Any] = json.loads(json.dumps({"deltavlm_journal": VERSION, **settings}, default=str))
    return values


def key_of(header: Mapping[str, Any]) -> bytes:
    """Key of the digests in a header. Raises: ValueError, TypeError or LookupError without a valid one."""
    key = bytes.fromhex(header[KEY])
    if len(key) != _KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes")
    return key


def check_header(
    path: Path, text: bytes, settings: Mapping[str, Any], ignored: Collection[str] = ()
) -> bytes:
    """Key in the header line `text` of the journal at `path`.

    Raises: OutputError unless its settings are these; those with `ignored` names need not be equal.
    """
    try:
        earlier = parse_json(text)
    except ValueError:
        earlier = {}
    if not isinstance(earlier, dict):
        earlier = {}
    version = earlier.get("deltavlm_journal")
    if version is not None and version != VERSION:
        raise OutputError(
            f"{path}: was written by another version of deltavlm (journal format {version}, this version "
            f"reads format {VERSION}); finish the run with that version, or add `resume=False`, which starts "
            "over"
        )
    keys = differing_keys({**earlier, KEY: None}, {**_as_read(settings), KEY: None})
    differs = sorted(key for key in keys if key.partition(".")[0] not in ignored)
    if differs:
        raise OutputError(
            f"{path}: is of a run with other settings ({', '.join(differs[:3])}); `resume=False` starts "
            "over, or choose another output"
        )
    with suppress(ValueError, TypeError, LookupError):
        return key_of(earlier)
    raise OutputError(f"{path}: its first line is damaged (key); `resume=False` starts over")


def differing_keys(first: Any, second: Any, prefix: str = "") -> Iterator[str]:
    """Keys at which two JSON values differ, such as `model.fingerprint`."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in {*first, *second}:
            name = f"{prefix}.{key}".removeprefix(".settings").strip(".")
            yield from differing_keys(first.get(key), second.get(key), name)
    elif not _are_equal(first, second):
        yield prefix or "format"


def _are_equal(first: Any, second: Any) -> bool:
    """Equality of JSON values in which NaN equals NaN."""
    if isinstance(first, dict) and isinstance(second, dict):
        return not any(differing_keys(first, second))
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_are_equal, first, second))
    are_nan = all(isinstance(value, float) and math.isnan(value) for value in (first, second))
    return are_nan or bool(first == second)
