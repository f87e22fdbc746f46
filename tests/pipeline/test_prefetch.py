"""Prefetch: in order, bounded, and its thread ends with the run, however that ends."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from deltavlm.errors import RasterError
from deltavlm.geo.pair import PairReader, ReadOptions
from deltavlm.pipeline import reading
from deltavlm.pipeline.analyze import analyze_chips
from deltavlm.pipeline.engine import LocalEngine
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.prefetch import prefetch
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.run_result import RunResult
from deltavlm.pipeline.summary import StageTimes
from tests.conftest import CHIP, Scene, write_tiled
from tests.jobs import MemoryStore, analyzed, list_job, single_job
from tests.rasters import spoil
from tests.scripted_model import ScriptedModel


class Made:
    """Numbers, and how many of them were made; `closed` when their generator has ended."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.count, self.error = count, error
        self.last = -1
        self.closed = False
        self.reached = threading.Event()

    def numbers(self, wait_for: int | None = None) -> Generator[int, None, None]:
        try:
            for number in range(self.count):
                self.last = number
                if number == wait_for:
                    self.reached.set()
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


@pytest.fixture(autouse=True)
def no_thread_stays() -> Generator[None, None, None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_items_come_in_order_and_the_thread_ends() -> None:
    made = Made(100)
    stages = StageTimes()
    with prefetch(made.numbers(), 3, stages) as items:
        assert list(items) == list(range(100))
    assert made.closed
    assert stages.read > 0
    assert stages.waited > 0


def test_no_more_are_made_than_may_wait() -> None:
    made = Made(100)
    with prefetch(made.numbers(wait_for=4), 3, StageTimes()) as items:
        assert next(items) == 0
        assert made.reached.wait(10)  # 1, 2 and 3 wait to be taken, 4 for room
        for taken in range(1, 50):
            assert next(items) == taken
            assert made.last <= taken + 4
    assert made.last < 60


@pytest.mark.parametrize("error", [RasterError("broken there"), MemoryError()])
def test_an_error_comes_out_where_it_happened(error: Exception) -> None:
    with prefetch(Made(5, error).numbers(), 9, StageTimes()) as items:
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(type(error)) as failure:
            next(items)
    assert failure.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_end_from_outside_ends_the_thread(error: type[BaseException]) -> None:
    made = Made(1000)

    def ended() -> None:
        with prefetch(made.numbers(), 2, StageTimes()) as items:
            next(items)
            raise error

    with pytest.raises(error):
        ended()
    assert made.closed
    assert made.last < 10


def test_an_interrupted_run_leaves_no_thread_and_the_files_closed(scene: Scene, model: ScriptedModel) -> None:
    job, store = single_job(scene, batch_size=2), MemoryStore(2)
    with reading.open_listed_pair(job.pairs.pairs[0], job.read) as reader:
        with pytest.raises(KeyboardInterrupt):
            analyze_chips(job, LocalEngine(model), store, RunResult(), opened=reader)
        assert reader.read(next(iter(reader.chips(CHIP)))).valid.all()  # the reader is ours again
    assert [len(batch) for batch in store.batches] == [2, 2]


def test_on_error_fail_stops_at_the_first_bad_chip(
    tmp_path: Path, pixels: np.ndarray, model: ScriptedModel
) -> None:
    """The batches before it are stored, although chips behind it were prefetched."""
    paths = [write_tiled(tmp_path / f"{name}.tif", pixels, compress="deflate") for name in "ab"]
    spoil(paths[1], [(1, 2), (2, 2)])
    store = MemoryStore()
    job = single_job(Scene(*paths), batch_size=3, on_error="fail")
    with pytest.raises(RasterError, match="r00032_c00064"):
        analyzed(job, model, store)
    assert store.results[-1].chip.chip_id == "r00032_c00000"
    assert len(store.results) == 6


def test_the_seconds_of_a_run_are_counted_by_stage(scene: Scene, model: ScriptedModel) -> None:
    summary = analyzed(single_job(scene, batch_size=4), model, MemoryStore()).summary
    stages = summary.stages
    assert min(stages.read, stages.waited, stages.encode, stages.answer, stages.write) > 0
    assert stages.waited + stages.encode + stages.answer + stages.write <= summary.seconds


class WaitingStore(MemoryStore):
    """Store that stores nothing before `event`."""

    def __init__(self, event: threading.Event, limit: int = 99) -> None:
        super().__init__(limit)
        self.event = event

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        assert self.event.wait(30)
        super().add(results, batch_size)


def test_pairs_are_opened_in_advance_and_none_beyond_a_limit(
    scene: Scene, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    second = threading.Event()
    open_listed_pair = reading.open_listed_pair

    def noted(pair: Pair, read: ReadOptions) -> AbstractContextManager[PairReader]:
        opened.append(pair.id)
        if pair.id == "b":
            second.set()
        return open_listed_pair(pair, read)

    monkeypatch.setattr(reading, "open_listed_pair", noted)
    job = list_job([Pair(name, *scene.args) for name in "abcd"], batch_size=8, limit=40)
    with pytest.raises(KeyboardInterrupt):
        analyzed(job, model, WaitingStore(second, 1))
    assert opened[:2] == ["a", "b"]  # while the first batch, which is of a alone, was stored
    opened.clear()
    result = analyzed(job, model, WaitingStore(second))
    assert opened == ["a", "b", "c"]
    assert result.chips == 40
    assert [pair.status for pair in result.pairs.values()] == ["answered", "answered", "partly"]
