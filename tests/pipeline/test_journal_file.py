"""Journal file: transactions count whole or not at all, and damaged blobs take their lines with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltavlm.errors import OutputError
from deltavlm.pipeline.journal.blobs import Blob
from deltavlm.pipeline.journal.file import (
    COMMIT,
    JournalFile,
    check_journal_header,
    files_in_commit,
    open_journal_file,
)
from deltavlm.pipeline.journal.header import KEY, VERSION, differing_keys

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
        pytest.raises(OutputError, match=rf"format {VERSION + 1}, .* add `resume=False`"),
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


@pytest.mark.parametrize("name", ["out.gpkg.journal.jsonl", "out.gpkg.journal.masks"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_what_lies_in_the_place_of_a_journal_is_not_written_to(path: Path, name: str, kind: str) -> None:
    """A name that can be foreseen, in a shared folder: a link there led to somebody's file."""
    others, place = path.parent / "others", path.with_name(name)
    if kind == "link":
        others.write_text("one\ntwo\n")
    if kind in ("link", "dangling link"):
        place.symlink_to(others)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    is_blobs = name.endswith(".masks")
    if not is_blobs:  # masks without a journal are of a run that was killed while it removed both
        with pytest.raises(OutputError, match=r"cannot be read and written \(is a (symbolic|pipe|folder)"):
            open_journal_file(path, HEADER, blobs=True).__enter__()
        with pytest.raises(OutputError):
            check_journal_header(path, HEADER)
        assert files_in_commit(path) == set()
    if kind == "folder":
        with pytest.raises(OutputError, match="cannot be read and written"):
            open_journal_file(path, HEADER, fresh=True, blobs=True).__enter__()
        return
    with open_journal_file(path, HEADER, fresh=True, blobs=True) as file:  # the link goes, the file stays
        file.write_blobs([Blob(b"mask")])
        file.append([chip(0, end=1)])
    assert not place.is_symlink()
    assert place.is_file()
    assert others.exists() == (kind == "link")
    assert kind != "link" or others.read_text() == "one\ntwo\n"


def test_a_blob_file_that_became_a_link_is_refused(path: Path) -> None:
    with open_journal_file(path, HEADER, blobs=True) as file:
        file.append([chip(0, end=1)])
    masks = path.with_suffix(".masks")
    masks.rename(path.parent / "others")
    masks.symlink_to(path.parent / "others")
    with pytest.raises(OutputError, match=r"journal\.masks: cannot be read and written \(is a symbolic link"):
        open_journal_file(path, HEADER, blobs=True).__enter__()


def test_a_setting_that_is_not_a_number_equals_itself(path: Path) -> None:
    """`--pairs` with `--nodata nan` refused its own fresh journal."""
    header = {
        "settings": {"nodata": float("nan"), "model": {"mean": [0.5, float("nan")], "top": float("inf")}}
    }
    with open_journal_file(path, header) as file:
        file.append([chip(0, end=1)])
    with open_journal_file(path, header) as file:
        assert lines_of(file) == [chip(0, end=1)]
    other = {"settings": {"nodata": 0.0, "model": {"mean": [0.5, 0.5], "top": float("-inf")}}}
    with pytest.raises(OutputError, match=r"other settings \(model\.mean, model\.top, nodata\)"):
        open_journal_file(path, other).__enter__()


def test_a_journal_has_a_key_of_its_own(path: Path) -> None:
    keys = []
    for fresh in (False, False, True):
        with open_journal_file(path, HEADER, fresh=fresh) as file:
            keys.append(file.key)
    assert keys[0] == keys[1] != keys[2]
    header = json.loads(path.read_text().splitlines()[0])
    for key in (None, 7, "no digits", ""):
        path.write_text(json.dumps({**header, KEY: key}) + "\n")
        with pytest.raises(OutputError, match=r"its first line is damaged \(key\); `resume=False`"):
            open_journal_file(path, HEADER).__enter__()


def test_the_header_is_checked_before_the_model_is_known(path: Path) -> None:
    check_journal_header(path, HEADER)
    with open_journal_file(path, HEADER) as file:
        file.append([chip(0, end=1)])
    known = {"settings": {"chip_px": 32}}
    check_journal_header(path, known, ignored=("model",))
    with pytest.raises(OutputError, match=r"other settings \(chip_px\)"):
        check_journal_header(path, {"settings": {"chip_px": 64}}, ignored=("model",))
    with pytest.raises(OutputError, match=r"other settings \(model\)"):
        check_journal_header(path, known)


def test_differing_keys_are_dotted() -> None:
    first = {"settings": {"a": {"b": 1, "c": 2}}, "d": 3}
    assert sorted(differing_keys(first, {"settings": {"a": {"b": 0, "c": 2}}, "e": 3})) == ["a.b", "d", "e"]
    assert list(differing_keys(first, first)) == []
    assert list(differing_keys(1, first)) == ["format"]
