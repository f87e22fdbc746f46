"""Ordered parallel map: apply a function on several threads and yield the results in input order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_ordered"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ordered(
    work: Callable[[Item], Result], items: Iterator[Item], workers: int, init: Callable[[], None]
) -> Generator[Result, None, None]:
    """Apply `work` to `items` on `workers` threads and yield the results in input order.

    `init` runs once in each thread. At most `workers + 1` items are in flight, and a finished result is
    yielded before another item is taken. When `items` raises, the results of the items before are yielded
    first. One worker means no thread. Closing the generator waits for the work in progress.
    """
    if workers == 1:
        yield from map(work, items)
        return
    futures: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, "ordered-map", initializer=init)
    failure: Exception | None = None
    try:
        while True:
            try:
                futures.append(pool.submit(work, next(items)))
            except StopIteration:
                break
            except Exception as error:  # re-raised after the results of the items before it
                failure = error
                break
            while futures and (len(futures) > workers or futures[0].done()):
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
