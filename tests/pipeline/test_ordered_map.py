"""Batches asked in parallel: in order, no more than there are workers, whose threads end with the run."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from deltavlm.errors import RasterError
from deltavlm.model.interface import Reply
from deltavlm.pipeline.engine import ChipBatch, LoadedChip, LocalEngine
from deltavlm.pipeline.inference import InferenceOptions
from deltavlm.pipeline.results import ChipResult
from tests.conftest import Scene
from tests.jobs import QUESTIONS, MemoryStore, analyzed, single_job
from tests.scripted_model import ScriptedModel

OPTIONS = InferenceOptions(QUESTIONS)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Generator[None, None, None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@dataclass
class ParallelModel(ScriptedModel):
    """Model whose first two batches wait for each other: they pass only where both are asked at once."""

    met: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    entered: list[int] = field(default_factory=list)
    inside: int = 0
    most_inside: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def init_worker(self) -> None:
        self.entered.append(threading.get_ident())

    def encode(self, before: Any, after: Any, contexts: Any = ()) -> Any:
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


def batches(count: int, size: int = 2) -> Generator[ChipBatch, None, None]:
    for number in range(count):
        image = np.full((3, 4, 4), number, np.uint8)
        pixels = type("Pixels", (), {"before": image, "after": image})()
        yield ChipBatch([LoadedChip(None, "answered", 1.0, pixels) for _ in range(size)])  # type: ignore[arg-type]


def test_two_batches_are_asked_at_once_and_yielded_in_order() -> None:
    model = ParallelModel(workers=2, script=lambda before, after, question: Reply(f"{before[0, 0, 0]}", 0.5))
    results = [replies for _, replies in LocalEngine(model).infer(batches(20), OPTIONS, 2)]
    texts = [replies.chips[0].replies[0].text for replies in results]  # type: ignore[union-attr]
    assert texts == [str(number) for number in range(20)]
    assert model.most_inside == 2
    assert len(model.entered) == len(set(model.entered)) == 2
    assert all(replies.times.encode > 0 for replies in results)


def test_the_smaller_batch_size_is_passed_to_later_batches() -> None:
    model = ScriptedModel(workers=2, most=1)
    sizes = [replies.batch_size for _, replies in LocalEngine(model).infer(batches(9), OPTIONS, 2)]
    assert sizes == [1] * 9
    assert model.batches[-2:] == [1, 1]


def count_before(error: Exception, model: ScriptedModel, items: Generator[ChipBatch, None, None]) -> int:
    """Number of batches that are yielded before the error."""
    count = 0
    replies = LocalEngine(model).infer(items, OPTIONS, 2)
    with pytest.raises(type(error), match=str(error)):
        for count, _ in enumerate(replies, start=1):  # noqa: B007
            pass
    return count


def test_an_error_is_raised_and_the_workers_end() -> None:
    def script(before: Any, after: Any, question: Any) -> Reply:
        if before[0, 0, 0] == 3:
            raise RuntimeError("broken")
        return Reply("no", 0.1)

    model = ScriptedModel(workers=2, script=script)
    assert count_before(RuntimeError("broken"), model, batches(50)) == 3


def test_what_was_read_before_reading_failed_is_answered() -> None:
    def failing() -> Generator[ChipBatch, None, None]:
        yield from batches(3)
        raise RasterError("cut off")

    assert count_before(RasterError("cut off"), ScriptedModel(workers=2), failing()) == 3


def test_closing_the_generator_ends_the_workers() -> None:
    model = ScriptedModel(workers=2)
    replies = LocalEngine(model).infer(batches(1000), OPTIONS, 2)
    next(replies)
    replies.close()
    assert len(model.batches) < 10


def test_a_run_with_two_workers_equals_that_with_one(scene: Scene) -> None:
    stored: list[list[list[ChipResult]]] = []
    for workers in (1, 2):
        store = MemoryStore()
        analyzed(single_job(scene, batch_size=2), ScriptedModel(workers=workers), store)
        stored.append(store.batches)
    assert stored[0] == stored[1]
    assert len(stored[0]) > 4
