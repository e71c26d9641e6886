"""Times that can be compared: interleaved rounds, figures, and a bootstrap of what two sets differ by."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

STEADY = 0.1                       # medians of three rounds this close to the three before are steady
LEAST = 5                          # rounds that are run however long they take
Call = Callable[[int], object]     # is given the round's number
PERCENTILES = (50, 90, 95, 99)
GRID = 2048                        # thresholds at which resampled medians are looked up
DRAWS = 1000
SMALL = 0.01                       # a difference this small comes from where memory happens to lie
Rounds = Sequence[Sequence[Sequence[float]]]       # a round is a process, of slices, of milliseconds a call


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


def flat(rounds: Rounds) -> np.ndarray:
    """Return all milliseconds of a case [N] in the order they were taken."""
    return np.array([ms for slices in rounds for times in slices for ms in times], dtype=float)


def figures(rounds: Rounds, batch: int, seconds: float = 0.0) -> dict[str, object]:
    """Return the figures of a scope, in ms per call of `batch` images; `seconds`: what its slices took."""
    times = flat(rounds)
    values = np.percentile(times, PERCENTILES).tolist()
    return {"n": len(times), **{f"p{p}": v for p, v in zip(PERCENTILES, values)}, "min": float(times.min()),
            "max": float(times.max()), "mean": float(times.mean()),
            "sd": float(times.std(ddof=1)) if len(times) > 1 else 0.0, "spread": summary(times)["spread"],
            "fps": 1e3 * batch / values[0],
            "sustained_fps": len(times) * batch / seconds if seconds else None,
            "rounds": [float(np.median(flat([slices]))) for slices in rounds if any(map(len, slices))]}


def contrast(first: Rounds, other: Rounds, paired: bool, draws: int = DRAWS) -> dict[str, object]:
    """Return how many times as fast the other's median is as the first's, the 95 % interval and a verdict.

    Processes are drawn with replacement, and slices in them: neighbouring calls are alike, too sure alone.
    paired: both took turns in one run, so a slice is drawn together with its neighbour of the other.
    """
    generator = np.random.default_rng(0)
    sides = [first, other]
    if paired:
        sides = list(zip(*((a[:len(b)], b[:len(a)]) for a, b in zip(first, other) if a and b)))
        weights = [_draw(sides[0], draws, generator)] * 2
    else:
        weights = [_draw(side, draws, generator) for side in sides]
    medians = [_medians(side, drawn) for side, drawn in zip(sides, weights)]
    low, high = np.percentile(medians[0] / medians[1], (2.5, 97.5)).tolist()
    ratio = float(np.median(flat(first)) / np.median(flat(other)))
    return {"ratio": ratio, "low": low, "high": high, "paired": paired, "verdict": verdict(low, high)}


def verdict(low: float, high: float) -> str:
    """Return what an interval of "times as fast" says; within 1 % of 1 nothing is said to differ."""
    if low > 1 + SMALL:
        return "faster"
    return "slower" if high < 1 / (1 + SMALL) else "no significant difference"


def _draw(rounds: Rounds, draws: int, generator: np.random.Generator) -> np.ndarray:
    """How often each slice is taken [draws, slices] where processes and then their slices are drawn."""
    counts = [len(slices) for slices in rounds]
    processes = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=draws)
    return np.concatenate([generator.multinomial(processes[:, at] * n, np.full(n, 1 / n))
                           for at, n in enumerate(counts)], 1)


def _medians(rounds: Rounds, weights: np.ndarray) -> np.ndarray:
    """The median [draws] of the calls of all slices, each slice taken as often as weights [draws, slices]."""
    slices = [np.sort(times) for taken in rounds for times in taken]
    values = np.unique(np.concatenate(slices))
    if len(values) > GRID:
        values = np.quantile(values, np.linspace(0, 1, GRID), method="nearest")
    below = np.stack([np.searchsorted(times, values, side="right") for times in slices]).astype(float)
    reached = weights.astype(float) @ below                # calls that take no longer than each threshold
    return values[(2 * reached >= reached[:, -1:]).argmax(1)]
