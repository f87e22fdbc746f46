"""What is made while something else is done: chips are read while those before them are answered."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from queue import Empty, Queue
from typing import TypeVar

from deltavlm.pipeline.summary import Stages

__all__ = ["made_ahead"]

T = TypeVar("T")


@contextmanager
def made_ahead(items: Generator[T, None, None], most: int, stages: Stages) -> Iterator[Iterator[T]]:
    """The items in their order, made by a thread of their own, at most `most` of them before they are wanted.

    An error of theirs comes out where its item would. At the end of the `with` the generator is closed and
    the thread has stopped, when the item is done that was being made. The seconds of the thread are added to
    `stages.read`, those in which nothing was ready to `stages.waited`.
    """
    made: Queue[tuple[T] | BaseException | None] = Queue(most)  # None: there are no more
    stop = threading.Event()

    def make() -> None:
        end: BaseException | None = None
        try:
            with closing(items):
                while not stop.is_set():
                    with stages.timed("read"):
                        item = (next(items),)
                    made.put(item)
        except StopIteration:
            pass
        except BaseException as error:  # raised again where its item is waited for
            end = error
        made.put(end)

    def taken() -> Iterator[T]:
        while True:
            with stages.timed("waited"):
                item = made.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stop.set()
        while thread.is_alive():
            with suppress(Empty):
                while True:
                    made.get_nowait()  # the thread may be waiting for room
            thread.join(0.05)
