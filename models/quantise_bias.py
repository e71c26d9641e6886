"""Means put right: rounding and clipping move each channel's mean, and a bias moves it back.

Nagel et al. 2019 (arXiv 1906.04721, section 4.2), measured on pictures layer by layer in running order, so that
each layer is corrected with the corrected ones before it.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.quantise_graph import Graph, taps

if TYPE_CHECKING:
    import onnx

PICTURES = 16                                              # means are steady long before ranges are


def correct_biases(exact: Graph, quantised: onnx.ModelProto, names: Sequence[str],
                   pictures: Sequence[np.ndarray]) -> None:
    """Changes the biases of the named convolutions of `quantised`, so that its means are those of `exact`."""
    pictures = pictures[:PICTURES]
    outs = {node.name: node.output[0] for node in exact.convolutions() if node.name in names}
    wanted = _means(exact.model, list(outs.values()), pictures)
    graph = Graph(quantised)
    for node in graph.convolutions():
        if node.name in outs:
            moved = _means(quantised, [node.output[0]], pictures)[node.output[0]] - wanted[outs[node.name]]
            _add(graph, node.input[2], -moved)


def _means(model: onnx.ModelProto, values: list[str], pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The mean of each channel [C] of the values over the pictures."""
    run, sums = taps(model, values), dict.fromkeys(values, 0.0)
    for picture in pictures:
        for name, value in run(picture).items():
            sums[name] = sums[name] + value.mean((0, 2, 3), dtype=np.float64)
    return {name: total / len(pictures) for name, total in sums.items()}


def _add(graph: Graph, bias: str, change: np.ndarray) -> None:
    """Adds to a bias, whether it is a constant in float or 32-bit integers of a step a channel."""
    if bias in graph.constants:
        graph.put(bias, (graph.array(bias) + change).astype(np.float32))
        return
    numbers, step = graph.maker[bias].input[:2]
    whole = graph.array(numbers) + np.round(change / graph.array(step).astype(np.float64))
    graph.put(numbers, np.clip(whole, -2 ** 31 + 1, 2 ** 31 - 1).astype(np.int32))
