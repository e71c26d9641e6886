"""Threads around a loop: one fetches ahead, some work side by side, one writes behind, all bounded."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")
END = object()                     # behind the last item


def prefetch(items: Iterable[T], depth: int = 8) -> Generator[T, None, None]:
    """Yield the items, which a thread fetches up to `depth` ahead; its exception follows the items before it.

    Closing the generator ends the thread, also midway, and closes a generator given as `items`.
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


def side_by_side(items: Iterable[T], work: Callable[[T], R], lanes: int,
                 tried: Callable[[], object] = lambda: True) -> Generator[tuple[T, R], None, None]:
    """Yield each item and `work(item)`, in order, as `lanes` threads work; one lane is the caller's own.

    Until `tried()` is true an item is waited for before the next is begun.
    """
    if lanes == 1:
        yield from ((item, work(item)) for item in items)
        return
    waiting: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(lanes, "lane")
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            while len(waiting) > (lanes if tried() else 0):
                first, done = waiting.popleft()
                yield first, done.result()
        for first, done in waiting:
            yield first, done.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def behind(write: Callable[[T], object], depth: int = 8) -> Iterator[Callable[[T], None]]:
    """Give a function that hands an item to a thread, which calls `write(item)`; it waits while `depth` do.

    After an exception in `write` nothing more is written; the next hand-over raises it, or the end of the
    `with` block, which waits for the last item and lets an exception of its own go first.
    """
    waiting: deque[Future] = deque()

    def one(item: T, before: Future | None) -> None:
        if before is not None:
            before.result()                                # raises what ended the writing
        write(item)

    def put(item: T) -> None:
        while waiting and (len(waiting) >= depth or waiting[0].done()):
            waiting[0].result()
            waiting.popleft()
        waiting.append(pool.submit(one, item, waiting[-1] if waiting else None))

    with ThreadPoolExecutor(1, "behind") as pool:
        yield put
    for written in waiting:
        written.result()
