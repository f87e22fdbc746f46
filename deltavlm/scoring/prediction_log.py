"""Prediction log: an append-only JSONL file of predictions, from which an interrupted run resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltavlm.errors import OutputError, WriteError
from deltavlm.files import JsonLines, lock, parse_json
from deltavlm.scoring.predictions import Prediction, PredictionKey, read_predictions

__all__ = ["PredictionLog", "open_prediction_log"]


@dataclass
class PredictionLog:
    """All predictions of a run, those of earlier, interrupted processes first."""

    run: str  # id of the run, see `inference.run_id`
    model: str  # label of the model
    predictions: list[Prediction] = field(default_factory=list)
    lines: JsonLines | None = field(default=None, repr=False)  # None: in memory only

    @property
    def keys(self) -> frozenset[PredictionKey]:
        """Keys of the logged predictions."""
        return frozenset(prediction.key for prediction in self.predictions)

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Add predictions, and write and sync them to the file, if any. Raises: WriteError."""
        self.predictions += predictions
        if self.lines is None or not predictions:
            return
        try:
            self.lines.append(prediction.record(model=self.model, run=self.run) for prediction in predictions)
        except OSError as error:
            raise WriteError(
                f"{self.lines.path}: writing failed ({error.strerror}); free disk space and run the same "
                "command again to resume"
            ) from error


@contextmanager
def open_prediction_log(
    path: Path | None, run: str, model: str, *, fresh: bool = False
) -> Iterator[PredictionLog]:
    """Open the log at `path` and read the predictions in it; `fresh` discards them; None: log in memory.

    An incomplete last line (the process was killed while writing) is removed.

    Raises:
        InputError: the file cannot be parsed.
        OutputError: it is not writable, locked by another process, or of another run, i.e. of another model,
            other settings of the model, or another dataset.
    """
    if path is None:
        yield PredictionLog(run, model)
        return
    with ExitStack() as stack:
        stack.enter_context(lock(path))
        try:
            lines = stack.enter_context(JsonLines.open(path, fresh=fresh))
            _check_run(path, run)
            predictions = read_predictions(path).predictions if path.stat().st_size else ()
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); choose another `output`"
            ) from error
        yield PredictionLog(run, model, list(predictions), lines)


def _check_run(path: Path, run: str) -> None:
    """Raises: OutputError when a line is not of this run."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                record: Any = parse_json(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or record.get("run") != run:
                model = record.get("model") if isinstance(record, dict) else None
                raise OutputError(
                    f"{path}, line {number}: not of this run, but of {model or 'an unknown model'} in another"
                    " run; start again with `overwrite=True`, or choose another `output`"
                )
