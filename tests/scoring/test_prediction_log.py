"""Prediction log: saved, resumed, repaired, and never mixed with another run."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltavlm.errors import OutputError, WriteError
from deltavlm.scoring.prediction_log import open_prediction_log
from deltavlm.scoring.predictions import Prediction, read_predictions

FIRST = Prediction("a", "change", ("yes",), 0.75)
SECOND = Prediction("a", "dialogue", ("yes", "2 roads"), history="reference")


def test_a_log_resumes_behind_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_prediction_log(path, "run", "model") as log:
        log.append([FIRST])
    with path.open("a") as stream:
        stream.write('{"id": "b", "ta')  # killed while writing
    with open_prediction_log(path, "run", "model") as log:
        assert log.predictions == [FIRST]
        assert log.keys == {("change", "a", "own")}
        log.append([SECOND])
    assert read_predictions(path).predictions == (FIRST, SECOND)
    assert len(path.read_bytes().splitlines()) == 2


def test_a_log_in_memory_writes_no_file(tmp_path: Path) -> None:
    with open_prediction_log(None, "run", "model") as log:
        log.append([FIRST])
        assert log.predictions == [FIRST]
    assert list(tmp_path.iterdir()) == []


def test_a_log_of_another_run_is_refused_unless_fresh(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_prediction_log(path, "run", "model 1") as log:
        log.append([FIRST])
    with (
        pytest.raises(OutputError, match=r"line 1: not of this run, but of model 1.*`overwrite=True`"),
        open_prediction_log(path, "another", "model 2"),
    ):
        pass
    assert read_predictions(path).predictions == (FIRST,)
    with open_prediction_log(path, "another", "model 2", fresh=True) as log:
        assert log.predictions == []
    assert path.read_bytes() == b""


def test_a_full_disk_is_a_write_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with open_prediction_log(tmp_path / "log.jsonl", "run", "model") as log:
        assert log.lines is not None
        monkeypatch.setattr(log.lines, "append", fail)
        with pytest.raises(WriteError, match=r"No space left on device.*to resume"):
            log.append([FIRST])
