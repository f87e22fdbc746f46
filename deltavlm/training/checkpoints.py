"""What a run leaves on disk, each file whole or not there.

A run's folder holds config.yaml, log.jsonl, for each phase NAME.pt (all that goes on from there: weights,
their running mean, optimiser, step) and NAME.best.pt (the weights that were best by the metric), the caches
of drawn scenes, the tokenizers, and at the end the model folder `model`.

The position in the data and the random numbers are functions of seed and step, so the step is all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltavlm.config import dump, from_mapping, read_yaml, to_mapping
from deltavlm.errors import InputError, ModelError, OutputError, WriteError
from deltavlm.training.config import TrainConfig, differences

CONFIG, LOG = "config.yaml", "log.jsonl"


def write_whole(path: Path, write: Any) -> None:
    """`write(scratch)`, then the scratch file in the place of `path`. Raises: WriteError."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        write(scratch)
        scratch.replace(path)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        scratch.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise WriteError(f"cannot write {path}: {reason}; make room, and --resume goes on") from error


def save_state(out: Path, name: str, state: Mapping[str, Any]) -> None:
    write_whole(out / f"{name}.pt", lambda scratch: torch.save(dict(state), scratch))


def load_state(path: Path) -> dict[str, Any]:
    """Raises: ModelError naming the file."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # zip, pickle and torch have each their own
        raise ModelError(
            f"cannot read {path}: {str(error).splitlines()[0]}; remove it to begin the phase anew"
        ) from error
    return state


def final_weights(out: Path, name: str, *, best: bool) -> dict[str, Tensor]:
    """What a phase leaves to the next: tensors of the model by name, all or those that it could change.

    Raises: ModelError when it has left no checkpoint.
    """
    path = out / f"{name}.best.pt"
    if not (best and path.is_file()):
        path = out / f"{name}.pt"
    if not path.is_file():
        raise ModelError(f"{out} has no checkpoint of phase {name!r}; run it first")
    state = load_state(path)
    found = state.get("mean") or state["weights"]
    return {key.removeprefix("model."): tensor for key, tensor in found.items() if key.startswith("model.")}


def open_folder(out: Path, config: TrainConfig, *, resume: bool) -> None:
    """Makes a run's folder, or checks that it holds this run.

    Raises:
        OutputError: there is a run, and it is not to be gone on with; or the folder cannot be made.
        InputError: there is none to go on with, or it has another configuration.
    """
    path = out / CONFIG
    if not resume:
        if path.exists():
            raise OutputError(f"{out} holds a run; --resume goes on with it, or choose another -o")
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda scratch: scratch.write_text(dump(config), encoding="utf-8"))
        except OSError as error:
            raise OutputError(f"cannot make {out}: {error.strerror}; choose another -o") from error
        return
    if not path.exists():
        raise InputError(f"{out} holds no run to go on with; leave --resume out")
    old = from_mapping(TrainConfig, read_yaml(path), source=str(path))
    if changed := differences(to_mapping(old), to_mapping(config)):
        raise InputError(
            f"the run in {out} has another configuration: {', '.join(changed[:4])}; give that, or another -o"
        )


class Log:
    """One JSON object a line, and TensorBoard's files where that package is installed."""

    def __init__(self, out: Path, phase: str, start: int) -> None:
        self.path, self.phase = out / LOG, phase
        self.board: Any = None
        if self.path.exists():  # lines of steps that are done again are dropped
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if not self._again(line, start)]
            write_whole(self.path, lambda scratch: scratch.write_text("".join(kept), encoding="utf-8"))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # not installed, or not whole: log.jsonl has all of it
            return
        self.board = SummaryWriter(str(out / "tensorboard" / phase), purge_step=start + 1)

    def _again(self, line: str, start: int) -> bool:
        try:
            known = json.loads(line)
            return bool(known["phase"] == self.phase and known["step"] > start)
        except (ValueError, KeyError, TypeError):
            return True  # cut off while it was written

    def write(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """kind: "train" or "validation". Raises: WriteError."""
        record = {"phase": self.phase, "step": step, "kind": kind, **numbers}
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise WriteError(
                f"cannot write {self.path}: {error.strerror}; make room, and --resume goes on"
            ) from error
        if self.board is not None:
            for key, value in numbers.items():
                self.board.add_scalar(f"{kind}/{key}", value, step)
            self.board.flush()

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
