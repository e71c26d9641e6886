"""Figures of latencies, and whether two sets of them differ, by a bootstrap over processes and slices."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.profile.timing import summary

PERCENTILES = (50, 90, 95, 99)
GRID = 2048                        # thresholds at which resampled medians are looked up
DRAWS = 1000
LEAST = 0.01                       # a difference this small comes from where memory happens to lie
Rounds = Sequence[Sequence[Sequence[float]]]       # a round is a process, of slices, of milliseconds a call


def flat(rounds: Rounds) -> np.ndarray:
    """Return all milliseconds of a case [N] in the order they were taken."""
    return np.array([ms for slices in rounds for times in slices for ms in times], dtype=float)


def figures(rounds: Rounds, batch: int, seconds: float = 0.0) -> dict[str, object]:
    """Return what a report says of the calls of one scope; times in ms per call of `batch` images.

    sustained_fps: images over `seconds` of slices; spread: quartiles' distance / median; rounds: medians.
    """
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
    if low > 1 + LEAST:
        return "faster"
    return "slower" if high < 1 / (1 + LEAST) else "no significant difference"


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
