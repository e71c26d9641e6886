"""What eight bits do to each channel's mean and gain, undone in the weights' steps and the biases.

Nagel et al. 2019 (arXiv 1906.04721, section 4.2) put right the mean alone. Most of an image is background,
and a mean that is right there makes every object a little fainter; so the gain is put right too: the slope of
the rounded values over the exact ones, because the other way round noise would pass for a gain and shrink
them. Both cost nothing at run time.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deploy.quant.graph import Graph, taps

if TYPE_CHECKING:
    import onnx

IMAGES = 32                                                # means and gains are steady long before ranges are
POSITIONS = 256                                            # of a value and image
GAINS = 0.7, 1.4                                           # a channel beyond is too silent to tell


def correct(exact: Graph, quantised: Graph, names: Sequence[str], images: Sequence[np.ndarray]) -> None:
    """Change the named convolutions of `quantised` to the channel means and gains of `exact` over the images.

    One after another in running order: each is corrected behind the corrected ones before it.
    """
    images = images[::max(1, len(images) // IMAGES)][:IMAGES]
    outs = {node.name: node.output[0] for node in exact.convolutions() if node.name in names}
    wanted = _sampled(exact, list(outs.values()), images)
    for node in quantised.convolutions():
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
    """Multiply a convolution's outputs by the gain and add the shift, a number a channel each."""
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
