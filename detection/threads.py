"""Two threads around a loop: one fetches ahead, one writes behind, both bounded."""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
END = object()                     # behind the last item


class Prefetch(Generic[T]):
    """An iterator over `items` that a thread of its own fetches up to `depth` ahead.

    An exception in that thread is raised by the consumer's next step, after the items fetched before it.
    Leaving a `with` block ends the thread, also midway, and closes a generator given as `items`.
    """

    def __init__(self, items: Iterable[T], depth: int = 8) -> None:
        self._items, self._pool, self._done = iter(items), ThreadPoolExecutor(1, "prefetch"), False
        self._ahead = deque(self._pool.submit(next, self._items, END) for _ in range(depth))

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = END
        if not self._done:
            self._done = True                              # also when the next line raises
            item = self._ahead.popleft().result()
        if item is END:
            raise StopIteration
        self._done = False
        self._ahead.append(self._pool.submit(next, self._items, END))
        return item

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._done = True
        self._pool.shutdown(cancel_futures=True)
        close = getattr(self._items, "close", None)
        if close is not None:
            close()


class Behind(Generic[T]):
    """A thread that calls `write(item)` for each item put into it, in order, at most `depth` items behind.

    After an exception in `write` nothing more is written; the next `put` raises it, or the end of the `with`
    block, which waits for the last item and lets an exception of its own go first.
    """

    def __init__(self, write: Callable[[T], object], depth: int = 8) -> None:
        self._write, self._room = write, threading.Semaphore(depth)
        self._pool, self._error = ThreadPoolExecutor(1, "behind"), None

    def _one(self, item: T) -> None:
        try:
            if self._error is None:
                self._write(item)
        except BaseException as error:                     # it belongs to the producer, whatever it is
            self._error = error
        finally:
            self._room.release()

    def put(self, item: T) -> None:
        """Hand `item` over, waiting while `depth` others wait. Raises what `write` raised."""
        if self._error is not None:
            raise self._error
        self._room.acquire()
        self._pool.submit(self._one, item)

    def __enter__(self) -> "Behind[T]":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None and self._error is not None:
            raise self._error
