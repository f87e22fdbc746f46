"""Files in a run's folder: training state of each phase, configuration, log; written atomically.

config.yaml, log.jsonl, for each phase NAME.pt (to resume: weights, their EMA, optimizer, step) and
NAME.best.pt (weights with the best metric), the scene caches, the tokenizers, and at the end the model folder
`model`.

The position in the data and the random numbers are functions of seed and step, so the step stands for both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from deltavlm.config import dump, from_mapping, read_yaml, to_mapping
from deltavlm.errors import InputError, ModelError, OutputError, WriteError
from deltavlm.files import JsonLines, atomic_file, remove_scratch_files, write_atomic
from deltavlm.training.config import TrainConfig, config_differences

CONFIG, LOG = "config.yaml", "log.jsonl"


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk into a WriteError that names the file and how to continue."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise WriteError(f"cannot write {path}: {reason}; free some space, then use `resume=True`") from error


def save_state(out: Path, name: str, state: Mapping[str, Any]) -> None:
    """Write `out`/NAME.pt. Raises: WriteError."""
    path = out / f"{name}.pt"
    with wrap_write_errors(path), atomic_file(path) as scratch:
        torch.save(dict(state), scratch)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state to the CPU. Raises: ModelError naming the file."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # zip, pickle and torch each raise their own
        raise ModelError(
            f"cannot read {path}: {str(error).splitlines()[0]}; remove it to restart the phase"
        ) from error
    return state


def final_weights(out: Path, name: str, *, best: bool) -> dict[str, Tensor]:
    """Weights that a phase passes on: the best or else the last ones, averaged (EMA) where the run averages.

    Tensors of the model by name: all of it, or only those that the phase could change.

    Raises: ModelError when the phase has no checkpoint.
    """
    path = out / f"{name}.best.pt"
    if not (best and path.is_file()):
        path = out / f"{name}.pt"
    if not path.is_file():
        raise ModelError(f"{out} has no checkpoint of phase {name!r}; run it first")
    state = load_state(path)
    weights = state.get("mean") or state["weights"]
    return {key.removeprefix("model."): tensor for key, tensor in weights.items() if key.startswith("model.")}


def open_folder(out: Path, config: TrainConfig, *, resume: bool) -> None:
    """Create a run's folder with its configuration; to resume, check that it holds this run.

    Raises:
        OutputError: the folder holds a run and `resume` is off, or it cannot be created.
        InputError: there is no run to resume, or it has another configuration.
    """
    path = out / CONFIG
    if not resume:
        if path.exists():
            raise OutputError(f"{out} holds a run; resume it with `resume=True`, or choose another `output`")
        if states := [name for name in config.phases if (out / f"{name}.pt").exists()]:
            raise OutputError(
                f"{out} holds {states[0]}.pt without the {CONFIG} of its run; choose another `output`"
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot create {out}: {error.strerror}; choose another `output`") from error
        with wrap_write_errors(path):
            write_atomic(path, dump(config))
        return
    if not path.exists():
        raise InputError(f"{out} holds no run to resume; leave out `resume=True`")
    old = from_mapping(TrainConfig, read_yaml(path), source=str(path))
    if differences := config_differences(to_mapping(old), to_mapping(config)):
        raise InputError(
            f"the run in {out} has another configuration: {', '.join(differences[:4])}; "
            "use that one, or another `output`"
        )
    for name in config.phases:  # of a process that was killed while it saved
        for state in (out / f"{name}.pt", out / f"{name}.best.pt"):
            remove_scratch_files(state)


def logged_precisions(out: Path) -> list[str]:
    """Precisions in which the logged steps of a run were computed, in the order of their first use."""
    try:
        lines = (out / LOG).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    precisions: dict[str, None] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # incomplete, or of a version that did not log it
            precisions[str(json.loads(line)["precision"])] = None
    return list(precisions)


class TrainLog:
    """Log of a phase: JSON lines, and TensorBoard files where that package is installed.

    Lines of steps after `step`, which are run again, are removed. Lines of training name the `precision` of
    the computation, which may change where a run is resumed on another machine.
    """

    def __init__(self, out: Path, phase: str, step: int, precision: str) -> None:
        self.path, self.phase, self.precision = out / LOG, phase, precision
        self._open_files = ExitStack()
        self._board: Any = None
        with wrap_write_errors(self.path):
            if self.path.exists():
                lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
                write_atomic(self.path, "".join(line for line in lines if not self._is_rerun(line, step)))
            self._lines = self._open_files.enter_context(JsonLines.open(self.path))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # missing or broken: log.jsonl has the same numbers
            return
        self._board = SummaryWriter(str(out / "tensorboard" / phase), purge_step=step + 1)

    def _is_rerun(self, line: str, step: int) -> bool:
        try:
            record = json.loads(line)
            return bool(record["phase"] == self.phase and record["step"] > step)
        except (ValueError, KeyError, TypeError):
            return True  # incomplete: the process was killed while it wrote

    def write(self, step: int, kind: Literal["train", "validation"], metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step. Raises: WriteError."""
        with wrap_write_errors(self.path):
            record = {"phase": self.phase, "step": step, "kind": kind, **metrics}
            self._lines.append([record | ({"precision": self.precision} if kind == "train" else {})])
        if self._board is not None:
            for key, value in metrics.items():
                self._board.add_scalar(f"{kind}/{key}", value, step)
            self._board.flush()

    def close(self) -> None:
        self._open_files.close()
        if self._board is not None:
            self._board.close()
