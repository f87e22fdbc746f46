"""Prefetch: iterate in a background thread, so that chips are read while others are answered."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from queue import Empty, Queue
from typing import TypeVar

from deltavlm.pipeline.summary import StageTimes

__all__ = ["prefetch"]

T = TypeVar("T")


@contextmanager
def prefetch(items: Generator[T, None, None], size: int, times: StageTimes) -> Iterator[Iterator[T]]:
    """Iterate over `items` in a background thread that holds at most `size` of them in a queue.

    An exception of the generator is re-raised in the consumer at its position. On exit the generator is
    closed and the thread joined, after the item in progress. Seconds of the thread are added to `times.read`,
    seconds in which the queue was empty to `times.waited`.
    """
    queue: Queue[tuple[T] | BaseException | None] = Queue(size)  # None: end of the iteration
    stop = threading.Event()

    def produce() -> None:
        end: BaseException | None = None
        try:
            with closing(items):
                while not stop.is_set():
                    with times.timed("read"):
                        item = (next(items),)
                    queue.put(item)
        except StopIteration:
            pass
        except BaseException as error:  # re-raised in the consumer
            end = error
        queue.put(end)

    def consume() -> Iterator[T]:
        while True:
            with times.timed("waited"):
                item = queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        while thread.is_alive():
            with suppress(Empty):
                while True:
                    queue.get_nowait()  # the thread may be blocked on a full queue
            thread.join(0.05)
