"""Files are written whole or not at all, and files of JSON lines survive a killed process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from deltavlm.errors import OutputError
from deltavlm.files import (
    JsonLines,
    atomic_file,
    atomic_folder,
    create_file,
    lock,
    open_regular,
    refuse_existing,
    scratch_name,
    staged_folder,
    write_atomic,
)


class Failure(Exception):
    pass


def fail_after_writing(scratch: Path) -> None:
    scratch.write_text("half")
    raise Failure


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_atomic_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.tif"
    path.write_text("old")
    with atomic_file(path) as scratch:
        assert (scratch.parent, scratch.suffix) == (tmp_path, ".tif")
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["out.tif"]


def test_an_atomic_file_is_left_alone_on_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(Failure), atomic_file(path, suffix=".part") as scratch:
        fail_after_writing(scratch)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.json"]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_atomic(link, "grüße\r\n")
    assert link.is_symlink()
    assert target.read_bytes() == "grüße\r\n".encode()
    assert names(tmp_path / "there") == ["real.txt"]
    write_atomic(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"


def test_an_atomic_folder_appears_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "model"
    with atomic_folder(folder) as scratch:
        (scratch / "weights").write_text("1")
        assert not folder.exists()
    assert names(folder) == ["weights"]
    assert names(tmp_path / "a") == ["model"]
    with pytest.raises(Failure), atomic_folder(tmp_path / "other") as scratch:
        fail_after_writing(scratch / "weights")
    with pytest.raises(OSError, match="not empty"), atomic_folder(folder) as scratch:
        (scratch / "weights").write_text("2")
    assert (folder / "weights").read_text() == "1"
    assert names(tmp_path) == ["a"]


def test_a_staged_folder_is_merged_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for content in ("1", "2"):
        with staged_folder(folder) as scratch:
            assert scratch.parent == (folder if content == "2" else tmp_path)
            (scratch / "images").mkdir()
            (scratch / "images" / f"{content}.png").write_text(content)
            (scratch / "records.json").write_text(content)
    assert names(folder) == ["images", "records.json"]
    assert names(folder / "images") == ["1.png", "2.png"]
    assert (folder / "records.json").read_text() == "2"


def test_a_staged_folder_leaves_nothing_on_an_exception(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "set"
    with pytest.raises(Failure), staged_folder(folder) as scratch:
        fail_after_writing(scratch / "records.json")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write into"), staged_folder(tmp_path / "file" / "set"):
        pass
    assert names(tmp_path) == ["file"]


def test_existing_files_are_refused(tmp_path: Path) -> None:
    refuse_existing([tmp_path / "a"])
    (tmp_path / "b").touch()
    with pytest.raises(OutputError, match="b exists; give another folder, or `overwrite=True`"):
        refuse_existing([tmp_path / "a", tmp_path / "b"])


def appended(path: Path, content: str) -> list[str]:
    """Lines of a file with `content` after one more record is appended."""
    path.write_text(content)
    with JsonLines.open(path) as lines:
        lines.append([{"n": 9}])
    return path.read_text().splitlines()


def test_an_incomplete_last_line_is_removed(tmp_path: Path) -> None:
    assert appended(tmp_path / "a", '{"n": 1}\n{"n": 2}\n{"n":') == ['{"n": 1}', '{"n": 2}', '{"n": 9}']
    assert appended(tmp_path / "b", '{"n":') == ['{"n": 9}']
    assert appended(tmp_path / "c", "") == ['{"n": 9}']


def test_a_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    assert appended(tmp_path / "a", '{"n": 1}\n{"n": 2}') == ['{"n": 1}', '{"n": 2}', '{"n": 9}']
    assert appended(tmp_path / "b", '{"n": 1}') == ['{"n": 1}', '{"n": 9}']


def test_lines_longer_than_a_block_are_repaired(tmp_path: Path) -> None:
    first, last = (json.dumps({"mask": char * 50_000}) for char in "ab")
    assert appended(tmp_path / "a", f"{first}\n{last}") == [first, last, '{"n": 9}']
    assert appended(tmp_path / "b", f"{first}\n{last[:-1]}") == [first, '{"n": 9}']


def test_records_are_read_at_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    records = [{"id": "größe"}, {"id": "b", "list": [1, 2]}, {"id": "not UTF-8: \udcff"}]
    with JsonLines.open(path) as lines:
        offsets = lines.append(records[:1]) + lines.append(records[1:], sync=False)
        assert [lines.read_at(offset) for offset in offsets] == records
        assert lines.append([{"id": "c"}]) == [path.stat().st_size - len('{"id": "c"}\n')]
    with JsonLines.open(path, fresh=True) as lines:
        assert path.read_bytes() == b""


def test_a_new_file_is_written_nowhere_else(tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    link.symlink_to(other)
    for taken in (link, tmp_path):
        with pytest.raises(FileExistsError):
            create_file(taken)
    assert not other.exists()
    with create_file(other) as stream:
        stream.write(b"one")
        assert stream.seek(0) == 0
        assert stream.read() == b"one"
    with pytest.raises(FileExistsError):
        create_file(other)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    other, link, pipe = (tmp_path / name for name in ("other", "link", "pipe"))
    other.write_text("one")
    link.symlink_to(other)
    os.mkfifo(pipe)
    kinds = {link: "is a symbolic link", pipe: "is a pipe or a device", tmp_path: "is a folder"}
    for path, problem in {**kinds, Path(os.devnull): "is a pipe or a device"}.items():
        for writable in (False, True):
            with pytest.raises(OSError, match=problem):
                open_regular(path, writable=writable)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    with open_regular(other, writable=True) as stream:
        stream.write(b"two")
    with open_regular(other) as stream:
        assert stream.read() == b"two"


def test_json_lines_follow_a_link_but_read_no_pipe(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "lines")
    with JsonLines.open(link) as lines:
        lines.append([{"a": 1}])
    assert (tmp_path / "lines").read_text() == '{"a": 1}\n'
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="is a pipe or a device"), JsonLines.open(pipe):
        pass


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_lies_in_the_place_of_a_lock_stays_or_goes(tmp_path: Path, kind: str) -> None:
    """It is never written to, whoever it belongs to."""
    place, other = tmp_path / ".out.gpkg.lock", tmp_path / "other"
    other.write_text("one")
    if kind == "link":
        place.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with suppress(OutputError), lock(tmp_path / "out.gpkg"):
        pass
    assert other.read_text() == "one"


def test_one_process_holds_a_lock(tmp_path: Path) -> None:
    output = tmp_path / "out.gpkg"
    with lock(output):
        script = (
            "import sys; from pathlib import Path; from deltavlm.files import lock\n"
            "with lock(Path(sys.argv[1])): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", script, str(output)], capture_output=True, text=True, check=False
        )
    assert other.returncode == 1
    assert "another run is writing it" in other.stderr
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_scratch_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    output = tmp_path / "out.gpkg"
    foreign = tmp_path / scratch_name(Path("other.gpkg"))
    foreign.touch()
    script = (
        "import os, signal, sys; from pathlib import Path; from deltavlm.files import atomic_file, lock\n"
        "path = Path(sys.argv[1])\n"
        "with lock(path), atomic_file(path) as scratch:\n"
        "    scratch.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(output)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3  # the lock, the scratch file, and that of another output
    with lock(output):
        assert names(tmp_path) == sorted([foreign.name, ".out.gpkg.lock"])
    assert names(tmp_path) == [foreign.name]
