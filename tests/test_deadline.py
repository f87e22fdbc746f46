"""A call that waits for somebody else ends at its deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from deltavlm.deadline import call_within


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_the_result_or_the_error_of_the_call() -> None:
    assert call_within(5, lambda: "done") == "done"
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 / 0)


def test_a_call_without_an_end_is_left_behind(ended: threading.Event) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no whole answer in 0\.05 s"):
        call_within(0.05, ended.wait)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(("rate", "is_slow"), [(1e6, False), (10, True)])
def test_progress_begins_the_time_anew(rate: float, is_slow: bool) -> None:
    begin = time.monotonic()

    def call() -> str:
        time.sleep(0.5)
        return "done"

    def progress() -> int:
        return int((time.monotonic() - begin) * rate)

    if is_slow:
        with pytest.raises(TimeoutError):
            call_within(0.1, call, progress)
    else:
        assert call_within(0.1, call, progress) == "done"
