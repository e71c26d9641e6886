"""Small threads around a loop: one fetches ahead, one writes behind, both bounded; one is a pulse."""
from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
POLL = 0.1                         # seconds between looks at the stop flag while a queue is full or empty


class Prefetch(Generic[T]):
    """An iterator over `items` that a thread of its own fetches up to `depth` ahead.

    An exception in that thread is raised by the consumer's next step, after the items fetched before it.
    `close` ends the thread, also in mid-way, and closes a generator given as `items`; leaving a `with` block
    calls it.
    """

    def __init__(self, items: Iterable[T], depth: int = 8) -> None:
        self._items = items
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._done = False
        self._thread = threading.Thread(target=self._fetch, name="prefetch", daemon=True)
        self._thread.start()

    def _fetch(self) -> None:
        """Runs in the thread: puts ("item", x) for each item, then ("end", None) or ("error", exception)."""
        last: tuple[str, object] = ("end", None)
        try:
            for item in self._items:
                if not self._put(("item", item)):
                    break
        except BaseException as error:                     # it belongs to the consumer, whatever it is
            last = ("error", error)
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        self._put(last)

    def _put(self, entry: tuple[str, object]) -> bool:
        """Whether `entry` went into the queue before `close` was called."""
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=POLL)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._done:
            raise StopIteration
        kind, value = self._queue.get()
        if kind == "item":
            return value
        self._done = True
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Ends the thread and drops what it fetched; safe to call twice."""
        self._done = True
        self._stop.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join()

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Behind(Generic[T]):
    """A thread that calls `write(item)` for each item put into it, in order, at most `depth` items behind.

    An exception in `write` stops the thread and is raised by the next `put` or by `close`. `close` waits
    until every item is written; leaving a `with` block calls it, and an exception of the block itself goes
    before the thread's.
    """

    def __init__(self, write: Callable[[T], object], depth: int = 8) -> None:
        self._write = write
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="behind", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        """Runs in the thread until it takes None."""
        try:
            while (item := self._queue.get()) is not None:
                self._write(item)
        except BaseException as error:                     # it belongs to the producer
            self._error = error
        finally:
            self._ended.set()

    def put(self, item: T) -> None:
        """Hands `item` over, waiting while the queue is full; raises what `write` raised."""
        self._enqueue(item)
        if self._error is not None:
            raise self._error

    def _enqueue(self, entry: T | None) -> None:
        while not self._ended.is_set():
            try:
                self._queue.put(entry, timeout=POLL)
                return
            except queue.Full:
                continue

    def close(self) -> None:
        """Waits for the last item; raises what `write` raised; safe to call twice."""
        self._enqueue(None)
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> "Behind[T]":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.close()
        except BaseException:
            if kind is None:
                raise


class Pulse:
    """A thread that calls `beat()` every `seconds`. What it raises stops it, and is raised by `check` or by
    leaving the `with` block."""

    def __init__(self, beat: Callable[[], object], seconds: float = 1.0) -> None:
        self._beat, self._seconds = beat, seconds
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pulse", daemon=True)

    def _work(self) -> None:
        try:
            while not self._stop.wait(self._seconds):
                self._beat()
        except BaseException as error:                     # it belongs to the main thread
            self._error = error

    def check(self) -> None:
        """Raises what `beat` raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self.check()
