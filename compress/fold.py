"""Batch-norm folding as a pass: (net, state) -> (net, state) with the same outputs and no batch-norm."""
from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from models.channels import layout
from models.layer import Net


def fold(net: Net, state: dict[str, Tensor]) -> tuple[Net, dict[str, Tensor]]:
    """The network with each batch-norm's scale and shift moved into the convolution before it.

    gamma * (Wx - mean) / sqrt(var + eps) + beta
    = (gamma / sqrt(var + eps)) W x + (beta - gamma mean / sqrt(var + eps)), computed in fp32.
    Inference only. Layers without batch-norm pass unchanged; the arguments are not modified.
    """
    eps = {layer.name: layer.eps for layer in net}
    new = {param.key: state[param.key] for param in layout(net) if ".bn." not in param.key}
    for param in layout(net):
        if not param.key.endswith(".bn.weight"):
            continue
        stage = param.key.removesuffix(".bn.weight")
        gamma, beta, mean, var = (state[f"{stage}.bn.{s}"].float()
                                  for s in ("weight", "bias", "running_mean", "running_var"))
        scale = gamma / (var + eps[stage.split(".")[0]]).sqrt()
        new[f"{stage}.conv.weight"] = state[f"{stage}.conv.weight"].float() * scale.view(-1, 1, 1, 1)
        new[f"{stage}.conv.bias"] = beta - mean * scale
    return tuple(replace(layer, bn=False) if layer.bn else layer for layer in net), new
