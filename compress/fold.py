"""Batch-norm folding as a pass: (net, state) -> (net, state) with the same outputs and no batch-norm."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.channels import channels
from models.graph import expand
from models.layer import Net
from models.nodes import Node
from utils.errors import ModelError

State = dict[str, Tensor]


def fold(net: Net, state: State) -> tuple[Net, State]:
    """Return the network with each batch-norm moved into the convolution before it, for inference only.

    gamma * (Wx - mean) / sqrt(var + eps) + beta
    = (gamma / sqrt(var + eps)) W x + (beta - gamma mean / sqrt(var + eps)), computed in fp32.
    Branches that are added and have no convolution in the folded network become its one convolution. Raises
    ModelError for a batch-norm that follows no convolution.
    """
    folded = tuple(replace(layer, bn=False) if layer.bn else layer for layer in net)
    nodes = {node.name: node for node in expand(net).nodes}
    norms = {node.inputs[0]: node for node in nodes.values() if node.type == "norm"}
    new: State = {}
    for node in expand(folded).nodes:
        if node.type == "norm":
            raise ModelError(f"layer {node.layer!r}: its batch-norm follows no convolution to fold it into")
        if node.type != "conv":
            continue
        weight, bias = (_affine(nodes[node.name], norms.get(node.name), state) if node.name in nodes
                        else _merged(node, nodes, state))
        new[f"{node.name}.weight"] = weight
        if node.bias:
            new[f"{node.name}.bias"] = bias
    return folded, {param.key: new[param.key] for param in channels(folded).params}


def _affine(conv: Node, norm: Node | None, state: State) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a convolution with the batch-norm behind it folded in where there is one."""
    weight, bias = state[f"{conv.name}.weight"], state.get(f"{conv.name}.bias")
    if norm is None:
        return weight, bias
    scale, shift = _scale_and_shift(norm, state)
    return weight.float() * scale.view(-1, 1, 1, 1), shift


def _scale_and_shift(norm: Node, state: State) -> tuple[Tensor, Tensor]:
    gamma, beta, mean, var = (state[f"{norm.name}.{leaf}"].float()
                              for leaf in ("weight", "bias", "running_mean", "running_var"))
    scale = gamma / (var + norm.eps).sqrt()
    return scale, beta - mean * scale


def _merged(target: Node, nodes: dict[str, Node], state: State) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the sum of a record's branches: convolutions, or batch-norm alone."""
    total = next(node for node in nodes.values() if node.layer == target.layer and node.type == "add")
    weight = bias = 0.0
    for name in total.inputs:
        norm = nodes[name]
        source = nodes.get(norm.inputs[0])
        if source is not None and source.type == "conv" and source.layer == target.layer:
            kernel, shift = _affine(source, norm, state)
        else:
            scale, shift = _scale_and_shift(norm, state)
            kernel = torch.zeros(target.channels, target.channels // target.groups, 1, 1)
            at = torch.arange(target.channels)
            kernel[at, at % kernel.shape[1], 0, 0] = scale.cpu()
            kernel = kernel.to(scale.device)
        margin = (target.kernel - kernel.shape[-1]) // 2
        weight = weight + torch.nn.functional.pad(kernel, (margin,) * 4)
        bias = bias + shift
    return weight, bias
