"""Squeeze-excitation taken out of blocks: `without_se(net, state, gates) -> (net, state)`.

No runtime fuses a gate with the convolutions around it. The one behind it takes in its mean over images, a
number per channel; what it told of a single image is lost, and fine-tuning has to make up for it.
"""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from models.graph import expand
from models.layer import Net
from models.network import from_state
from models.nodes import Node
from models.records import validate


def _products(net: Net) -> dict[str, Node]:
    """Return record -> the product of its squeeze-excitation, of records whose own convolution reads it."""
    nodes = expand(net).nodes
    read = {(node.layer, node.inputs[0]) for node in nodes if node.type == "conv"}
    return {node.layer: node for node in nodes if node.type == "mul" and (node.layer, node.name) in read}


def layers_to_open(source: Net, net: Net) -> tuple[str, ...]:
    """Return the records that have squeeze-excitation inside in `source` and none in `net`."""
    there, ops = _products(source), {layer.name: layer.op for layer in source}
    return tuple(layer.name for layer in net if not layer.squeeze and layer.name in there
                 and layer.op == ops[layer.name])


@torch.no_grad()
def mean_gates(net: Net, state: dict[str, Tensor], images: Tensor,
               layers: Collection[str]) -> dict[str, Tensor]:
    """Return record -> the mean of its gates [C], 0..1, over images [B, 3, S, S] (uint8 or 0..1)."""
    model, found, products = from_state(net, state), {}, _products(net)
    gates = {products[name].inputs[1]: name for name in layers}

    def watch(node: Node, value: Tensor) -> None:
        if node.name in gates:
            found[gates[node.name]] = value.mean((0, 2, 3))
    model.watch = watch
    model(images)
    return found


def without_se(net: Net, state: dict[str, Tensor], gates: dict[str, Tensor]) -> tuple[Net, dict[str, Tensor]]:
    """Return the network whose records named in `gates` multiply each channel by a constant [C] instead."""
    new = validate(tuple(replace(layer, squeeze=0) if layer.name in gates else layer for layer in net))
    products, left = _products(net), {node.name for node in expand(new).nodes}
    out = {key: value for key, value in state.items()
           if key.split(".")[0] not in gates or key.rsplit(".", 1)[0] in left}
    for name, gate in gates.items():
        reader = next(n for n in expand(net).nodes if n.type == "conv" and n.inputs[0] == products[name].name)
        key = f"{reader.name}.weight"
        out[key] = state[key] * gate.to(state[key]).view(1, -1, 1, 1)
    return new, out
