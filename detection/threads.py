"""Two threads around a loop: one fetches ahead, one writes behind, both bounded."""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
END = object()                     # behind the last item


def prefetch(items: Iterable[T], depth: int = 8) -> Generator[T, None, None]:
    """Yield the items, which a thread of its own fetches up to `depth` ahead.

    An exception in that thread is raised after the items fetched before it. Closing the generator ends the
    thread, also midway, and closes a generator given as `items`.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as pool:
        ahead = deque(pool.submit(next, source, END) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not END:
                ahead.append(pool.submit(next, source, END))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
            getattr(source, "close", int)()                # of a generator


@contextmanager
def behind(write: Callable[[T], object], depth: int = 8) -> Iterator[Callable[[T], None]]:
    """Give a function that hands an item to a thread, which calls `write(item)`, in order; it waits while
    `depth` items do.

    After an exception in `write` nothing more is written; the next hand-over raises it, or the end of the
    `with` block, which waits for the last item and lets an exception of its own go first.
    """
    errors: list[BaseException] = []
    room = threading.Semaphore(depth)

    def one(item: T) -> None:
        try:
            if not errors:
                write(item)
        except BaseException as error:                     # it belongs to the producer, whatever it is
            errors.append(error)
        finally:
            room.release()

    def put(item: T) -> None:
        if errors:
            raise errors[0]
        room.acquire()
        pool.submit(one, item)

    with ThreadPoolExecutor(1, "behind") as pool:
        yield put
    if errors:
        raise errors[0]
