"""Channels of one value brought to like ranges as a pass, so that eight bits serve all of them.

An activation f with f(s x) = s f(x) for s > 0 (linear, ReLU, leaky) lets a convolution's output channel be
divided by s and everything that reads it multiply by s: the network computes the same (Nagel et al. 2019,
arXiv 1906.04721, section 4.1). There the factors come from the weights; here from how far each channel goes
on pictures, because weights are quantised by output channel and need no help.
"""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compress.fold import fold
from models.graph import IMAGE, Step, steps
from models.layer import Net
from models.network import from_state

HOMOGENEOUS = ("linear", "relu", "leaky")
SMALLEST = 2.0 ** -6                                       # a nearly silent channel is not blown up further


def equalise(net: Net, state: dict[str, Tensor], pictures: Iterable[Tensor], share: float = 1.0
             ) -> tuple[Net, dict[str, Tensor]]:
    """The folded network with the same outputs, and channels of like ranges wherever that costs nothing.

    pictures: uint8 [B, 3, S, S]. share: how much of a channel's range goes into weights that many channels
    have a common scale with (1x1 convolutions); kernels of depthwise convolutions always take all. A value
    that a residual add reads, or whose activation is not homogeneous, stays as it is.
    """
    folded, small = fold(net, state)
    plan = steps(folded)
    held, deep = _held(plan), _depthwise_only(plan)
    free = [s.name for s in plan if s.op == "conv" and s.act in HOMOGENEOUS and s.name not in held]
    reach = _reach(folded, small, pictures, free)
    factor: dict[str, Tensor] = {IMAGE: torch.ones(3)}
    new = dict(small)
    for step in plan:
        inputs = [factor[i] for i in step.inputs]
        if step.op not in ("conv", "head"):
            factor[step.name] = torch.cat(inputs) if step.op == "concat" else inputs[0]
            continue
        out = torch.ones(step.out)
        if step.name in reach:
            out = _factors(reach[step.name], 1.0 if step.name in deep else share)
        factor[step.name] = out
        weight = small[f"{step.key}.weight"].float()
        gain = inputs[0].view(-1, 1, 1, 1) if step.depthwise else inputs[0].view(1, -1, 1, 1)
        new[f"{step.key}.weight"] = weight * gain / out.view(-1, 1, 1, 1)
        new[f"{step.key}.bias"] = small[f"{step.key}.bias"].float() / out
    return folded, new


def _factors(reach: Tensor, share: float) -> Tensor:
    """What to divide channels by, powers of the share of their reach [C]; 1 for the widest."""
    return (reach / reach.max().clamp(min=1e-30)).clamp(min=SMALLEST) ** share


def _reach(net: Net, state: dict[str, Tensor], pictures: Iterable[Tensor], names: list[str]
           ) -> dict[str, Tensor]:
    """The largest absolute value of each channel [C] of the named values over the pictures."""
    model, seen = from_state(net, state), {}

    def note(name: str, value: Tensor) -> None:
        high = value.abs().amax((0, 2, 3))
        seen[name] = torch.maximum(seen[name], high) if name in seen else high
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: note(name, o))
    with torch.inference_mode():
        for batch in pictures:
            model(batch)
    return seen


def _readers(plan: tuple[Step, ...], through: tuple[str, ...]) -> dict[str, list[Step]]:
    """Who reads each value, also through operations that hand channels on."""
    found: dict[str, list[Step]] = {}
    for step in reversed(plan):
        readers = found.get(step.name, []) if step.op in through else [step]
        for name in step.inputs:
            found.setdefault(name, []).extend([step] if step.op not in through else readers)
    return found


def _held(plan: tuple[Step, ...]) -> set[str]:
    """Values that keep their channels' ranges: what an add or a gate reads directly or through others."""
    readers = _readers(plan, ("maxpool", "upsample", "concat", "mul"))
    squeezed = {step.name for step in plan if ".se." in step.name}       # a few values a picture, left float
    return squeezed | {name for name, who in readers.items() if any(s.op == "add" for s in who)}


def _depthwise_only(plan: tuple[Step, ...]) -> set[str]:
    """Values that only depthwise convolutions read."""
    readers = _readers(plan, ("maxpool", "upsample"))
    return {name for name, who in readers.items() if all(s.depthwise for s in who)}
