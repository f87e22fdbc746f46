"""Malicious checkpoints: no code runs, no large allocation, one error that names the file.

Pickles with code are in `tests/upstream/test_convert.py`.
"""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest

from deltavlm.errors import ModelError
from deltavlm.model import checkpoint
from deltavlm.model.checkpoint import WEIGHTS
from tests.tiny import tiny_checkpoint


def header(tensors: object, body: bytes = bytes(8)) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(
    begin: int = 0, end: int = 8, shape: tuple[int, ...] = (2,), dtype: str = "F32"
) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


CRAFTED = {
    "header larger than the file": struct.pack("<Q", 2**40) + b"{}",
    "header of nearly 2^64 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "tensors that overlap": header({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "a tensor beyond the end": header({"a": tensor(0, 2**40, (2**38,))}),
    "a shape that does not fit": header({"a": tensor(shape=(2**31, 2**31))}),
    "a shape that overflows": header({"a": tensor(shape=(2**63, 2))}),
    "an end before its start": header({"a": tensor(8, 0)}),
    "an unknown dtype": header({"a": tensor(dtype="X99")}),
    "no JSON": header(b"{not json"),
    "deep JSON": header(b'{"a":' * 100_000),
    "no header": b"",
    "a tensor of another model": header({"a": tensor()}),
}


@pytest.mark.parametrize("content", CRAFTED.values(), ids=CRAFTED)
def test_invalid_safetensors_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    tiny_checkpoint(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors") as caught:
        checkpoint.load(tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_pickle_named_safetensors_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(tmp_path / "PWNED"), "w"))

    tiny_checkpoint(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "PWNED").exists()
