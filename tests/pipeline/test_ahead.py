"""Reading ahead: in order, bounded, and over when the run is, however it ends."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltavlm.config import shipped_config
from deltavlm.errors import RasterError
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
from deltavlm.pipeline import many
from deltavlm.pipeline.ahead import made_ahead
from deltavlm.pipeline.analyze import AnalyzeOptions, Stages, analyze
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.pairs import Pair
from deltavlm.tasks.questions import load_questions
from tests.conftest import CHIP, Scene, write_tiled
from tests.rasters import spoil
from tests.scripted_model import ScriptedModel

SPECS = load_questions(shipped_config("questions.yaml"))


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
    stages = Stages()
    with made_ahead(made.numbers(), 3, stages) as items:
        assert list(items) == list(range(100))
    assert made.closed
    assert stages.read > 0
    assert stages.waited > 0


def test_no_more_are_made_than_may_wait() -> None:
    made = Made(100)
    with made_ahead(made.numbers(wait_for=4), 3, Stages()) as items:
        assert next(items) == 0
        assert made.reached.wait(10)  # 1, 2 and 3 wait to be taken, 4 for room
        for taken in range(1, 50):
            assert next(items) == taken
            assert made.last <= taken + 4
    assert made.last < 60


@pytest.mark.parametrize("error", [RasterError("broken there"), MemoryError()])
def test_an_error_comes_out_where_it_happened(error: Exception) -> None:
    with made_ahead(Made(5, error).numbers(), 9, Stages()) as items:
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(type(error)) as failure:
            next(items)
    assert failure.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_end_from_outside_ends_the_thread(error: type[BaseException]) -> None:
    made = Made(1000)

    def ended() -> None:
        with made_ahead(made.numbers(), 2, Stages()) as items:
            next(items)
            raise error

    with pytest.raises(error):
        ended()
    assert made.closed
    assert made.last < 10


class Kept:
    """A book that raises when it has been given so many groups."""

    def __init__(self, most: int = 99) -> None:
        self.groups: list[list[ChipResult]] = []
        self.most = most

    def earlier(self) -> Any:
        return iter(())

    def known(self, chip: Any) -> bool:
        return False

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        self.groups.append(results)
        if len(self.groups) == self.most:
            raise KeyboardInterrupt


def test_an_interrupted_run_leaves_no_thread_and_the_files_closed(scene: Scene, model: ScriptedModel) -> None:
    book = Kept(2)
    with open_pair(RasterPair(*scene.args)) as reader:
        with pytest.raises(KeyboardInterrupt):
            analyze(reader, model, SPECS, book, AnalyzeOptions(chip_px=CHIP, batch_size=2))
        assert reader.read(next(iter(reader.chips(CHIP)))).valid.all()  # the reader is ours again
    assert [len(group) for group in book.groups] == [2, 2]


def test_a_run_that_is_to_fail_stops_at_the_first_bad_chip(
    tmp_path: Path, pixels: np.ndarray, model: ScriptedModel
) -> None:
    """The batches before it are written, as they were when reading was not ahead."""
    paths = [str(write_tiled(tmp_path / f"{name}.tif", pixels, compress="deflate")) for name in "ab"]
    spoil(Path(paths[1]), [(1, 2), (2, 2)])
    book = Kept()
    options = AnalyzeOptions(chip_px=CHIP, batch_size=3, on_error="fail")
    with open_pair(RasterPair(*paths)) as reader, pytest.raises(RasterError, match="r00032_c00064"):
        analyze(reader, model, SPECS, book, options)
    assert [result.chip.chip_id for result in book.groups[-1]][-1] == "r00032_c00000"
    assert sum(map(len, book.groups)) == 6


def test_the_seconds_of_a_run_are_told_by_stage(scene: Scene, model: ScriptedModel) -> None:
    with open_pair(RasterPair(*scene.args)) as reader:
        book = Kept()
        summary = analyze(reader, model, SPECS, book, AnalyzeOptions(chip_px=CHIP, batch_size=4))
    stages = summary.stages
    assert min(stages.read, stages.waited, stages.encode, stages.answer, stages.write) > 0
    assert stages.waited + stages.encode + stages.answer + stages.write <= summary.seconds


def test_many_pairs_are_opened_ahead_and_none_beyond_a_limit(
    scene: Scene, model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    second = threading.Event()
    pairs = [Pair(name, *scene.args) for name in "abcd"]
    plain = many.opened_pair

    def noted(pair: Pair, read: ReadOptions) -> Any:
        opened.append(pair.id)
        if pair.id == "b":
            second.set()
        return plain(pair, read)

    monkeypatch.setattr(many, "opened_pair", noted)
    options = AnalyzeOptions(chip_px=CHIP, batch_size=8, limit=40)
    with pytest.raises(KeyboardInterrupt):
        many.analyze_pairs(pairs, ReadOptions(), model, SPECS, KeptPairs(second, 1), options)
    assert opened[:2] == ["a", "b"]  # while the first batch, which is of a alone, was written
    opened.clear()
    run = many.analyze_pairs(pairs, ReadOptions(), model, SPECS, KeptPairs(second), options)
    assert opened == ["a", "b", "c"]
    assert run.summary.chips == 40
    assert [outcome.status for outcome in run.outcomes.values()] == ["answered", "answered", "partly"]


class KeptPairs(Kept):
    """The same of many pairs; it writes nothing before `when`."""

    def __init__(self, when: threading.Event, most: int = 99) -> None:
        super().__init__(most)
        self.when = when

    def add(self, results: list[ChipResult], batch_size: int) -> None:
        assert self.when.wait(30)
        super().add(results, batch_size)

    def settled(self, pair: Pair) -> None:
        return None

    def opened(self, pair: Pair, record: Any) -> None:
        pass

    def refused(self, pair: Pair, reason: str) -> None:
        pass

    def knows(self, pair: Pair, chip: Any) -> bool:
        return False
