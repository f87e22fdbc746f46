"""Files of any kind are written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import create_file
from deltavlm.geo import output_files
from deltavlm.geo.output_files import write_output


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_output(path, b"first", overwrite=False)
    assert path.read_bytes() == b"first"
    with pytest.raises(OutputError, match="exists already"):
        write_output(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    write_output(path, b"second", overwrite=True)
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target.html", tmp_path / "page.html"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_output(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(b"old")

    def full(scratch: Path) -> IO[bytes]:
        scratch.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_files, "create_file", full)
    with pytest.raises(WriteError, match="No space left on device"):
        write_output(path, b"new", overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_another_process_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"

    def slow(scratch: Path) -> IO[bytes]:
        path.write_bytes(b"theirs")
        return create_file(scratch)

    monkeypatch.setattr(output_files, "create_file", slow)
    with pytest.raises(OutputError, match=r"the results are in .*page\.new\.html"):
        write_output(path, b"ours", overwrite=False)
    assert path.read_bytes() == b"theirs"
    assert (tmp_path / "page.new.html").read_bytes() == b"ours"
