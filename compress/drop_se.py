"""Squeeze-excitation taken out of MBConv layers: `without_gates(net, state, gates) -> (net, state)`.

A gate asks for the mean of a whole map before the first of its cells can be multiplied, which no runtime
fuses with the convolutions around it. Its mean over pictures is a number a channel, which the projection's
weights take in; what the gate told of a single picture is lost, and fine-tuning has to make it good.
"""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from models.blocks import SE
from models.layer import Net, validate
from models.network import from_state


def gates_to_shut(source: Net, net: Net) -> tuple[str, ...]:
    """The MBConv layers that have squeeze-excitation in `source` and none in `net`."""
    there = {layer.name: layer for layer in source if layer.op == "mbconv" and layer.squeeze}
    return tuple(layer.name for layer in net
                 if layer.op == "mbconv" and not layer.squeeze and layer.name in there)


@torch.no_grad()
def mean_gates(net: Net, state: dict[str, Tensor], images: Tensor,
               layers: Collection[str]) -> dict[str, Tensor]:
    """Layer name -> the mean of its gates [hidden], 0..1, over pictures [B, 3, S, S] (uint8 or 0..1)."""
    model, found = from_state(net, state), {}

    def watch(name: str) -> object:
        def hook(gate: SE, inputs: tuple[Tensor]) -> None:
            found[name] = gate.gate(inputs[0]).mean((0, 2, 3))
        return hook
    for name in layers:
        getattr(model, name).se.register_forward_pre_hook(watch(name))
    model(images)
    return found


def without_gates(net: Net, state: dict[str, Tensor],
                  gates: dict[str, Tensor]) -> tuple[Net, dict[str, Tensor]]:
    """The network whose layers named in `gates` multiply each hidden channel by a constant instead.

    The constants [hidden] go into the projection's weights, so that the records simply lose their squeeze.
    Arguments unchanged.
    """
    new = validate(tuple(replace(layer, squeeze=0) if layer.name in gates else layer for layer in net))
    shut = tuple(f"{name}.se." for name in gates)
    out = {key: value for key, value in state.items() if not key.startswith(shut)}
    for name, gate in gates.items():
        key = f"{name}.project.conv.weight"
        out[key] = state[key] * gate.to(state[key]).view(1, -1, 1, 1)
    return new, out
