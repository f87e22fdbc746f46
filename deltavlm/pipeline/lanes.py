"""The same work on one item after the other, some of them side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["side_by_side"]

Item = TypeVar("Item")
Done = TypeVar("Done")


def side_by_side(
    work: Callable[[Item], Done], items: Iterator[Item], lanes: int, enter: Callable[[], None]
) -> Generator[Done, None, None]:
    """`work` of every item, in the order of the items, by `lanes` threads, each of which calls `enter` first.

    One item more than there are lanes is taken before its turn, and what is done is handed out before the
    next one is. Where the items end in an error, those before it are done first. With one lane there is no
    thread. When the generator is closed, its threads end behind what they are doing.
    """
    if lanes == 1:
        yield from map(work, items)
        return
    begun: deque[Future[Done]] = deque()
    pool = ThreadPoolExecutor(lanes, "lane", initializer=enter)
    failure: Exception | None = None
    try:
        while True:
            try:
                begun.append(pool.submit(work, next(items)))
            except StopIteration:
                break
            except Exception as error:  # raised again behind what came before it
                failure = error
                break
            while begun and (len(begun) > lanes or begun[0].done()):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
