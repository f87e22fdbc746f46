"""Batches asked side by side: in order, no more than there are lanes, and over when the run is."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from deltavlm.config import shipped_config
from deltavlm.errors import RasterError
from deltavlm.geo.pair import RasterPair, open_pair
from deltavlm.model.interface import Reply
from deltavlm.pipeline.analyze import AnalyzeOptions, analyze
from deltavlm.pipeline.engine import Group, Here, Look
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.summary import Stages
from deltavlm.tasks.questions import load_questions
from tests.conftest import CHIP, Scene
from tests.pipeline.test_ahead import Kept
from tests.scripted_model import ScriptedModel

SPECS = load_questions(shipped_config("questions.yaml"))


@pytest.fixture(autouse=True)
def no_thread_stays() -> Generator[None, None, None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@dataclass
class Meeting(ScriptedModel):
    """The first two batches wait for each other: they pass only where both are asked at once."""

    met: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    entered: list[int] = field(default_factory=list)
    inside: int = 0
    most_inside: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def init_worker(self) -> None:
        self.entered.append(threading.get_ident())

    def encode(self, before: Any, after: Any) -> Any:
        with self.lock:
            self.inside += 1
            self.most_inside = max(self.inside, self.most_inside)
            first = len(self.batches) < 2
            self.batches.append(len(before))
        if first:
            self.met.wait(30)
        with self.lock:
            self.inside -= 1
        return list(zip(before, after, strict=True))


def groups(count: int, size: int = 2) -> Generator[Group, None, None]:
    for number in range(count):
        pictures = np.full((3, 4, 4), number, np.uint8)
        pixels = type("Pixels", (), {"before": pictures, "after": pictures})()
        yield Group([Look(None, "answered", 1.0, pixels) for _ in range(size)])  # type: ignore[arg-type]


def test_two_are_asked_at_once_and_come_in_their_order() -> None:
    model = Meeting(workers=2, script=lambda before, after, question: Reply(f"{before[0, 0, 0]}", 0.5))
    stages = Stages()
    found = list(Here(model).replies(groups(20), SPECS, AnalyzeOptions(batch_size=2), stages))
    assert [replies[0].said[0].text for _, replies, _ in found] == [str(number) for number in range(20)]  # type: ignore[union-attr]
    assert model.most_inside == 2
    assert len(model.entered) == len(set(model.entered)) == 2
    assert stages.encode > 0


def test_what_does_not_fit_is_told_to_those_behind() -> None:
    model = ScriptedModel(workers=2, most=1)
    found = list(Here(model).replies(groups(9), SPECS, AnalyzeOptions(batch_size=2), Stages()))
    assert [size for _, _, size in found] == [1] * 9
    assert model.batches[-2:] == [1, 1]


def answered(model: ScriptedModel, asked: Generator[Group, None, None], wanted: Exception) -> int:
    """How many groups come before the error."""
    count = 0
    replies = Here(model).replies(asked, SPECS, AnalyzeOptions(batch_size=2), Stages())
    with pytest.raises(type(wanted), match=str(wanted)):
        for count, _ in enumerate(replies, start=1):  # noqa: B007
            pass
    return count


def test_an_error_comes_out_and_the_lanes_end() -> None:
    def script(before: Any, after: Any, question: Any) -> Reply:
        if before[0, 0, 0] == 3:
            raise RuntimeError("broken")
        return Reply("no", 0.1)

    model = ScriptedModel(workers=2, script=script)
    assert answered(model, groups(50), RuntimeError("broken")) == 3


def test_what_was_read_before_reading_failed_is_answered() -> None:
    def failing() -> Generator[Group, None, None]:
        yield from groups(3)
        raise RasterError("cut off")

    assert answered(ScriptedModel(workers=2), failing(), RasterError("cut off")) == 3


def test_who_stops_listening_ends_the_lanes() -> None:
    model = ScriptedModel(workers=2)
    replies = Here(model).replies(groups(1000), SPECS, AnalyzeOptions(batch_size=2), Stages())
    next(replies)
    replies.close()
    assert len(model.batches) < 10


def test_a_run_in_two_lanes_is_that_in_one(scene: Scene) -> None:
    told: list[list[list[ChipResult]]] = []
    for lanes in (1, 2):
        book = Kept()
        with open_pair(RasterPair(*scene.args)) as reader:
            analyze(
                reader, ScriptedModel(workers=lanes), SPECS, book, AnalyzeOptions(chip_px=CHIP, batch_size=2)
            )
        told.append(book.groups)
    assert told[0] == told[1]
    assert len(told[0]) > 4
