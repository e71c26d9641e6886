"""Times that can be compared: warm-up until steady, interleaved rounds, medians with their spread."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

STEADY = 0.1                       # medians of three rounds this close to the three before are steady
LEAST = 5                          # rounds that are run however long they take
Call = Callable[[int], object]     # is given the round's number


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a `with` block on `count` threads of torch; their number before returns, errors or not."""
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def once(call: Call, at: int) -> float:
    """Return the milliseconds that one call takes."""
    start = time.perf_counter()
    call(at)
    return 1e3 * (time.perf_counter() - start)


def best_ms(call: Callable[[], object], seconds: float) -> float:
    """Return the shortest of three or more calls that fit into `seconds`, after one that does not count."""
    call()
    end, times = time.perf_counter() + seconds, []
    while len(times) < 3 or time.perf_counter() < end:
        times.append(once(lambda _: call(), 0))
    return min(times)


def warm_up(calls: Mapping[str, Call], rounds: int = 20, seconds: float = 10.0) -> int:
    """Return the rounds that were run until all calls take as long as just before, or a limit was reached."""
    end, times = time.perf_counter() + seconds, {name: [] for name in calls}
    for at in range(rounds):
        for name, call in calls.items():
            times[name].append(once(call, at))
        now, before = (np.array([np.median(t[-n:][:3]) for t in times.values()]) for n in (3, 6))
        steady = at >= 5 and (abs(now - before) <= STEADY * before).all()
        if steady or time.perf_counter() > end:
            return at + 1
    return rounds


def interleaved(calls: Mapping[str, Call], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return name -> milliseconds of every round, in which each call has its turn, the first one moving on.

    A turn is two calls; the first brings back the caches. After five rounds `seconds` is the limit.
    """
    end, names = time.perf_counter() + seconds, list(calls)
    times = {name: [] for name in names}
    for at in range(rounds):
        if at >= LEAST and time.perf_counter() > end:
            break
        for name in names[at % len(names):] + names[:at % len(names)]:
            calls[name](at)
            times[name].append(once(calls[name], at))
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Return median and 90th percentile in ms, and the quartiles' distance as a share of the median."""
    low, median, high, late = np.percentile(times, (25, 50, 75, 90)).tolist()
    return {"ms": median, "p90_ms": late, "spread": (high - low) / median if median else 0.0}


def ratio(first: Sequence[float], other: Sequence[float]) -> dict[str, object]:
    """Return how many times as fast the other is as the first: median and quartiles over shared rounds."""
    low, median, high = np.percentile(np.divide(first, other), (25, 50, 75)).tolist()
    return {"ratio": median, "ratio_quartiles": [low, high]}
