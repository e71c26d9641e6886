"""Channels of one value brought to like ranges as a pass, so that eight bits serve all of them.

Where f(s x) = s f(x) for s > 0 (linear, ReLU, leaky) an output channel may be divided by s and its readers
multiply by s (Nagel et al. 2019, arXiv 1906.04721, section 4.1). There s comes from the weights; here from
how far each channel goes on images, because weights are quantised by output channel and need no help.
"""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compress.fold import fold
from models.graph import INPUT, Step, steps
from models.layer import Net
from models.network import from_state
from models.nodes import Node

HOMOGENEOUS = ("linear", "relu", "leaky")
SMALLEST = 2.0 ** -6                                       # a nearly silent channel is not blown up further
PASSING = ("maxpool", "avgpool", "upsample")               # a channel in is a channel out
HANDING = (*PASSING, "concat", "mul", "slice", "shuffle", "spread")


def equalise(net: Net, state: dict[str, Tensor], images: Iterable[Tensor], share: float = 1.0
             ) -> tuple[Net, dict[str, Tensor]]:
    """Return the folded network with the same outputs, and channels of like ranges where that costs nothing.

    images: uint8 [B, 3, S, S]. share: how much of a channel's range goes into weights whose scale many
    channels have in common (1x1 convolutions); depthwise kernels always take all. What a sum or a lone
    activation reads, whose activation is not homogeneous, or is one cell (left in float), stays as it is.
    """
    folded, small = fold(net, state)
    plan = steps(folded)
    readers, near = _readers(plan, HANDING), _readers(plan, PASSING)
    free = {step.value: step.name for step in plan
            if step.type == "conv" and step.act in HOMOGENEOUS and step.node.reduction and not step.shape
            and not any(reader.type in ("add", "act") for reader in readers.get(step.name, ()))}
    reach = _reach(folded, small, images, free)
    factor: dict[str, Tensor] = {INPUT: torch.ones(3)}
    new = dict(small)
    for step in plan:
        inputs = [factor[i] for i in step.inputs]
        factor[step.name] = _passed(step, inputs)
        if step.type != "conv":
            continue
        out = torch.ones(step.out)
        if step.name in reach:                             # 1 for the widest channel
            deep = all(reader.depthwise for reader in near.get(step.name, ()))
            out = reach[step.name] / reach[step.name].max().clamp(min=1e-30)
            out = out.clamp(min=SMALLEST) ** (1.0 if deep else share)
        factor[step.name] = out
        weight, groups = small[f"{step.key}.weight"].float(), step.node.groups
        gain = inputs[0].view(groups, 1, -1, 1, 1).expand(-1, step.out // groups, -1, 1, 1)
        new[f"{step.key}.weight"] = weight * gain.reshape(step.out, -1, 1, 1) / out.view(-1, 1, 1, 1)
        if step.node.bias:
            new[f"{step.key}.bias"] = small[f"{step.key}.bias"].float() / out
    return folded, new


def _passed(step: Step, inputs: list[Tensor]) -> Tensor:
    """Return the factors of a step that hands channels on."""
    first = inputs[0]
    if step.type == "concat":
        return torch.cat(inputs)
    if step.type == "slice":
        return first.chunk(step.node.parts)[step.node.part]
    return first.view(step.node.groups, -1).T.reshape(-1) if step.type == "shuffle" else first


def _reach(net: Net, state: dict[str, Tensor], images: Iterable[Tensor], names: dict[str, str]
           ) -> dict[str, Tensor]:
    """Return step -> the largest absolute value of each channel [C] over the images; names: node -> step."""
    model, seen = from_state(net, state), {}

    def note(node: Node, value: Tensor) -> None:
        if name := names.get(node.name):
            high = value.abs().amax((0, 2, 3))
            seen[name] = torch.maximum(seen[name], high) if name in seen else high
    model.watch = note
    with torch.inference_mode():
        for batch in images:
            model(batch)
    return seen


def _readers(plan: tuple[Step, ...], through: tuple[str, ...]) -> dict[str, list[Step]]:
    """Return who reads each value, also through operations that hand channels on."""
    found: dict[str, list[Step]] = {}
    for step in reversed(plan):
        readers = found.get(step.name, []) if step.type in through else [step]
        for name in step.inputs:
            found.setdefault(name, []).extend([step] if step.type not in through else readers)
    return found
