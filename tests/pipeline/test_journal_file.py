"""Journal file: transactions count whole or not at all, and damaged blobs take their lines with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltavlm.errors import OutputError
from deltavlm.pipeline.journal_file import (
    COMMIT,
    VERSION,
    Blob,
    JournalFile,
    differing_keys,
    files_in_commit,
    open_journal_file,
)

HEADER = {"settings": {"model": {"name": "nano"}, "chip_px": 32}}


def chip(col: int, **fields: Any) -> dict[str, Any]:
    return {"pair": "", "row": 0, "col": col, "status": "answered", **fields}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.gpkg.journal.jsonl"


def lines_of(file: JournalFile) -> list[dict[str, Any]]:
    return [line for group in file.transactions() for _, line in group]


def test_lines_are_read_back_in_their_transactions(path: Path) -> None:
    with open_journal_file(path, HEADER) as file:
        file.append([{"pair": "", "record": {}}])
        offsets = file.append([chip(0), chip(32, end=2)])
        assert [file.read_at(offset) for offset in offsets] == [chip(0), chip(32, end=2)]
    with open_journal_file(path, HEADER) as file:
        groups = list(file.transactions())
        assert [[line for _, line in group] for group in groups] == [
            [{"pair": "", "record": {}}],
            [chip(0), chip(32, end=2)],
        ]
        assert [offset for offset, _ in groups[1]] == offsets
        file.clear()
        assert lines_of(file) == []
        file.unlink()
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    "tail",
    [
        json.dumps(chip(64)),  # without a line feed
        json.dumps(chip(64)) + "\n",  # a transaction without an end
        json.dumps(chip(64)) + "\nno JSON\n" + json.dumps(chip(96, end=2)) + "\n",
        '["a list"]\n',
        '{"row": 0}\n',  # a chip without its other keys
        "\0" * 40 + "\n",
    ],
)
def test_an_incomplete_tail_is_truncated(path: Path, tail: str) -> None:
    with open_journal_file(path, HEADER) as file:
        file.append([chip(0), chip(32, end=2)])
    content = path.read_bytes()
    path.write_bytes(content + tail.encode())
    with open_journal_file(path, HEADER) as file:
        assert lines_of(file) == [chip(0), chip(32, end=2)]
    assert path.read_bytes() == content


def test_chips_that_share_a_blob_store_it_once(path: Path) -> None:
    shared, other = Blob(b"mask"), Blob(b"another mask")
    with open_journal_file(path, HEADER, blobs=True) as file:
        file.write_blobs([shared, other, shared])
        file.write_blobs([shared])
        assert [file.read_blob(blob) for blob in (shared, other)] == [b"mask", b"another mask"]
    assert path.with_suffix(".masks").read_bytes() == b"maskanother mask"


@pytest.mark.parametrize(
    ("damage", "intact"),
    [
        (lambda data: data, 3),
        (lambda data: data[:-1], 2),
        (lambda data: data[:10] + bytes(len(data) - 10), 1),
        (lambda data: b"M" + data[1:], 0),
        (lambda data: b"", 0),
    ],
    ids=["none", "truncated", "zeros", "a byte", "empty"],
)
def test_lines_whose_blobs_are_damaged_are_truncated(
    path: Path, damage: Callable[[bytes], bytes], intact: int
) -> None:
    with open_journal_file(path, HEADER, blobs=True) as file:
        for number in range(3):
            blob = Blob(b"mask %d" % number)
            file.write_blobs([blob])
            file.append([chip(32 * number, mask=blob.address, end=1)])
    masks = path.with_suffix(".masks")
    masks.write_bytes(damage(masks.read_bytes()))
    for _ in range(2):  # they stay truncated
        with open_journal_file(path, HEADER, blobs=True) as file:
            assert [line["col"] for line in lines_of(file)] == [0, 32, 64][:intact]


def test_another_header_is_refused_by_the_keys_that_differ(path: Path) -> None:
    with open_journal_file(path, HEADER) as file:
        file.append([chip(0, end=1)])
    other = {"settings": {"model": {"name": "7b"}, "chip_px": 32}}
    with pytest.raises(OutputError, match=r"other settings \(model\.name\)"), open_journal_file(path, other):
        pass
    with open_journal_file(path, HEADER) as file:
        assert lines_of(file) == [chip(0, end=1)]
    with open_journal_file(path, other, fresh=True) as file:
        assert lines_of(file) == []


def test_an_unknown_version_is_refused(path: Path) -> None:
    path.write_text(json.dumps({"deltavlm_journal": VERSION + 1, **HEADER}) + "\n")
    content = path.read_bytes()
    with (
        pytest.raises(OutputError, match=rf"format {VERSION + 1}, .* add --no-resume"),
        open_journal_file(path, HEADER),
    ):
        pass
    assert path.read_bytes() == content


def test_files_in_commit_are_those_of_a_last_line(path: Path) -> None:
    assert files_in_commit(path) == set()
    with open_journal_file(path, HEADER) as file:
        assert files_in_commit(path) == set()
        file.commit([Path("m.tif")])
        assert files_in_commit(path) == {str(Path("m.tif").absolute())}
        assert lines_of(file) == [{COMMIT: [str(Path("m.tif").absolute())]}]
        file.append([chip(0, end=1)])
        assert files_in_commit(path) == set()


def test_differing_keys_are_dotted() -> None:
    first = {"settings": {"a": {"b": 1, "c": 2}}, "d": 3}
    assert sorted(differing_keys(first, {"settings": {"a": {"b": 0, "c": 2}}, "e": 3})) == ["a.b", "d", "e"]
    assert list(differing_keys(first, first)) == []
    assert list(differing_keys(1, first)) == ["format"]
