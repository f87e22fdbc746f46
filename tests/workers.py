"""Models for workers of a cluster, which import them by name: one that says what it is told, and two that
end their process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltavlm.model.config import RuntimeOptions
from tests.scripted_model import ScriptedModel
from tests.text_reader import text_reader


def scripted(name: str, runtime: RuntimeOptions, threads: int) -> ScriptedModel:
    return ScriptedModel()


def by_name(name: str, runtime: RuntimeOptions, threads: int) -> ScriptedModel:
    """`text:` for a model that reads text, else the scripted one."""
    return text_reader() if name.startswith("text:") else ScriptedModel()


def small(name: str, runtime: RuntimeOptions, threads: int) -> ScriptedModel:
    """Into whose memory one pair fits at a time."""
    return ScriptedModel(most=1)


class Mortal(ScriptedModel):
    """Dies of a pair whose `after` has a white middle; only once where a file may remember it."""

    once: Path | None = None

    def encode(self, before: NDArray[np.uint8], after: NDArray[np.uint8], contexts: Any = ()) -> Any:
        if (after[:, :, 8:18, 6:16] == 255).all(axis=(1, 2, 3)).any() and not (
            self.once and self.once.exists()
        ):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(before, after)


def mortal(name: str, runtime: RuntimeOptions, threads: int) -> Mortal:
    return Mortal()


def dying_once(name: str, runtime: RuntimeOptions, threads: int) -> Mortal:
    model = Mortal()
    model.once = Path(os.environ["DELTAVLM_TEST_ONCE"])
    return model
