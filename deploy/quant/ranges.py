"""Which range of numbers eight bits stand for, value by value.

The range with the smallest squared error on the user's images, the error taken behind the activation: what a
leaky ReLU shrinks to a tenth may be clipped where a plain range would spend half of its steps.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from deploy.quant.graph import Graph, taps

STEPS = 255                                                # of an unsigned byte
BINS = 4096
SAMPLE = 65536                                             # numbers of one value that one image adds
LOWS = np.geomspace(1, 0.03, 28)                           # shares of the extremes that are tried; negative
HIGHS = LOWS[:14]                                          # numbers are cut more, activations shrink them
Activation = Callable[[np.ndarray], np.ndarray]


class Grid(NamedTuple):
    """An unsigned byte b stands for (b - zero) * step."""

    step: float
    zero: int

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Return the values as bytes can hold them."""
        return (np.clip(np.round(values / self.step) + self.zero, 0, STEPS) - self.zero) * self.step


def grid(low: float, high: float) -> Grid:
    """Return the grid of a range, which always holds 0 exactly: padding is 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / STEPS, 1e-12)
    return Grid(float(np.float32(step)), int(np.clip(round(-low / step), 0, STEPS)))


def measured_grids(graph: Graph, values: Sequence[str], images: Sequence[np.ndarray]) -> dict[str, Grid]:
    """Return the best grid of each value of the fp32 graph over the images, uint8 [1, 3, S, S]."""
    run = taps(graph, values)
    lows, highs = dict.fromkeys(values, 0.0), dict.fromkeys(values, 1e-6)      # no range is empty
    for image in images:
        for name, value in run(image).items():
            lows[name] = min(lows[name], float(value.min()))
            highs[name] = max(highs[name], float(value.max()))
    counts = {name: np.zeros(BINS) for name in values}
    for image in images:
        for name, value in run(image).items():
            flat = value.ravel()[::value.size // SAMPLE + 1]
            counts[name] += np.histogram(flat, BINS, (lows[name], highs[name]))[0]
    return {name: best_grid(counts[name], lows[name], highs[name], behind(graph, name)) for name in values}


def best_grid(counts: np.ndarray, low: float, high: float, activation: Activation) -> Grid:
    """Return the grid with the least squared error behind the activation, of a histogram over [low, high]."""
    centres = low + (np.arange(len(counts)) + 0.5) * (high - low) / len(counts)
    centres, counts = centres[counts > 0], counts[counts > 0]
    if not len(counts):
        return grid(low, high)
    exact, best = activation(centres), (np.inf, grid(low, high))
    for a in LOWS if low < 0 else (0.0,):
        for b in HIGHS:
            tried = grid(a * low, b * high)
            error = float((counts * (activation(tried.rounded(centres)) - exact) ** 2).sum())
            best = min(best, (error, tried), key=lambda pair: pair[0])
    return best[1]


def behind(graph: Graph, value: str) -> Activation:
    """Return the activation that alone reads a value; identity where something else does."""
    readers = graph.readers.get(value, [])
    ops = {node.op_type for node in readers}
    if ops == {"LeakyRelu"}:
        slope = next((a.f for a in readers[0].attribute if a.name == "alpha"), 0.01)
        return lambda x: np.where(x > 0, x, slope * x)
    if ops == {"Sigmoid", "Mul"}:                          # swish
        return lambda x: x / (1 + np.exp(-x))
    alone = {"Relu": lambda x: np.maximum(x, 0), "Clip": lambda x: np.clip(x, 0, 6),
             "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1)}
    return alone.get(readers[0].op_type if len(ops) == 1 else "", lambda x: x)
