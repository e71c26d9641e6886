"""Batch-norm put back as a pass: a folded network, as official files hold, becomes one that trains well."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.channels import channels
from models.graph import expand
from models.layer import Net
from models.network import from_state
from models.nodes import Node

State = dict[str, Tensor]
BATCH = 16                                                 # images measured at once


def unfold(net: Net, state: State, images: Tensor | None = None) -> tuple[Net, State]:
    """Return the network with a batch-norm behind each convolution without, and the same outputs (in eval).

    images: uint8 [N, 3, S, S], on which each convolution's mean and variance are measured; scale and shift
    undo them, so training starts with the statistics that its batches have. None: mean 0 and variance 1.
    Records whose convolutions batch-norm would change, as re-parameterised ones, stay as they are.
    """
    normed = tuple(replace(layer, bn=True) for layer in net)
    before, after = _convolutions(net), _convolutions(normed)
    whole = tuple(new if before.get(new.name) == after.get(new.name) else old
                  for old, new in zip(net, normed))
    seen = {} if images is None else _measured(net, state, images)
    new = dict(state)
    for norm in (node for node in expand(whole).nodes if node.type == "norm"):
        bias = state.get(f"{norm.inputs[0]}.bias")
        if bias is None or f"{norm.name}.weight" in state:
            continue                                       # it was there before
        mean, var = seen.get(norm.inputs[0], (bias, torch.ones_like(bias)))
        new |= {f"{norm.name}.weight": (var + norm.eps).sqrt(), f"{norm.name}.bias": mean,
                f"{norm.name}.running_mean": mean - bias, f"{norm.name}.running_var": var}
    return whole, {param.key: new[param.key] for param in channels(whole).params}


def _convolutions(net: Net) -> dict[str, list[str]]:
    """Return record -> the names of its convolutions."""
    found: dict[str, list[str]] = {}
    for node in expand(net).nodes:
        if node.type == "conv":
            found.setdefault(node.layer, []).append(node.name)
    return found


def _measured(net: Net, state: State, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return convolution -> mean and variance [C] of its outputs, bias included, over the images."""
    sums: dict[str, Tensor] = {}
    model, count = from_state(net, state), {}

    def add(node: Node, value: Tensor) -> None:
        if node.type == "conv":
            for image in value.permute(0, 2, 3, 1).flatten(1, 2):          # as they lie in memory
                flat = image.double()                      # of one image, which the cache holds
                count[node.name] = count.get(node.name, 0) + len(flat)
                sums[node.name] = sums.get(node.name, 0) + torch.stack((flat.sum(0), flat.square_().sum(0)))
    model.watch = add
    with torch.no_grad():
        for part in images.split(BATCH):
            model(part)
    means = {name: total / count[name] for name, total in sums.items()}
    return {name: (mean.float(), (square - mean.square()).clamp(min=0).float())
            for name, (mean, square) in means.items()}
