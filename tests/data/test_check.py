"""Check of a copy of a set: missing, broken and wrongly sized files are counted and reported."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deltavlm.data.changechat import NAME, RELEASED_RECORDS, write_chip_set
from deltavlm.data.check import CheckReport, check_dataset
from deltavlm.data.synthetic import SceneOptions, make_scene
from deltavlm.errors import InputError
from tests.data.records import caption_record, imti_record, record


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    write_chip_set(
        folder, "test", [(f"test_{s}", make_scene(s, 64, 64, SceneOptions(change=1.0))) for s in (1, 2)]
    )
    return folder


@pytest.fixture
def copy(rendered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rendered, tmp_path / "copy"))


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def fault_lines(report: CheckReport) -> list[str]:
    return [f"{problem.kind} {problem.location}: {problem.message}" for problem in report.faults]


@pytest.mark.parametrize("full", [False, True])
def test_a_complete_copy_has_no_faults(copy: Path, full: bool) -> None:
    report = check_dataset(copy, size_px=64, full=full)
    assert (report.faults, report.notes) == ((), ())
    assert {file.name: dict(file.tasks) for file in report.files if "open" not in file.name} == {
        "synthetic_test.json": {"caption": 2},
        "synthetic_test_binary.json": {"change": 2},
        "synthetic_test_count.json": {"count": 2},
        "synthetic_test_loc.json": {"location": 2},
        "synthetic_test_dialog.json": {"dialogue": 2},
    }
    assert {file.expected for file in report.files} == {None}
    assert report.images.named == 4


def test_every_split_is_read(copy: Path) -> None:
    write_chip_set(copy, "train", [("train_0", make_scene(3, 64, 64))])
    names = {file.name: file.records for file in check_dataset(copy, size_px=64).files}
    assert names["synthetic_train.json"] > 8
    assert len(names) == 7


def test_unusable_images_are_reported(copy: Path) -> None:
    folder = copy / "images" / "test" / "A"
    (folder / "test_1.png").unlink()
    content = (folder / "test_2.png").read_bytes()
    (folder / "test_2.png").write_bytes(content[: len(content) // 2])
    (copy / "images" / "test" / "B" / "test_1.png").write_bytes(b"<html>")
    Image.fromarray(np.zeros((64, 32, 3), np.uint8)).save(copy / "images" / "test" / "B" / "test_2.png")
    report = check_dataset(copy, size_px=64)
    assert (report.images.missing, report.images.unreadable, report.images.other_size) == (1, 1, 1)
    text = "\n".join(fault_lines(report))
    assert "image test/A/test_1.png" in text
    assert "test_1.png is missing" in text
    assert "test_1.png cannot be read: not an image" in text
    assert "test_2.png is 32 x 64 px, not 64 x 64" in text
    full_report = check_dataset(copy, size_px=64, full=True)
    assert full_report.images.unreadable == 2  # the truncated image has a valid header
    assert check_dataset(copy).images.other_size == 2


def test_broken_files_and_records_are_reported(copy: Path) -> None:
    write(copy / "synthetic_test_count.json", "[{]")
    write(copy / "synthetic_test_loc.json", {"a": 1})
    write(copy / "synthetic_val.json", [])
    path = copy / "synthetic_test_binary.json"
    write(path, [*json.loads(path.read_text()), record(changeflag=7), record(id=None)])
    report = check_dataset(copy, size_px=64)
    text = fault_lines(report)
    assert len(text) == 5
    assert any("synthetic_test_count.json is not valid JSON: " in line for line in text)
    assert any("synthetic_test_loc.json: expected a JSON list" in line for line in text)
    assert any("synthetic_val.json holds no records" in line for line in text)
    assert any("record synthetic_test_binary.json, record 3: changeflag is 7" in line for line in text)
    records = {file.name: (file.records, sum(file.tasks.values())) for file in report.files}
    assert records["synthetic_test_binary.json"] == (4, 2)
    assert records["synthetic_test_count.json"] == (0, 0)


def test_odd_answers_are_notes_and_not_faults(tmp_path: Path) -> None:
    def asked(name: str, answer: str) -> dict[str, Any]:
        messages = [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]
        return record(id=name, conversations=messages)

    write(tmp_path / "s_test_binary.json", [asked("x", "no"), asked("y", "hm"), asked("z", "yes")])
    write(tmp_path / "s_test_count.json", [asked("x", "many"), asked("y", "2 new roads"), asked("y", "no")])
    write(tmp_path / "s_test_loc.json", [asked("x", "roads ['up'] buildings []")])
    write(tmp_path / "other.json", {})
    report = check_dataset(tmp_path)
    notes = {f"{note.kind} {note.location}" for note in report.notes}
    assert notes == {
        "reference change x",
        "reference change y",
        "reference count x",
        "reference location x",
        "duplicate count y",
        "file other.json",
    }
    assert {fault.kind for fault in report.faults} == {"image"}


def test_the_records_of_the_released_set_are_counted(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for name in list(RELEASED_RECORDS)[2:]:
        content = [caption_record()] if name == f"{NAME}_test.json" else [record()]
        write(tmp_path / "annotations" / name, content)
    text = fault_lines(check_dataset(tmp_path))
    assert any("changechat_105k_train.json of the released set is missing" in line for line in text)
    assert any(
        "changechat_105k_test_open.json has 1 record, the released one has 7527" in line for line in text
    )
    kinds = [line.split()[0] for line in text]
    assert kinds.count("file") == 2 + 6
    assert sum(RELEASED_RECORDS.values()) == 2 * 87_935 + 17_172


def test_a_path_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path / "secret.png", "x")
    set_folder = tmp_path / "set"
    set_folder.mkdir()
    write(
        set_folder / "s_test_binary.json",
        [record(image=["../../secret.png", str(outside)]), record(id="2", image=["a\0b", "c" * 5000])],
    )
    report = check_dataset(set_folder)
    assert report.images.named == 4
    assert len(report.faults) == 4
    assert sum("leads out of the folder" in line for line in fault_lines(report)) == 2


def test_changeimti(tmp_path: Path) -> None:
    folder = tmp_path / "test_task_data"
    folder.mkdir()
    write(folder / "count_road.json", [imti_record("x.png", "q", "1")])
    write(folder / "count_build.json", [imti_record("x.png", "q", "2")])
    write(folder / "loc_road.json", "[")
    report = check_dataset(tmp_path)
    assert [(file.name, file.records) for file in report.files] == [
        ("test_task_data/count_road.json", 1),
        ("test_task_data/count_build.json", 1),
        ("test_task_data/loc_road.json", 0),
    ]
    assert report.images.missing == 2
    assert any("loc_road.json is not valid JSON" in line for line in fault_lines(report))


def test_progress_counts_every_image(copy: Path) -> None:
    updates: list[int] = []

    def count_progress(total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        assert total == 4
        return nullcontext(lambda completed, note: updates.append(completed))

    check_dataset(copy, size_px=64, count_progress=count_progress)
    assert updates == [1, 2, 3, 4]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_an_image_without_read_permission_is_reported(copy: Path) -> None:
    (copy / "images" / "test" / "A" / "test_1.png").chmod(0)
    assert check_dataset(copy, size_px=64).images.unreadable == 1


def test_a_folder_without_a_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        check_dataset(tmp_path / "nosuch")
    with pytest.raises(InputError, match=r"SET_SPLIT\.json.*data fetch changechat"):
        check_dataset(tmp_path)
