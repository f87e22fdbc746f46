"""PredictionLog kept as they come, a line each, so that an interrupted run can be gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import lock
from deltavlm.scoring.predictions import Prediction, read_predictions

__all__ = ["PredictionLog", "open_prediction_log"]


@dataclass
class PredictionLog:
    """All answers so far, those of earlier runs first; `keep` adds to them and to the file, if any."""

    run: str
    model: str
    predictions: list[Prediction] = field(default_factory=list)
    path: Path | None = None
    stream: IO[str] | None = field(default=None, repr=False)

    def keep(self, found: Sequence[Prediction]) -> None:
        """Raises: WriteError."""
        self.predictions += found
        if self.stream is None or not found:
            return
        try:
            self.stream.write("".join(one.line(model=self.model, run=self.run) for one in found))
            self.stream.flush()
            os.fsync(self.stream.fileno())
        except OSError as error:
            raise WriteError(
                f"{self.path}: writing failed ({error.strerror}); make room, and the same command goes on "
                "from what it holds"
            ) from error


@contextmanager
def open_prediction_log(path: Path | None, run: str, model: str, afresh: bool) -> Iterator[PredictionLog]:
    """Predictions kept in `path`, gone on with if it is there, or begun `afresh`; without a path, in memory.

    A last line that was cut off while it was written is dropped.

    Raises:
        InputError: the file cannot be read.
        OutputError: it cannot be written, another run is writing it, or it holds answers of another model,
            another way of running it, or another set.
    """
    if path is None:
        yield PredictionLog(run, model)
        return
    with lock(path):
        yield from _kept(path, run, model, afresh)


def _kept(path: Path, run: str, model: str, afresh: bool) -> Iterator[PredictionLog]:
    known: list[Prediction] = []
    try:
        if afresh:
            path.unlink(missing_ok=True)
        if path.exists():
            _mend(path)
            _check(path, run)
            if path.stat().st_size:
                known, _ = read_predictions(path)
        stream = path.open("a", encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another -o") from error
    with stream:
        yield PredictionLog(run, model, known, path, stream)


def _mend(path: Path) -> None:
    with path.open("rb+") as stream:
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            stream.truncate(whole)


def _check(path: Path, run: str) -> None:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                record: Any = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or record.get("run") != run:
                by = record.get("model", "somebody else") if isinstance(record, dict) else "somebody else"
                raise OutputError(
                    f"{path}, line {number}: is an answer of {by} in another run; --overwrite begins anew, "
                    "or choose another -o"
                )
