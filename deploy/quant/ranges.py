"""What eight bits stand for, measured on the user's images: ranges of values, then channels' gains and means.

A value's range is that with the smallest squared error, the error taken behind the activation: what a leaky
ReLU shrinks to a tenth may be clipped where a plain range would spend half of its steps.

Rounding changes the channels' means and gains, which is undone in the weights' steps and the biases. Nagel et
al. 2019 (arXiv 1906.04721, section 4.2) correct the mean alone, which makes objects fainter where most of an
image is background; so the gain, the slope of rounded over exact values, is corrected too.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deploy.quant.graph import Graph, taps

if TYPE_CHECKING:
    import onnx

STEPS = 255                                                # of an unsigned byte
BINS = 4096
SAMPLE = 65536                                             # numbers of one value that one image adds
LOWS = np.geomspace(1, 0.03, 28)                           # shares of the extremes that are tried; negative
HIGHS = LOWS[:14]                                          # numbers are cut more, activations shrink them
IMAGES = 32                                                # means and gains are steady long before ranges are
POSITIONS = 256                                            # of a value and image
GAINS = 0.7, 1.4                                           # a channel beyond is too silent to tell
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


def correct(exact: Graph, quantised: Graph, names: Sequence[str], images: Sequence[np.ndarray]) -> None:
    """Change the named convolutions of `quantised`, as they run, to channel means and gains of `exact`."""
    images = images[::max(1, len(images) // IMAGES)][:IMAGES]
    outs = {node.name: node.output[0] for node in exact.convolutions if node.name in names}
    wanted = _sampled(exact, list(outs.values()), images)
    for node in quantised.convolutions:
        if node.name in outs:
            got = _sampled(quantised, [node.output[0]], images)[node.output[0]]
            _apply(quantised, node, *_gain_and_shift(wanted[outs[node.name]], got))


def _sampled(graph: Graph, values: list[str], images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return numbers [C, n] of each value, at the same places whenever the images are the same."""
    run, found = taps(graph, values), {name: [] for name in values}
    for at, image in enumerate(images):
        for name, value in run(image).items():
            flat = value.reshape(value.shape[1], -1)
            stride = -(-flat.shape[1] // POSITIONS)
            found[name].append(flat[:, at % stride::stride])
    return {name: np.concatenate(parts, 1) for name, parts in found.items()}


def _gain_and_shift(wanted: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return g and b [C] for which g * got + b has the mean of `wanted`, and its slope on `wanted` is 1."""
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    centre, mean = wanted.mean(1), got.mean(1)
    spread = ((wanted - centre[:, None]) ** 2).mean(1)
    slope = ((wanted - centre[:, None]) * got).mean(1) / np.maximum(spread, 1e-30)
    gain = np.where(spread > 1e-12, 1 / np.clip(slope, 1 / GAINS[1], 1 / GAINS[0]), 1.0)
    return gain, centre - gain * mean


def _apply(graph: Graph, node: onnx.NodeProto, gain: np.ndarray, shift: np.ndarray) -> None:
    """Multiply a convolution's outputs by the gain and add the shift [C]."""
    weight, bias = node.input[1:3]
    if weight in graph.constants:                          # one that stays in float
        graph.put(weight, (graph.array(weight) * gain[:, None, None, None]).astype(np.float32))
        graph.put(bias, (graph.array(bias) * gain + shift).astype(np.float32))
        return
    (_, step), (whole, bias_step) = graph.maker[weight].input[:2], graph.maker[bias].input[:2]
    exact = graph.array(whole) * graph.array(bias_step).astype(np.float64) * gain + shift
    for name in (step, bias_step):
        graph.put(name, (graph.array(name) * gain).astype(np.float32))
    numbers = np.round(exact / graph.array(bias_step).astype(np.float64))
    graph.put(whole, np.clip(numbers, -2 ** 31 + 1, 2 ** 31 - 1).astype(np.int32))
