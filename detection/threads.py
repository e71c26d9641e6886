"""Small threads around a loop: one fetches ahead, one writes behind, both bounded; one is a pulse."""
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


class _Fallible:
    """Work in another thread, in a `with` block: what it raises is kept, and raised where the block ends,
    unless the block raises something itself."""

    _error: BaseException | None = None

    def check(self) -> None:
        """Raise, once, what the other thread raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self):
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.end()
        if kind is None:
            self.check()


class Behind(_Fallible, Generic[T]):
    """A thread that calls `write(item)` for each item put into it, in order, at most `depth` items behind.

    After an exception in `write` nothing more is written; the next `put` raises it. The end of the `with`
    block waits until every item is written.
    """

    def __init__(self, write: Callable[[T], object], depth: int = 8) -> None:
        self._write, self._room = write, threading.Semaphore(depth)
        self._pool = ThreadPoolExecutor(1, "behind")

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

    def end(self) -> None:
        """Wait for the last item."""
        self._pool.shutdown()


class Pulse(_Fallible):
    """A thread that calls `beat()` every `seconds`, until it raises."""

    def __init__(self, beat: Callable[[], object], seconds: float = 1.0) -> None:
        self._beat, self._seconds, self._stop = beat, seconds, threading.Event()
        self._thread = threading.Thread(target=self._work, name="pulse", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._stop.wait(self._seconds):
                self._beat()
        except BaseException as error:                     # it belongs to the main thread
            self._error = error

    def end(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
